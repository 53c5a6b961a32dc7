"""What could lock us out is changed on probation: the host itself puts it back, unless a new connection says that it works.

The host's part is files/base/guard: it keeps what was there, and counts the seconds.
"""

from __future__ import annotations

import shlex
import time
from typing import Iterable
from uuid import uuid4

import gevent
from pyinfra import host, logger, state
from pyinfra.api import StringCommand, operation
from pyinfra.api.arguments import CONNECTOR_ARGUMENT_KEYS
from pyinfra.api.command import PyinfraCommand
from pyinfra.api.exceptions import ConnectError
from pyinfra.api.operation import OperationMeta
from pyinfra.connectors.base import BaseConnector
from pyinfra.connectors.ssh import SSHConnector
from pyinfra.connectors.sshuserclient.client import get_host_keys
from pyinfra.connectors.util import CommandOutput

from facts.firewall import ARRIVED
from groundwork.connections import Unreached
from operations.report import report

GUARD = "/usr/local/lib/groundwork/guard"
UNIT = "groundwork-rollback.service"
RUN = uuid4().hex
"""This run, for the host: what another run has changed is not ours to confirm."""

LATER = 30
"""Seconds that the host may take to put things back and answer again, besides the delay."""

ADVICE = (
    ("/etc/ssh/", "base_ssh_port and the other base_ssh_… settings, and what else lies in /etc/ssh/sshd_config.d"),
    ("/etc/systemd/system/ssh.socket.d/", "base_ssh_port"),
    ("firewall", "base_ssh_sources, base_ssh_port and flows"),
    ("/etc/sudoers.d/", "base_administrators: is ssh_user among them, or has it sudo by another file?"),
    ("/authorized_keys", "the keys of ssh_user in base_administrators"),
)
"""What was put back, by a part of its name, and the settings that it comes from."""


def keep(seconds: int, paths: Iterable[str]) -> str:
    """The command that comes before a change: keep what is at the paths, count the seconds anew."""
    return f"{GUARD} keep {RUN} {seconds} {shlex.join(paths)}".strip()


def guarded(before: str | None, commands: Iterable[str | StringCommand]) -> list[str | StringCommand]:
    """Each command with the one that keeps, in the same shell: a run may be slower than the host's seconds.

    Args:
        before: from `keep`; None leaves the commands as they are. Where it refuses, the command is not run.
    """
    return [_guarded(before, command) for command in commands] if before else list(commands)


def _guarded(before: str, command: str | StringCommand) -> str | StringCommand:
    if isinstance(command, str):
        return f"{before} || exit 1\n{command}"
    # What it reads is there first: else it would wait for that, already allowed, past the rollback.
    return StringCommand(
        f"input=$(cat; echo .)\n{before} </dev/null || exit 1\nprintf %s \"${{input%.}}\" | (\n",
        *command.bits, "\n)", **command.connector_arguments,
    )  # fmt: skip


@operation()
def confirmed(seconds: int, port: int, after: Iterable[OperationMeta] = ()):
    """Log in once more, by a new connection, where this run has changed who gets in; is never a change.

    The connection is made as the inventory says and as the next run would make it; sudo must work in it,
    too. Where it is not to be had, the host puts back what was there: that is waited for, told, and
    fails the host.

    Args:
        seconds: the time that the host waits for it.
        port: where sshd listens.
        after: operations of this run that may have kept and changed something.
    """
    if not state.is_executing:
        if any(meta.will_change for meta in after):
            report(f"will be confirmed by a new connection within {seconds} s, or put back by the host")
        return
    if not any(meta.did_change() for meta in after):
        return
    begin = time.monotonic()
    why = _why_not(seconds, port)
    if not why:
        return
    _say(f"a new connection does not get in: {why}")
    if time.monotonic() - begin < seconds:
        _say(f"waiting until the host puts back what this run has changed (base_confirm_seconds = {seconds})")
    # Not asked before its time is over: each login that fails counts for fail2ban.
    time.sleep(max(0.0, begin + seconds + 1 - time.monotonic()))
    put_back = _put_back(begin + seconds + LATER)
    if put_back is None and (put_back := _put_back_by_own()) is not None:
        _say("no new connection gets in still; this run's own, which was there before, says:")
    _tell(put_back)
    yield Failed()


class Failed(PyinfraCommand):
    """A command that fails its host, where none can be sent to it."""

    def __repr__(self) -> str:
        return "Failed()"

    def execute(self, state, host, connector_arguments) -> bool:
        return False


def _say(message: str) -> None:
    host.log_styled(message, fg="red", log_func=logger.error)


def _why_not(seconds: int, port: int) -> str:
    """Confirm the change by a new connection; in words why that did not work, or nothing."""
    if not isinstance(host.connector, SSHConnector):
        report("not reached by ssh, so there is no way in to try: confirmed as it is")
        good, output = _guard(host.connector, "confirm")
        return "" if good else output.stderr
    end = time.monotonic() + seconds
    ports, why = _ports(port), ""
    while True:
        for number in ports:
            why, final = _try(number, end)
            if not why or final:
                return why
        if time.monotonic() + 1 > end:
            return why
        time.sleep(1)


