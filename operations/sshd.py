"""sshd: running what is on disk, without ending a session."""

from __future__ import annotations

from typing import Iterable

from pyinfra import host, state
from pyinfra.api import operation
from pyinfra.api.operation import OperationMeta

from facts.firewall import UNCONFIRMED
from facts.sshd import MODULI, MODULI_BITS, Found, Sshd
from facts.units import STAMPS, Unit
from operations import declared
from operations.report import report, stop
from operations.unconfirmed import guarded

READS = {"ssh.service": ["/etc/ssh/sshd_config", "/etc/ssh/sshd_config.d"], "ssh.socket": []}


@operation()
def current(port: int, before: str, after: Iterable[OperationMeta] = ()):
    """Reload sshd where its configuration is newer than what runs; sessions go on.

    Refuses, and says why, where a change of /etc/ssh/sshd_config has made a line of our drop-in
    ineffective. Leaves no group of less than 3072 bits for the key exchange.

    Where systemd listens (ssh.socket) and starts sshd at the first login, as on Ubuntu 24.04, the socket is
    made to listen on the port, too; sshd is restarted there and not reloaded: no connection is refused
    meanwhile, sessions go on, and the sshd of Debian 12 does not find its socket again after a reload.

    Args:
        port: where sshd shall listen after it.
        before: command to run before sshd is touched, each time, in the same shell.
        after: operations of this run that may write the configuration.
    """
    if not state.is_executing and any(meta.will_change for meta in after):
        yield "true"  # a prediction
        return
    found = host.get_fact(Sshd)
    if found.complaints:
        yield stop(*found.complaints[:-1])
        return
    units = declared.units(READS)
    reloads = _reload(units["ssh.service"], units["ssh.socket"], port)
    # Noted with what is kept: a rollback that finds each file as it was has sshd to reload all the same.
    commands = [*_moduli(found), *(f"touch {UNCONFIRMED}/sshd || exit 1; {command}" for command in reloads)]
    yield from guarded(before, commands)


def _moduli(found: Found):
    if found.weak_moduli:
        report(f"{MODULI}: {found.weak_moduli} groups of less than 3072 bits removed")
        # sshd reads the file at each key exchange.
        yield (
            f"set -e; t=$(mktemp /etc/ssh/.moduli.XXXXXX); trap 'rm -f \"$t\"' EXIT; "
            f"awk '/^#/ || $5 >= {MODULI_BITS}' {MODULI} >\"$t\"; chmod 644 \"$t\"; mv -fT \"$t\" {MODULI}"
        )


def _reload(service: Unit, socket: Unit, port: int):
    listens = (
        f"for n in 1 2 3 4 5 6 7 8 9 10; do ss -Hltnp 'sport = :{port}' | grep -q '\"sshd\"' && exit 0; sleep 0.3; done; "
        f"echo 'sshd does not listen on port {port}' >&2; exit 1"
    )
    if socket.running and (socket.stale or socket.needs_daemon_reload):
        report("ssh.socket: restart, sessions go on")
        # A socket does not start while its service runs.
        yield (
            "systemctl daemon-reload; systemctl stop ssh.service; systemctl restart ssh.socket; "
            f"systemctl start ssh.service; {listens}"
        )
    elif socket.running and service.running and service.stale:
        report(f"ssh.service: restart, sessions go on ({service.newest_path} is newer than what runs)")
        yield f"systemctl restart ssh.service; {listens}"
    elif service.running and service.stale:
        report(f"ssh.service: reload ({service.newest_path} is newer than what runs)")
        yield f"systemctl reload ssh.service && mkdir -p {STAMPS} && touch {STAMPS}/ssh.service && {listens}"
    elif not (service.running or socket.running):
        report("ssh.service: started")
        yield "systemctl enable --quiet ssh.service; systemctl start ssh.service"
