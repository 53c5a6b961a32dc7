"""One run at a time per host.

The lock is an flock on the host, held by a process on a channel of the run's own connection: it ends with
the connection, however the run ends, and nothing is left to clean up. Where commands of a run that died are
still at work (dpkg goes on without its terminal), it is held until the last of them has ended.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import socket
import sys
import time
from dataclasses import dataclass
from typing import Any

import gevent
from gevent.lock import Semaphore
from gevent.subprocess import PIPE, Popen, TimeoutExpired
from paramiko import SSHException
from pyinfra import host, state
from pyinfra.api import BaseStateCallback, StringCommand, operation
from pyinfra.api.arguments import CONNECTOR_ARGUMENT_KEYS, pop_global_arguments
from pyinfra.connectors.local import LocalConnector
from pyinfra.connectors.ssh import SSHConnector
from pyinfra.connectors.util import extract_control_arguments, make_unix_command_for_host
from pyinfra.context import ctx_host

from groundwork import ROOT, command_line, connections, logins
from groundwork.connector import Connector
from groundwork.context import topology
from groundwork.settings import HostSettings
from operations.report import stop

LEFT_SECONDS = 900
"""How long what a dead run left may go on before it is waited for no more; files/lock/hold has it too."""

ANSWER_SECONDS = 60
"""How long the host may take to say whether it is locked: it is one flock."""

MOMENT = 10
"""Seconds in which a holder has said who it is, or is gone."""

ALIVE_SECONDS = 20
"""How often the host is told that the run lives."""
SILENT_MINUTES = 3
"""After which the host counts a run as dead that says nothing (files/lock/hold has it too). A cut of the network
alone sshd was seen not to notice in eight minutes, with ClientAliveInterval 60 and ClientAliveCountMax 3."""

_once = Semaphore()
_wanted: dict[str, Any] = {}
"""Hosts of this run that shall be locked."""
_held: dict[str, _Line] = {}
_refused: dict[str, str] | None = None
"""Host -> why it could not be locked; None until it was tried."""


def lock() -> None:
    """Let nobody else's run change this host until this one ends; called again, it does nothing.

    All hosts are locked before the first of them is changed. --dry locks nothing.
    """
    if host.name not in _wanted:
        if not _wanted:
            state.add_callback_handler(_Ends())
            connections.when_hosts_fail.append(_tell_lost)
        _wanted[host.name] = ctx_host.get()
        _run_lock(name="One run at a time")


def forget() -> None:
    """Forget what was locked: for tests, which have many runs in one process."""
    global _refused
    _wanted.clear()
    _held.clear()
    _refused = None


@operation()
def _run_lock():
    """Take the lock, or say who has it; is never a change."""
    global _refused
    if not state.is_executing:
        return
    with _once:
        if _refused is None:
            active = [item for item in _wanted.values() if item in state.active_hosts]
            _refused = _take_all(active)
    message = _refused.get(host.name)
    if message is None and _refused and not state.config.FAIL_PERCENT:
        message = f"nothing was changed here, because of {', '.join(_refused)}"
    if message:
        yield stop(message)


# Taking it

# Whether the process is still the one that has the lock, its file says.
_TELL = '[ "$(readlink /proc/{process}/fd/9)" = /run/groundwork/run.lock ] && kill -USR1 {process}'


@dataclass(frozen=True)
class Holder:
    """Who holds a host's lock, as the host says."""

    run: dict[str, Any]
    since: str
    process: str
    """Of the process on the host that holds it."""
    left: str
    """What a run that died has left at work on the host; empty while the run lives."""

    @property
    def is_dead(self) -> bool:
        """Whether it is certain that the run is gone: it ran where we run, and its process is no more."""
        return bool(self.left) or (_kernel() is not None and self.run.get("kernel") == _kernel() and not self._alive())

    def _alive(self) -> bool:
        return os.path.exists(f"/proc/{self.run.get('process')}")

    def __str__(self) -> str:
        run = self.run
        return (
            f"{run.get('who', 'somebody')}, since {self.since}, with `pyinfra {run.get('what', '?')}` "
            f"(process {run.get('process', '?')} there)"
        )


def _take_all(items: list) -> dict[str, str]:
    """Lock every host, or none. Gives host -> why not."""
    begin, said = time.monotonic(), set()
    while True:
        jobs = {item: gevent.spawn(_take, item) for item in items}
        gevent.joinall(jobs.values())
        answers = {item: job.get() for item, job in jobs.items()}
        failed = {item: answer for item, answer in answers.items() if answer is not None}
        if not failed:
            return {}
        waits = [_wait(item, answer) for item, answer in failed.items()]
        if time.monotonic() - begin >= min(waits):
            if not state.config.FAIL_PERCENT:
                release()
            return {item.name: _message(item, answer) for item, answer in failed.items()}
        release()  # who waits holds nothing: two runs can't wait for each other
        for item, answer in failed.items():
            # A run that has ended without waiting for its lock's end is no news.
            ends = isinstance(answer, Holder) and answer.is_dead and not answer.left and time.monotonic() - begin < 1
            if (item, str(answer)) not in said and not ends:
                said.add((item, str(answer)))
                item.log(f"  waiting for {_waiting_for(answer)}")
        time.sleep(random.uniform(1, 2))