def _try(port: int | None, end: float) -> tuple[str, bool]:
    """One new connection: why it does not confirm the change, or nothing; and whether to try no more."""
    try:
        connector = _connect(port, end)
    except ConnectError as error:
        # One failed login is enough: fail2ban counts them.
        return f"{_name(port)}: {error}", _is_refused(error)
    try:
        with gevent.Timeout(max(1.0, end - time.monotonic()), TimeoutError("no answer")):
            good, output = _guard(connector, "confirm")
    except Exception as error:  # paramiko raises many kinds, and an exception would end the run for every host
        return f"{_name(port)}: logged in, and then: {error or type(error).__name__}", False
    finally:
        connector.client.close()
    if good:
        report(f"confirmed by a new connection to {_name(port)}")
        return "", True
    return f"{_name(port)}: logged in, and then: {output.stderr or output.stdout or 'the command failed'}", True


def _is_refused(error: Exception) -> bool:
    return isinstance(error, Unreached) and error.refused


def _ports(port: int) -> list[int | None]:
    """Ports to try; None is the inventory's own.

    While sshd moves, the run came in at another port of the host than the one that all will use from now
    on. That one is tried; and the inventory's own where something in front forwards, and moves along.
    """
    arrived = host.connector_data.get(ARRIVED)
    if arrived in (None, port):
        return [None]
    return [port] if int(host.data.get("ssh_port") or 22) == arrived else [port, None]


def _connect(port: int | None, end: float) -> SSHConnector:
    """A connector of its own, made from the same data as the host's.

    Raises:
        ConnectError: with the reason.
    """
    # It keeps what it read at the beginning; a key that this run was the first to see is in the file by now.
    get_host_keys.cache.clear()
    connector = type(host.connector)(state, host)
    if port is not None:
        connector.data["ssh_port"] = port
    try:
        with gevent.Timeout(max(1.0, end - time.monotonic()), TimeoutError("no answer")):
            connector.connect()
    except ConnectError:
        raise
    except Exception as error:
        raise ConnectError(str(error) or type(error).__name__) from None
    return connector


def _guard(connector: BaseConnector, command: str) -> tuple[bool, CommandOutput]:
    given = host.current_op_global_arguments or {}
    if given.get("_sudo_password") or host.connector_data.get("prompted_sudo_password"):
        arguments = {name: given[name] for name in CONNECTOR_ARGUMENT_KEYS if name in given}
        return connector.run_shell_command(StringCommand(GUARD, command, RUN), **arguments)
    # Where sudo wants a password by now, pyinfra would ask for it, and nobody may be there to answer: it
    # knows sudo's words by their line.
    script = f"said=$(sudo -n {GUARD} {command} {RUN} 2>&1) || {{ echo \"it says: $said\"; exit 1; }}; echo \"$said\""
    return connector.run_shell_command(StringCommand(script))


def _name(port: int | None) -> str:
    data = host.data
    return f"{data.get('ssh_hostname') or host.name} port {port or data.get('ssh_port') or 22}"


def _put_back(end: float) -> list[str] | None:
    """What the host has put back, asked by a connection as the inventory says; None without an answer.

    The connection takes the place of the host's own, which may not have outlived the change.
    """
    if not isinstance(host.connector, SSHConnector):
        good, output = _guard(host.connector, "state")
        return output.stdout_lines[1:] if good and output.stdout_lines[:1] == ["rolled back"] else None
    refused = 0
    while time.monotonic() < end and refused < 2:
        try:
            connector = _connect(None, end)
            good, output = _guard(connector, "state")
        except Exception as error:  # see above
            good = False
            refused += _is_refused(error)
        if good:
            host.connector.disconnect()
            host.connector.client = connector.client
            if output.stdout_lines[:1] == ["rolled back"]:
                return output.stdout_lines[1:]
        time.sleep(2)
    return None


def _put_back_by_own() -> list[str] | None:
    """The same, asked by the connection that the run came in by: sshd may refuse new ones, and leave this."""
    try:
        with gevent.Timeout(10, TimeoutError("no answer")):
            good, output = _guard(host.connector, "state")
    except Exception:  # see above
        return None
    return output.stdout_lines[1:] if good and output.stdout_lines[:1] == ["rolled back"] else None


def _tell(put_back: list[str] | None) -> None:
    if put_back is None:
        _say(
            "and the host has not answered since its time was over. What this run itself changed, the host puts back "
            "(at the latest when it is rebooted); what somebody else left there, it does not: look at its console, at "
            "journalctl -u groundwork-unconfirmed, and at /etc/ssh/sshd_config.d"
        )
        return
    if not put_back:
        _say(
            "the host has put nothing back, because nothing on it differs from what was there before this run: what "
            "shuts new connections out is not of this run. Look at /etc/ssh/sshd_config.d for what somebody else left"
        )
        return
    _say(f"the host has put back what was there: {', '.join(put_back)}")
    for part, settings in ADVICE:
        if any(part in item for item in put_back):
            _say(f"look at {settings}; then run again")
