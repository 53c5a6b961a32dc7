"""A host's own name, and the names that it knows others by."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyinfra.api import FactBase


@dataclass
class Naming:
    """What one question gives."""

    live: str = ""
    """The kernel's host name."""
    stored: str = ""
    """/etc/hostname: the name after a boot."""
    hosts: list[str] = field(default_factory=list)
    """Lines of /etc/hosts."""


class Names(FactBase):
    """The host's name, live and stored, and its /etc/hosts."""

    default = Naming

    def command(self) -> str:
        return (
            'echo "L|$(uname -n)"; sed "s/^/S|/" /etc/hostname 2>/dev/null; '
            'sed "s/^/H|/" /etc/hosts 2>/dev/null; true'
        )

    def process(self, output):
        found = Naming()
        for line in output:
            tag, rest = line.split("|", 1)
            if tag == "L":
                found.live = rest
            elif tag == "S":
                found.stored = found.stored or rest
            elif tag == "H":
                found.hosts.append(rest)
        return found