def _wait(item, answer: Holder | str) -> float:
    """Seconds to wait for a host."""
    if isinstance(answer, str):
        return 0
    if answer.is_dead:
        return LEFT_SECONDS + 60
    if not answer.run:
        return MOMENT  # it comes or goes: the file is empty before the lock is free
    return topology().hosts[item.name].settings(HostSettings).lock_wait


def _waiting_for(answer: Holder | str) -> str:
    if isinstance(answer, str):
        return answer
    if answer.is_dead:
        return f"what an interrupted run left at work on the host: {answer.left or 'its lock'} (the run: {answer})"
    return f"another run: {answer}"


def _message(item, answer: Holder | str) -> str:
    if isinstance(answer, str):
        return f"the run lock could not be taken: {answer}"
    free = f"`sudo kill {answer.process}` on {item.name}"
    if answer.is_dead:
        return (
            f"{item.name} is still at work for a run that died: {answer.left or 'its lock'} (the run: {answer}). "
            f"Nothing was changed. See what that process waits for; {free} gives the lock free"
        )
    return (
        f"{item.name} is locked by another run: {answer}. Nothing was changed. Wait until it has ended, or add "
        f"--data lock_wait=600 to wait for it. Should that run be dead (its machine switched off, its network cut), "
        f"the host notices within {SILENT_MINUTES} minutes and the lock is free; {free} frees it at once"
    )


def _take(item) -> Holder | str | None:
    """Try to lock one host: None when it is ours, else who has it, or what went wrong."""
    if not isinstance(item.connector, (SSHConnector, LocalConnector)):
        return None  # @fake and the like: nothing real is changed
    asks = item.connector if isinstance(item.connector, Connector) else None
    try:
        if asks:
            asks.locking()
        line = _open(item, (ROOT / "files/lock/hold").read_text(), json.dumps(_ourselves()))
        answer = line.read()
        if "locked" in answer:
            _held[item.name] = line
            gevent.spawn(_watch, item, line)
            if asks:
                asks.locked(*answer[answer.index("locked") - 2 :][:2])
            return None
        if "held" not in answer:
            return " ".join([*answer, line.complaints()]).strip() or "the connection was lost"
        found = _holder(answer[answer.index("held") + 1 :])
        if found.is_dead and not found.left and found.process.isdigit():
            # Its connection is not known to be dead yet: the holder is told.
            _open(item, _TELL.format(process=found.process), "").read()
        return found
    except (SSHException, OSError, EOFError) as error:
        return f"{type(error).__name__}: {error}"


def _holder(lines: list[str]) -> Holder:
    """The lock file, which may be just being written."""
    run, since, process, left = [*lines, "", "", "", ""][:4]
    try:
        return Holder(dict(json.loads(run)), since, process, left)
    except (ValueError, TypeError):
        return Holder({}, "just now", process or "?", "")


def _ourselves() -> dict[str, Any]:
    inventory, operations = command_line.words(sys.argv[1:])
    return {
        "who": f"{logins.local_user()}@{socket.gethostname()}",
        "what": " ".join([inventory, *operations]),
        "process": os.getpid(),
        "kernel": _kernel(),
    }


