"""How hosts are reached: what goes wrong there in words and in a bounded time.

Called from config.py, before pyinfra connects: an inventory's connection settings are pyinfra's own.
"""

from __future__ import annotations

import atexit
import errno
import logging
import os
import re
import select
import shlex
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterable

import click
import gevent
import paramiko
from gevent.event import Event
from paramiko.auth_handler import AuthHandler
from paramiko.ssh_exception import NoValidConnectionsError
from pyinfra import state
from pyinfra.api.exceptions import ConnectError, PyinfraError
from pyinfra.api.host import Host
from pyinfra.api.state import State, StateStage
from pyinfra.connectors import ssh, ssh_util, util
from pyinfra.connectors.sshuserclient import client, config
from pyinfra.context import ctx_state
from pyinfra_cli import cli

from groundwork import late

PATIENCE_SECONDS = 5
"""How long a host is left waiting for a login, while a source is fetched, say: sshd gives up after LoginGraceTime (120, ours 30)."""

KEEPALIVE = 5
"""Seconds after which a silent connection is asked for a sign of life."""


meanwhile: list[Callable[[], object]] = []
"""What is to be done before any host is logged in to, in steps: while the hosts let one wait. An error ends the run."""

_ready = Event()
"""It is done: hosts are logged in to, and what is wrong with a connection is told."""
_ready.set()

when_hosts_fail: list[Callable[[Iterable[Host]], None]] = []
"""Called with the hosts that have failed, before they end the run."""


class HostKeyError(paramiko.SSHException):
    """A host key that is not known, or not the known one.

    Args:
        key: the key that the host has.
        known: the key that it should have, None where there is none.
    """

    def __init__(self, key: paramiko.PKey, known: paramiko.PKey | None = None):
        super().__init__("host key")
        self.key = key
        self.known = known


class WaitedLong(paramiko.SSHException):
    """The login has waited for so long that it is better begun anew."""


class Unreached(ConnectError):
    """A connection that failed, in words.

    Args:
        message: for people.
        refused: the host answered, and to try again changes nothing: the user, the key or the host's own key.
    """

    def __init__(self, message: str, refused: bool):
        super().__init__(message)
        self.refused = refused


class SudoPasswordWanted(PyinfraError):
    """sudo asks for a password, and there is nobody to ask."""


@dataclass(frozen=True)
class Target:
    """What is connected to, and by which settings."""

    address: str
    port: int = 22
    user: str = ""
    key: str | None = None
    known_hosts: str = "~/.ssh/known_hosts"
    jump: bool = False
    """On the way to the host, by a ProxyJump of ssh_config_file."""
    moved: bool = False
    """sshd may not have moved to this port yet: ssh_port and base_ssh_port have it."""
    lab: bool = False
    """It is a lab's host."""

    @property
    def entry(self) -> str:
        """Its name in known_hosts."""
        return self.address if self.port == 22 else f"[{self.address}]:{self.port}"

    @property
    def where(self) -> str:
        return f"{self.address} port {self.port}"

    @property
    def up(self) -> str:
        """The question for a host that is silent."""
        return "is the host up" + (" (python -m lab up INVENTORY)" if self.lab else "")

    def setting(self, name: str, word: str) -> str:
        """What to edit: a key of the inventory, or a word of the jump host's stanza."""
        return f"{word} in ssh_config_file" if self.jump else name


# Words


def explain(error: BaseException, target: Target) -> str:
    """What a failed connection means and what to do, in one sentence or two."""
    on_the_way = f"jump host {target.address}: " if target.jump else ""
    said = _explain(error, target)
    if target.moved and isinstance(error, OSError) and not isinstance(error, socket.gaierror):
        said += " If its sshd listens on port 22 still, the run that moves it is given --data ssh_port=22"
    return on_the_way + said


