"""Releases of a tree of files: what is there, in one question."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

from pyinfra.api import FactBase


@dataclass
class ReleasesState:
    """What is at a place for releases."""

    current: str | None = None
    """The release that the link `current` names."""
    releases: dict[str, str] = field(default_factory=dict)
    """Release -> the name of its environment ("" for none), the latest deployed first."""
    used: set[str] = field(default_factory=set)
    """Releases that a running process works in."""
    environments: set[str] = field(default_factory=set)


class Releases(FactBase):
    """The releases in a directory, and the environments beside them.

    Args of the command:
        path: directory that holds `releases` and `current`.
    """

    default = ReleasesState

    def command(self, path: str) -> str:
        quoted = shlex.quote(path)
        return (
            f"cd {quoted} 2>/dev/null || exit 0; "
            'echo "current=$(readlink current)"; '
            'for name in $(ls -t releases 2>/dev/null); do echo "release=$name $(readlink releases/$name/.venv)"; done; '
            "readlink /proc/[0-9]*/cwd 2>/dev/null | sort -u | "
            f"sed -n 's#^{path}/releases/\\([^/]*\\).*#used=\\1#p'; "
            "ls environments 2>/dev/null | sed 's/^/environment=/'; true"
        )

    def process(self, output):
        found = ReleasesState()
        for line in output:
            tag, _, value = line.partition("=")
            if tag == "current":
                found.current = value.removeprefix("releases/") or None
            elif tag == "release":
                name, _, environment = value.partition(" ")
                found.releases[name] = environment.rsplit("/", 1)[-1]
            elif tag == "used":
                found.used.add(value)
            elif tag == "environment":
                found.environments.add(value)
        return found
