"""Files: many paths, one question."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Iterable

from pyinfra.api import FactBase


@dataclass(frozen=True)
class Path:
    """What is at a path."""

    kind: str
    """file, directory, link, or other."""
    owner: str
    group: str
    mode: str
    """Octal, without leading zeros: 644."""
    sha256: str | None = None
    """Of a regular file's content."""
    target: str | None = None
    """Of a symbolic link."""


_KINDS = {"f": "file", "d": "directory", "l": "link"}


class Paths(FactBase):
    """Kind, owner, group, mode, SHA-256 or link target of each path: {path: Path or None}.

    Args of the command:
        paths: absolute.
    """

    default = dict

    def command(self, paths: Iterable[str]) -> str:
        # Two programs, however many paths there are; find writes out what it has to say before it starts another.
        return (
            f"find {shlex.join(paths)} -maxdepth 0 -printf 'S|%y|%u|%g|%m|%l|%p\\n' "
            "-type f -exec sha256sum -- {} + 2>/dev/null; true"
        )

    def process(self, output):
        found: dict[str, dict] = {}
        for line in output:
            if line.startswith("S|"):
                _, kind, owner, group, mode, rest = line.split("|", 5)
                target, path = rest.rsplit("|", 1)
                found[path] = {"kind": _KINDS.get(kind, "other"), "owner": owner, "group": group, "mode": mode}
                found[path]["target"] = target if kind == "l" else None
            else:
                # Where a name has a backslash, sha256sum writes it with another one, and one before the line.
                digest, path = line.removeprefix("\\").split("  ", 1)
                found[path.replace("\\\\", "\\") if line.startswith("\\") else path]["sha256"] = digest
        return {path: Path(**value) for path, value in found.items()}


class Content(FactBase):
    """Lines of a file, for a diff; empty where there is none."""

    default = list

    def command(self, path: str) -> str:
        return f"cat -- {shlex.quote(path)} 2>/dev/null || true"

    def process(self, output):
        return list(output)
