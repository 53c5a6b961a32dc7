"""Whether the live firewall is the one on disk."""

from __future__ import annotations

from dataclasses import dataclass

from pyinfra.api import FactBase

RULES = "/etc/groundwork/firewall.nft"
LOADED = "/run/groundwork/firewall.loaded"
"""What load-firewall notes: digests of the file that it loaded and of the table that came of it."""

# The same two lines as load-firewall writes: the file's digest, and the live table's.
STATE = f'{{ sha256sum <{RULES}; nft -s list table inet groundwork | sha256sum; }} 2>/dev/null'


class Firewall(FactBase):
    """True where the live table is what loading the file on disk gave, False where it differs."""

    def command(self) -> str:
        return f'[ -e {LOADED} ] && [ "$(cat {LOADED})" = "$({STATE})" ] && echo same; true'

    def process(self, output):
        return "same" in list(output)


ARRIVED = "groundwork_arrived"
"""Where a run notes, in `host.connector_data`, the port at which its connection came in."""
UNCONFIRMED = "/var/lib/groundwork/unconfirmed"
"""Exists while a change of firewall or sshd waits for its confirmation."""


@dataclass
class Found:
    """What one question gives."""

    address: str | None = None
    """Address that the host sees us at, or None where we came by no ssh."""
    port: int | None = None
    """Port of the host that we came in at."""
    unconfirmed: bool = False
    """Another run's change of firewall or sshd is not confirmed yet."""


class Client(FactBase):
    """How we came in, and whether what was changed last is still on probation."""

    default = Found

    def command(self) -> str:
        return f'echo "C $SSH_CONNECTION"; [ -d {UNCONFIRMED} ] && echo U; true'

    def process(self, output):
        found = Found()
        for line in output:
            tag, *words = line.split()
            if tag == "C" and len(words) == 4:
                found.address, found.port = words[0], int(words[3])
            found.unconfirmed = found.unconfirmed or tag == "U"
        return found