def _explain(error: BaseException, target: Target) -> str:
    if isinstance(error, HostKeyError):
        return _unknown_key(error, target) if error.known is None else _changed_key(error, target)
    if isinstance(error, paramiko.AuthenticationException):
        return _refused(error, target)
    if isinstance(error, socket.gaierror):
        name = target.setting("ssh_hostname", "HostName")
        return f"{name} = {target.address!r}: there is no host of that name (a typing error? DNS?)"
    if isinstance(error, paramiko.ProxyCommandFailure):
        return f"{target.where}: the ProxyCommand of ssh_config_file ended ({error.error or 'without a word'}): {error.command}"
    if isinstance(error, (EOFError, paramiko.SSHException)) and not isinstance(error, OSError):
        return (
            f"{target.where} answers, but not as sshd does ({_said(error)}): is that sshd's port "
            f"({target.setting('ssh_port', 'Port')})? Does the host refuse new logins for a while (fail2ban, MaxStartups)?"
        )
    if isinstance(error, (TimeoutError, socket.timeout)):
        return (
            f"no answer from {target.where}: {target.up}, is {target.setting('ssh_hostname', 'HostName')} right, and do "
            "its firewall and its security group let this machine in?"
        )
    if isinstance(error, NoValidConnectionsError):
        return _explain(next(iter(error.errors.values())), target)
    if isinstance(error, ConnectionRefusedError):
        name = target.setting("ssh_port", "Port")
        return f"nothing listens at {target.where}: is sshd on another port ({name}), or does the host still boot?"
    if getattr(error, "errno", None) in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        name = target.setting("ssh_hostname", "HostName")
        return f"there is no way to {target.where}: {target.up}, is {name} right, is a VPN or a jump host needed?"
    return f"{target.where}: {_said(error)}"


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _refused(error: BaseException, target: Target) -> str:
    settings = f"{target.setting('ssh_user', 'User')}, {target.setting('ssh_key', 'IdentityFile')}"
    key = f"the key {target.key}" if target.key else "the keys of the ssh agent and ~/.ssh"
    copy = f"ssh-copy-id {f'-i {target.key} ' if target.key else ''}-p {target.port} {target.user or 'USER'}@{target.address}"
    return (
        f"{target.where} refuses user {target.user or '(yours)'} with {key} ({settings}): set the user that the host knows "
        f"(ubuntu, admin, …) and its key, or put the key there: {copy}"
    )


def _unknown_key(error: HostKeyError, target: Target) -> str:
    port = f"-p {target.port} " if target.port != 22 else ""
    kind = error.key.get_name()
    return (
        f"its host key is not known: {kind} {error.key.fingerprint} is not in {target.known_hosts}. Compare the "
        f"fingerprint with the host's own (on its console: ssh-keygen -lf /etc/ssh/ssh_host_{_file(kind)}_key.pub; EC2: "
        f"aws ec2 get-console-output), then: ssh-keyscan {port}-t {_file(kind)} {target.address} >>{target.known_hosts}"
    )


def _changed_key(error: HostKeyError, target: Target) -> str:
    place = _recorded(target)
    return (
        f"its host key has changed: it is {error.key.get_name()} {error.key.fingerprint} now, {place} has "
        f"{error.known.fingerprint}. Somebody may stand between you and the host, or it was made anew, or the address is "
        f"another host's now. If you know why: ssh-keygen -f {target.known_hosts} -R {shlex.quote(target.entry)}, then "
        "compare the new key's fingerprint"
    )


def _recorded(target: Target) -> str:
    """`file:line` of a host's key; ssh-keygen finds hashed names, too."""
    found = subprocess.run(
        ["ssh-keygen", "-F", target.entry, "-f", target.known_hosts], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )  # fmt: skip
    lines = [line.split()[-1] for line in found.stdout.splitlines() if line.startswith("# Host ")]
    return f"{target.known_hosts}:{','.join(lines)}" if lines else target.known_hosts


def _file(kind: str) -> str:
    """The word in a host key file's name: ed25519 of ssh-ed25519."""
    return "rsa" if "rsa" in kind else "ecdsa" if kind.startswith("ecdsa") else "ed25519"


# pyinfra's connector


class StrictPolicy(paramiko.MissingHostKeyPolicy):
    """A key that is not known ends the connection. A jump host's too, where pyinfra would ask."""

    def missing_host_key(self, client, hostname, key):
        raise HostKeyError(key)


class AcceptNewPolicy(client.AcceptNewPolicy):
    """Takes a key down, and says so, when the inventory is checked."""

    def missing_host_key(self, *arguments):
        _ready.wait()
        super().missing_host_key(*arguments)


