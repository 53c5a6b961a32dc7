"""The host's firewall: our own nftables table, live as it is on disk."""

from __future__ import annotations

import ipaddress
from typing import Iterable

from pyinfra import host, state
from pyinfra.api import StringCommand, operation
from pyinfra.api.operation import OperationMeta

from facts.firewall import ARRIVED, RULES, Client, Firewall, Found
from groundwork.logins import unknown_at
from groundwork.context import current
from operations.report import report, stop
from operations.unconfirmed import GUARD, guarded

UNIT = "groundwork-firewall.service"


@operation()
def way_in(networks: Iterable[str] | None, port: int):
    """Refuse what would shut out the connection that this run came in by, or the next; is never a change.

    Waits first where another run's change is not confirmed yet: it will be, or the host puts it back.

    Args:
        networks: who may connect to sshd; None for everybody.
        port: where sshd shall listen.
    """
    found = host.get_fact(Client, _sudo=False) or Found()
    host.connector_data[ARRIVED] = found.port
    if found.unconfirmed and state.is_executing:
        report("waiting for another run's change of firewall, sshd, keys or sudo: it is confirmed, or the host puts it back")
        good, output = host.run_shell_command(StringCommand(GUARD, "settle"), _sudo=True)
        if not good:
            yield stop(output.stderr or "it did not come to an end")
            return
    moves = found.port not in (None, port) and int(host.data.get("ssh_port") or 22) == found.port
    if moves and (why := unknown_at(host, current(), port)):
        yield stop(f"base_ssh_port: sshd was not moved from port {found.port} to {port}, and nothing was changed: {why}")
        return
    client = found.address
    if networks is None or client is None or ipaddress.ip_address(client).is_loopback:
        return
    allowed = [ipaddress.ip_network(network) for network in networks]
    if not any(ipaddress.ip_address(client) in network for network in allowed):
        message = (
            f"base_ssh_sources: this run comes from {client}, which is none of {', '.join(map(str, allowed))}: "
            "the firewall would lock you out. Nothing was changed"
        )
        yield stop(message)


@operation()
def loaded(before: str, after: Iterable[OperationMeta] = ()):
    """Load the rules on disk where the live table is not what they give.

    That is so after a change of the file, and when somebody changed or flushed the table by hand.

    Args:
        before: command to run before it, in the same shell.
        after: operations of this run that may write the rules.
    """
    if not state.is_executing and any(meta.will_change for meta in after):
        yield "true"  # a prediction
    elif not host.get_fact(Firewall):
        report(f"firewall: loading {RULES}")
        load = f"systemctl reload-or-restart {UNIT} || {{ journalctl --no-pager -o cat -n 20 -u {UNIT} >&2; exit 1; }}"
        yield from guarded(before, [load])
