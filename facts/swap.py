"""Swap: the file, /etc/fstab and what is in use."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

from pyinfra.api import FactBase


@dataclass
class Found:
    """What one question gives."""

    exists: bool = False
    active: set[str] = field(default_factory=set)
    """Files and devices in use. In a container these are the kernel owner's."""
    boot: set[str] = field(default_factory=set)
    """Files and devices in /etc/fstab."""


class Swap(FactBase):
    """Whether a swap file exists, and which swap is used, now and at boot."""

    default = Found

    def command(self, path: str) -> str:
        return (
            f"[ -e {shlex.quote(path)} ] && echo E; sed -n '2,$s/^\\([^ \\t]*\\).*/A|\\1/p' /proc/swaps; "
            "awk '$1 !~ /^#/ && $3 == \"swap\" {print \"B|\" $1}' /etc/fstab 2>/dev/null; true"
        )

    def process(self, output):
        found = Found()
        for line in output:
            tag, _, rest = line.partition("|")
            if tag == "E":
                found.exists = True
            elif tag == "A":
                found.active.add(rest)
            elif tag == "B":
                found.boot.add(rest)
        return found
