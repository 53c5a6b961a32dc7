"""Kernel settings: many, in one question."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Iterable

from pyinfra.api import FactBase


@dataclass
class Found:
    """What one question gives."""

    live: dict[str, str] = field(default_factory=dict)
    """Path under /proc/sys -> value, with single spaces."""
    stored: list[str] = field(default_factory=list)
    """Lines of the file."""
    parents: list[str] = field(default_factory=list)
    """Those directories under /proc/sys in which a key would be, that are there."""
    missing: list[str] = field(default_factory=list)
    """Paths of keys that are not there, with their `*`: what is there may be not for reading."""
    names: list[str] = field(default_factory=list)
    """Of keys that are not there: what else is in their directory, as paths."""


class Sysctls(FactBase):
    """Live values of kernel settings, and the lines of the file that holds them for boot.

    Args of the command:
        keys: as sysctl.d has them; `*` stands for any one part.
        file: path of the file.
    """

    default = Found

    def command(self, keys: Iterable[str], file: str) -> str:
        paths = " ".join(f"/proc/sys/{key.replace('.', '/')}" for key in keys)  # unquoted: * is for the shell
        parents = " ".join(sorted({path.rsplit("/", 1)[0] for path in paths.split()}))
        return (
            f"sed 's/^/F|/' {shlex.quote(file)} 2>/dev/null; grep -s -H '' /dev/null {paths}; "
            f"for p in {parents}; do [ ! -d $p ] || echo \"P|$p\"; done; "
            f"for p in {paths}; do [ -e $p ] || {{ echo \"M|$p\"; for q in ${{p%/*}}/*; do echo \"N|$q\"; done; }}; done"
        )

    def process(self, output):
        found = Found()
        for line in output:
            if line.startswith("F|"):
                found.stored.append(line[2:])
            elif line.startswith("P|"):
                found.parents.append(line[2:])
            elif line.startswith("M|"):
                found.missing.append(line[2:])
            elif line.startswith("N|"):
                found.names.append(line[2:])
            elif line.startswith("/proc/sys/"):
                path, value = line.split(":", 1)
                found.live[path] = " ".join(value.split())
        return found