class WarningPolicy(paramiko.WarningPolicy):
    """The same for a key that is not taken down."""

    def missing_host_key(self, *arguments):
        _ready.wait()
        super().missing_host_key(*arguments)


class SSHConfig(config.SSHConfig):
    """Knows `ProxyJump none`; and that a jump host, which a `Host *` covers too, needs none to itself."""

    def lookup(self, hostname):
        found = super().lookup(hostname)
        hops = [hop.rsplit("@", 1)[-1].rsplit(":", 1)[0] for hop in found.get("proxyjump", "none").split(",")]
        if hops[0].lower() == "none" or hostname in hops:
            found.pop("proxyjump", None)
        return found


class ProxyCommand(paramiko.ProxyCommand):
    """Ends with its command, and says why; paramiko's own reads on for ever, and holds up all other hosts."""

    def __init__(self, command_line: str):
        _ready.wait()  # it may log in somewhere
        try:
            super().__init__(command_line)
        except OSError as error:
            raise paramiko.ProxyCommandFailure(command_line, f"{error.strerror}: {error.filename}") from None

    def recv(self, size):
        if not select.select([self.process.stdout], [], [], self.timeout)[0]:
            raise socket.timeout()
        received = os.read(self.process.stdout.fileno(), size)
        if not received:
            raise self._ended()
        return received

    def send(self, content):
        try:
            return super().send(content)
        except paramiko.ProxyCommandFailure:
            raise self._ended() from None

    def _ended(self) -> paramiko.ProxyCommandFailure:
        """With what the command said last on standard error; what it started may hold that open."""
        ready = select.select([self.process.stderr], [], [], 1)[0]
        said = os.read(self.process.stderr.fileno(), 65536) if ready else b""
        return paramiko.ProxyCommandFailure(shlex.join(self.cmd), " ".join(said.decode(errors="replace").split("\n")[-3:]).strip())

    def close(self):
        with suppress(ProcessLookupError):
            super().close()


class Client(client.SSHClient):
    """Notes on an error which host it is about: the target, or one on the way."""

    def connect(self, hostname, **kwargs):
        try:
            super().connect(hostname, **kwargs)
        except (paramiko.SSHException, OSError, EOFError) as error:
            if isinstance(error, paramiko.BadHostKeyException):
                error = HostKeyError(error.key, error.expected_key)
            if not hasattr(error, "target"):
                error.target = self._target(hostname, kwargs)
            raise error

    def _auth(self, *arguments):
        begin = time.monotonic()
        _ready.wait()
        if time.monotonic() - begin > PATIENCE_SECONDS:
            raise WaitedLong("the host may have given us up")
        return super()._auth(*arguments)

    def exec_command(self, command, *arguments, **more):
        return _told(super().exec_command)(for_any_shell(command), *arguments, **more)

    def _target(self, hostname: str, given: dict) -> Target:
        # These are set only once the way is known.
        used = getattr(self, "_ssh_config", {})
        stanza = client.get_ssh_config(given.get("_pyinfra_ssh_config_file"))
        stanza = stanza.lookup(hostname) if stanza else {}
        known = given.get("_pyinfra_ssh_known_hosts_file") or self._host_keys_filename or "~/.ssh/known_hosts"
        return Target(
            address=stanza.get("hostname", hostname),
            port=int(used.get("port") or given.get("port") or stanza.get("port") or 22),
            user=used.get("username") or given.get("username") or stanza.get("user") or "",
            known_hosts=str(Path(known).expanduser()),
        )


def _request_auth(handler: AuthHandler) -> None:
    """AuthHandler's, which asks for the service of logging in, and for the login itself when that was granted.

    Here it asks for both at once, as Dropbear's client does: a server reads one after the other, and it is one round trip less.
    """
    _paramikos_request_auth(handler)
    if handler.auth_method not in ("publickey", "password"):  # others talk to and fro
        return
    granted = paramiko.Message()
    granted.add_string("ssh-userauth")
    granted.rewind()
    # First: the server's own may come while an agent signs.
    ask, handler._parse_service_accept = handler._parse_service_accept, lambda message: None
    ask(granted)


_paramikos_request_auth = AuthHandler._request_auth


