"""Whether the live firewall is the one on disk."""

from __future__ import annotations

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


class Client(FactBase):
    """Address that the host sees us at, or None where we came by no ssh."""

    def command(self) -> str:
        return 'echo "${SSH_CONNECTION%% *}"'

    def process(self, output):
        return (output[0].strip() or None) if output else None
