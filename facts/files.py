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


_KINDS = {"regular file": "file", "regular empty file": "file", "directory": "directory"}


class Paths(FactBase):
    """Kind, owner, group, mode, SHA-256 or link target of each path: {path: Path or None}."""

    default = dict

    def command(self, paths: Iterable[str]) -> str:
        self.paths = list(paths)
        quoted = " ".join(shlex.quote(path) for path in self.paths)
        return (
            f"set -- {quoted}; "
            "stat -c 'S|%F|%U|%G|%a|%n' -- \"$@\" 2>/dev/null; "
            'for p; do if [ -L "$p" ]; then echo "L|$(readlink -- "$p")|$p"; '
            'elif [ -f "$p" ]; then sha256sum -- "$p" | sed "s/^/H|/"; fi; done; true'
        )

    def process(self, output):
        found: dict[str, dict] = {}
        for line in output:
            tag, rest = line.split("|", 1)
            if tag == "S":
                kind, owner, group, mode, path = rest.split("|", 4)
                found[path] = {
                    "kind": "link" if kind == "symbolic link" else _KINDS.get(kind, "other"),
                    "owner": owner,
                    "group": group,
                    "mode": mode,
                }
            elif tag == "L":
                target, path = rest.rsplit("|", 1)
                found[path]["target"] = target
            elif tag == "H":
                digest, path = rest.split("  ", 1)
                found[path]["sha256"] = digest
        return {path: Path(**value) for path, value in found.items()}


class Content(FactBase):
    """Lines of a file, for a diff; empty where there is none."""

    default = list

    def command(self, path: str) -> str:
        return f"cat -- {shlex.quote(path)} 2>/dev/null || true"

    def process(self, output):
        return list(output)