def for_any_shell(command: str) -> str:
    """A command line that the login shell reads as sh does.

    In single quotes fish takes a backslash for its own where another one or a quote follows (fish-doc, "Quotes");
    in double quotes all shells agree about two of them.
    """
    if not re.search(r"\\['\\]", command):
        return command
    quoted = command.replace("'", "'\"'\"'").replace("\\", "'\"\\\\\"'")
    return f"sh -c '{quoted}'"


def _connect(connector: ssh.SSHConnector) -> None:
    """SSHConnector.connect, whose errors are for people."""
    try:
        _pyinfras_connect(connector)
    except Exception as error:
        _ready.wait()
        if isinstance(error.__context__, WaitedLong):
            return _connect(connector)
        if not isinstance(error, PyinfraError):
            raise
        cause = error.__context__
        target = getattr(cause, "target", None)
        if target is None:
            raise ConnectError(_key_file(str(error), connector.data["ssh_key"])) from None
        own = connector.data["ssh_hostname"] or connector.host.name
        stanza = client.get_ssh_config(connector.data["ssh_config_file"])
        jump = target.address not in (own, stanza.lookup(own).get("hostname") if stanza else own)
        key = None if jump else connector.data["ssh_key"]
        data = connector.host.data
        moved = not jump and target.port != 22 and data.get("ssh_port") == data.get("base_ssh_port") == target.port
        known = Target(target.address, target.port, target.user, key, target.known_hosts, jump, moved, lab=bool(data.get("lab_suite")) and not jump)
        raise Unreached(explain(cause, known), isinstance(cause, (paramiko.AuthenticationException, HostKeyError))) from None


def _key_file(said: str, key: str | None) -> str:
    """pyinfra's own sentence about the private key's file, with the setting's name."""
    return f"ssh_key = {key!r}: {said}" if key else said


_pyinfras_connect = ssh.SSHConnector.connect


def _connect_all(run: State) -> None:
    """connect_all, in its place: a connection is one round trip after the other, and what is to be done meanwhile takes as long."""
    _ready.clear()
    connecting = gevent.spawn(_pyinfras_connect_all, run)
    for step in meanwhile:
        gevent.idle()  # what has come from a host is answered first
        step()
    _ready.set()
    for module in late.ALL if meanwhile else ():
        gevent.idle()
        module.read()
    connecting.get()


def _host_connect(host: Host, *arguments, **more) -> None:
    """Host.connect: where there is no login that waits, the connection does."""
    if not isinstance(host.connector, ssh.SSHConnector):
        _ready.wait()
    _pyinfras_host_connect(host, *arguments, **more)


_pyinfras_connect_all, _pyinfras_host_connect = cli.connect_all, Host.connect


def _passphrase(prompt: str) -> str:
    _ready.wait()
    if prompt in _given:  # for another host with the same key
        return _given[prompt]
    if not sys.stdin or not sys.stdin.isatty():
        raise PyinfraError(
            "the key has a passphrase, and there is no terminal to ask for it: load it into an agent "
            "(ssh-add), and leave ssh_key out"
        )
    _given[prompt] = _getpass(prompt)
    return _given[prompt]


_given: dict[str, str] = {}
_getpass = ssh_util.getpass


def _no_sudo_prompt(prompt: str) -> str:
    raise SudoPasswordWanted("sudo asks for a password: set sudo_password")


def set_up() -> None:
    """Make pyinfra's connections speak clearly, never ask in the middle of a run, and never go on alone.

    pyinfra has no hook for these (its callbacks are reset before it connects), so names of its
    modules are replaced; its version is pinned.
    """
    ssh.SSHClient = client.SSHClient = Client
    client.StrictPolicy = client.AskPolicy = StrictPolicy
    client.AcceptNewPolicy, client.WarningPolicy = AcceptNewPolicy, WarningPolicy
    client.SSHConfig = SSHConfig
    client.ProxyCommand = ProxyCommand
    AuthHandler._request_auth = _request_auth
    cli.connect_all, Host.connect = _connect_all, _host_connect
    ssh.SSHConnector.connect = _connect
    ssh_util.getpass = _passphrase
    util.getpass = _no_sudo_prompt
    # Its thread's own tracebacks would go to the terminal; --debug-all still shows them.
    logging.getLogger("paramiko").addHandler(logging.NullHandler())
    # Errors that end the run cross a greenlet, whose traceback would be printed before their words.
    gevent.get_hub().NOT_ERROR += (PyinfraError,)
    # "Continue?" needs a terminal; --fail-percent says it beforehand.
    cli._set_fail_prompts = lambda state, config: None
    state.should_raise_failed_hosts = _stop
    # After all that pyinfra says, whichever way a run ends.
    atexit.register(_last_words)


