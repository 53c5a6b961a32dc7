"""What sshd makes of its configuration, and what it offers that no drop-in can say."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyinfra.api import FactBase

CHECK = "/usr/local/lib/groundwork/check-sshd"
DROP_IN = "/etc/ssh/sshd_config.d/00-groundwork.conf"
MODULI = "/etc/ssh/moduli"
MODULI_BITS = 3071
"""Field 5 of moduli(5): size less one. 3072 bits and more, as ssh-audit's hardening guides have it."""


@dataclass
class Found:
    """What one question gives."""

    weak_moduli: int = 0
    """Groups for the Diffie-Hellman group exchange of less than 3072 bits."""
    complaints: list[str] = field(default_factory=list)
    """Why our drop-in is not wholly effective: what check-sshd says of it."""


class Sshd(FactBase):
    """Short groups, and whether every line of our drop-in is effective."""

    default = Found

    def command(self) -> str:
        return (
            f"awk '!/^#/ && $5 < {MODULI_BITS} {{weak++}} END {{print \"W|\" weak + 0}}' {MODULI} 2>/dev/null; "
            f"[ -e {DROP_IN} ] && {{ {CHECK} {DROP_IN} 2>&1 || echo refused; }} | sed 's/^/C|/'; true"
        )

    def process(self, output):
        found = Found()
        for line in output:
            tag, rest = line.split("|", 1)
            if tag == "W":
                found.weak_moduli = int(rest)
            else:
                found.complaints.append(rest)
        if found.complaints[-1:] != ["refused"]:
            found.complaints = []  # warnings of an sshd that took it
        return found
