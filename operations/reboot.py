"""A reboot in the middle of a run: waited for, connected and locked again, and the run goes on."""

from __future__ import annotations

import time

from paramiko import SSHException
from pyinfra.api import FunctionCommand, StringCommand
from pyinfra.api.exceptions import ConnectError, PyinfraError
from pyinfra.connectors.ssh import SSHConnector
from pyinfra.connectors.util import clear_askpass_cache

from facts.machine import BOOT
from groundwork import connections, logins
from groundwork.context import current, secret_value
from groundwork.settings import HostSettings
from operations import lock
from operations.report import report, stop

DOWN_SECONDS = 180
"""How long the host may take to go down: systemd gives a service 90 s to stop before it is killed."""
POLL_SECONDS = 2
"""Between two attempts to connect. Before the host is wholly up it may refuse a login, which is not to look like an attack."""


def commands(why: str, seconds: int):
    """The commands that reboot the host and wait, for an operation that finds out whether there is need.

    Args:
        why: what is told.
        seconds: how long it may take, from its going down.
    """
    if problem := _moving_port():
        yield stop(f"a reboot is needed ({why}), and was not done: {problem}")
        return
    report(f"rebooting: {why}")
    yield FunctionCommand(_reboot, (seconds,), {})


def _moving_port() -> str:
    """Where sshd moves in this very run, the connection's port is not the one that it will listen at."""
    data = current().data
    new = data.get("base_ssh_port", 22)
    if new != 22 and (data.get("ssh_port") or 22) == 22:
        return f"this run moves sshd from port 22 to {new}, where it could not connect again. Run again without --data ssh_port"
    return ""


def _reboot(state, host, seconds: int) -> bool:
    """Whether the host is up again, connected and locked. Says why not: an exception would show a traceback."""
    if not isinstance(host.connector, SSHConnector):
        return _failed(host, "not rebooted, because this run is not connected to it by SSH: reboot it, and run again")
    try:
        before = _boot(host)
        if not before:
            return _failed(host, f"not rebooted, because it does not tell {BOOT}, by which its next boot is known")
        lock.goes_down(host)
        # Detached: the shell's own end is reported before the connection is.
        host.run_shell_command(StringCommand("(sleep 1; exec systemctl reboot) </dev/null >/dev/null 2>&1 &"), _sudo=True)
    except (PyinfraError, SSHException, OSError) as error:
        return _failed(host, f"the reboot could not be asked for: {error}")
    begin = time.monotonic()
    if not _goes_down(host):
        return _failed(host, f"did not go down in {DOWN_SECONDS} s: see `systemctl list-jobs` there. It may do so yet")
    if not _comes_up(host, before, seconds):
        return _failed(host, f"is not up again after {seconds} s: look at its console. Run again when it answers; the next run goes on")
    problem = _ready(host, seconds) or lock.again(host)
    if problem:
        return _failed(host, problem)
    report(f"up again after {time.monotonic() - begin:.0f} s")
    return True


def _failed(host, why: str) -> bool:
    host.log(f"  {host.name}: {why}")
    return False


def _boot(host) -> str:
    """The id of the host's boot; empty where it does not tell. That a host answers again says nothing: it may not be down yet."""
    good, output = host.run_shell_command(StringCommand("cat", BOOT))
    return " ".join(output.stdout_lines) if good else ""


def _goes_down(host) -> bool:
    transport = host.connector.client.get_transport()
    end = time.monotonic() + DOWN_SECONDS
    while transport is not None and transport.is_active():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def _comes_up(host, before: str, seconds: int) -> bool:
    """Wait for another boot than that before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        _hang_up(host)
        time.sleep(POLL_SECONDS)
        try:
            host.connect(show_errors=False, raise_exceptions=True)
            if _boot(host) not in ("", before):
                return True
        except (ConnectError, PyinfraError, SSHException, OSError, EOFError):
            continue
    return False


def _hang_up(host) -> None:
    clear_askpass_cache(host)  # the files are gone, or go with the connection
    host.connector.client.close()
    host.disconnect()


def _ready(host, seconds: int) -> str | None:
    """Make the connection what it was, and wait until the host has started all that it starts; gives what is wrong."""
    here = current()
    settings = here.settings(HostSettings)
    connections.bound(host, settings.connection_seconds)
    password = settings.sudo_password
    if problem := logins.ask_machine(host, here, password and secret_value(password.name)):
        return problem
    # Units that fail to start are for those to tell whose they are.
    host.run_shell_command(StringCommand(f"timeout {seconds} systemctl is-system-running --wait >/dev/null; true"), _sudo=True)
    return None