def _stop(run: State) -> bool:
    """Called when more hosts have failed than --fail-percent allows."""
    for tell in when_hosts_fail:
        tell(run.failed_hosts)
    return True


def _last_words() -> None:
    """Which hosts have failed, and where; pyinfra ends with "No hosts remaining!", or with a table of numbers."""
    if ctx_state.isset() and state.initialised and state.failed_hosts:
        click.echo(f"--> {_failed(ctx_state.get())}", err=True)


def _failed(run: State) -> str:
    count = sum(run.is_host_in_limit(host) for host in run.inventory)
    failed = sorted(run.failed_hosts, key=lambda host: host.name)
    if run.current_stage == StateStage.Connect:
        return _unreached([host.name for host in failed], count)
    names: dict[str, list[str]] = {}
    for host in failed:
        names.setdefault(_failed_at(run, host), []).append(host.name)
    where = "; ".join(f"{', '.join(hosts)} {place}" for place, hosts in names.items())
    if run.current_stage == StateStage.Disconnect:
        others = "The other hosts are done"
    elif run.current_stage == StateStage.Execute:
        others = "Nothing more was done on any host; what was begun is finished by the next run"
    else:
        others = "Nothing was changed on any host"
    return f"{len(failed)} of {count} hosts failed: {where} (why is said above). {others}"


def _failed_at(run: State, host: Host) -> str:
    if host not in run.activated_hosts:
        return "can't be reached"
    if run.current_stage < StateStage.Execute:
        return "before anything was changed"
    # Cut off in the middle of an operation, a host has not completed it.
    for operation in run.get_op_order():
        done = run.ops[host].get(operation)
        if done and not done.operation_meta.did_succeed(_raise_if_not_complete=False):
            return f"at {', '.join(run.get_op_meta(operation).names)}"
    return "after its last operation"


def _unreached(names: list[str], count: int) -> str:
    percent = -(-len(names) * 100 // count)
    go_on = f". To go on without: --fail-percent {percent}" if len(names) < count else ""
    return f"{len(names)} of {count} hosts can't be reached: {', '.join(names)}. Nothing was changed on any host{go_on}"


# Dead connections


def bound(host: Host, seconds: int) -> None:
    """End a connection that the host does not answer on.

    Without it a run waits for the kernel to give up, which takes Linux a quarter of an hour where
    something was sent, and for ever where nothing was. A host that works at something for an hour
    answers all the while: it is the kernel there that does.

    Args:
        host: connected.
        seconds: without an answer.
    """
    if not isinstance(host.connector, ssh.SSHConnector) or host.connector.client is None:
        return
    transport = host.connector.client.get_transport()
    if transport is None:
        return
    transport.set_keepalive(KEEPALIVE)
    for part, name in ((transport.packetizer, "write_all"), (transport, "open_channel")):
        setattr(part, name, _told(getattr(part, name)))
    option = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux; elsewhere the kernel's own time counts
    end = socket_below(transport)
    if option is not None and end is not None:
        end.setsockopt(socket.IPPROTO_TCP, option, seconds * 1000)


def _told(function):
    """A dead connection is an EOFError in paramiko, which pyinfra takes for a defect of its own (a traceback,
    and the end of the run for all hosts)."""

    def told(*arguments, **more):
        try:
            return function(*arguments, **more)
        except EOFError:
            raise ConnectionResetError("the connection was lost") from None

    return told


def socket_below(transport):
    """The socket below a transport: behind jump hosts, the first one's; None for a ProxyCommand."""
    end = transport.sock
    while hasattr(end, "get_transport"):
        end = end.get_transport().sock
    return end if hasattr(end, "setsockopt") else None