def _kernel() -> str | None:
    """What a process number is valid in: this boot of this machine, and this process namespace."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None  # no Linux


# Holding it


def release() -> None:
    """Give all locks free."""
    for name in list(_held):
        _held.pop(name).close()


def goes_down(item) -> None:
    """The host is about to be rebooted by this run: that its lock ends with it is no loss."""
    _held.pop(item.name, None)


def again(item) -> str | None:
    """Lock a host that was rebooted, if this run had locked it. Gives why it could not be."""
    end = time.monotonic() + MOMENT
    while item.name in _wanted and (answer := _take(item)) is not None:
        if time.monotonic() > end:
            return (
                f"the host is up again, and could not be locked again: {_waiting_for(answer)}. What this run did before the reboot "
                "is done, the rest is not: run it again when that has ended"
            )
        time.sleep(1)
    return None


class _Ends(BaseStateCallback):
    """Gives the lock free at the end of a run, and not where an operation was cut off."""

    busy: set[str] = set()

    @staticmethod
    def operation_host_start(state, host, op_hash):
        _Ends.busy.add(host.name)

    @staticmethod
    def operation_host_success(state, host, op_hash, *retries):
        _Ends.busy.discard(host.name)

    @staticmethod
    def operation_host_error(state, host, op_hash, *retries):
        _Ends.busy.discard(host.name)
        _tell_lost([host])

    @staticmethod
    def host_disconnect(state, host):
        if host.name not in _Ends.busy and host.name in _held:
            # It ends with the connection as well, and whoever comes next is later than that.
            _held.pop(host.name).close(seconds=0)


def _tell_lost(failed) -> None:
    """Of hosts that have failed, say whose connection was lost; pyinfra is about to end the run."""
    for item in failed:
        line = _held.get(item.name)
        # A host that goes down ends the command first.
        if line is not None and (line.is_dead or line.has_ended(0.5)):
            _lost(item, line)


def _watch(item, line: _Line) -> None:
    """Tell the host that the run lives, as long as it holds the lock."""
    while not line.has_ended(ALIVE_SECONDS):
        try:
            line.send("alive")
        except (SSHException, OSError, EOFError):
            break
    _lost(item, line)


def _lost(item, line: _Line) -> None:
    """Say why the lock is lost, and end the run on this host."""
    # Asked first: who comes meanwhile, when the run is about to end, must still find that it is to be told.
    lost = "the connection was lost (the host went down, or does not answer)" if line.dies() else "its lock was taken away"
    if _held.get(item.name) is not line:
        return  # given free, or told, or another one since
    del _held[item.name]
    item.log(
        f"  {item.name}: {lost}. This run is over here; what it had begun is finished by the next one. Run it again "
        "as soon as the host answers."
    )
    line.hang_up()


class _Line:
    """A command on the host whose standard input we hold."""

    def __init__(self, item, command: str):
        self.client = item.connector.client
        transport = self.client.get_transport()
        if transport is None:
            raise SSHException("the connection was lost")
        self.channel = transport.open_session()
        self.channel.settimeout(ANSWER_SECONDS)
        self.channel.exec_command(connections.for_any_shell(command))
        self.output = self.channel.makefile("r")

    def send(self, line: str) -> None:
        self.channel.sendall(f"{line}\n".encode())

    def read(self) -> list[str]:
        """What it says, up to its end or to "locked"."""
        lines = []
        for line in self.output:
            # A login's own words (a .bashrc that greets) may come first.
            lines.append(line.rstrip("\n"))
            if lines[-1] == "locked":
                break
        return lines

    def complaints(self) -> str:
        """What it said besides, when it has ended: sudo's words, say."""
        return self.channel.makefile_stderr("r").read().strip()

    def has_ended(self, seconds: float) -> bool:
        """Wait for its end, for so long."""
        return self.channel.status_event.wait(seconds)

    @property
    def is_dead(self) -> bool:
        transport = self.client.get_transport()
        return transport is None or not transport.is_active()

    def dies(self) -> bool:
        """Whether the connection is lost with it: its sessions are seen to end before, and a host that goes down ends its
        processes first."""
        transport = self.client.get_transport()
        if transport is not None:
            transport.join(1)
        return self.is_dead

    def close(self, seconds: float = 10) -> None:
        """Give the lock free, and wait for so long until it is."""
        try:
            self.send("done")
            self.channel.shutdown_write()
            self.has_ended(seconds)
        except (SSHException, OSError, EOFError):
            pass  # it is gone, and with it the lock

    def hang_up(self) -> None:
        self.client.close()


class _LocalLine(_Line):
    """The same on this machine, for @local."""

    def __init__(self, item, command: str):
        self.process = Popen(command, shell=True, stdin=PIPE, stdout=PIPE, text=True)
        self.output = self.process.stdout

    def send(self, line: str) -> None:
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def has_ended(self, seconds: float) -> bool:
        try:
            self.process.wait(seconds)
        except TimeoutExpired:
            return False
        return True

    def close(self, seconds: float = 10) -> None:
        self.send("done")
        self.process.stdin.close()
        self.has_ended(10)

    def complaints(self) -> str:
        """They are on the terminal already."""
        return ""

    is_dead = False

    def dies(self) -> bool:
        """There is no connection."""
        return False

    def hang_up(self) -> None:
        """There is no connection."""


def _open(item, script: str, line: str) -> _Line:
    """Start a script on a host with the run's own sudo, and send it a line."""
    is_local = isinstance(item.connector, LocalConnector)
    arguments, _ = pop_global_arguments(state, item, {})
    arguments = {key: value for key, value in arguments.items() if key in CONNECTOR_ARGUMENT_KEYS}
    extract_control_arguments(arguments)
    script = StringCommand("bash", "-c", shlex.quote(script), "hold", "local" if is_local else "ssh")
    command = make_unix_command_for_host(state, item, script, **arguments).get_raw_value()
    opened = (_LocalLine if is_local else _Line)(item, command)
    opened.send(line)
    return opened
