"""What sshd offers that no drop-in can say."""

from pyinfra.api import FactBase

MODULI = "/etc/ssh/moduli"
MODULI_BITS = 3071
"""Field 5 of moduli(5): size less one. 3072 bits and more, as ssh-audit's hardening guides have it."""


class WeakModuli(FactBase):
    """How many groups for the Diffie-Hellman group exchange are shorter than 3072 bits."""

    def command(self) -> str:
        return f"awk '!/^#/ && $5 < {MODULI_BITS} {{weak++}} END {{print weak + 0}}' {MODULI} 2>/dev/null || echo 0"

    def process(self, output):
        return int(list(output)[-1])
