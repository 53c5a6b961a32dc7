"""`fab tunnel`: a port of this machine's loopback that leads to a service on a host, by ssh."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Callable

from groundwork.logins import openssh_config
from groundwork.errors import Refusal
from groundwork.people import host_of
from groundwork.settings import bracketed
from groundwork.topology import Here, Topology

RETRY_SECONDS = (1, 2, 5, 10, 30)
"""Waits before each new try to connect; the last one for all that follow."""
OPTIONS = (
    "ExitOnForwardFailure yes",
    "ConnectTimeout 10",
    # A dead connection is noticed within 15 s.
    "ServerAliveInterval 5",
    "ServerAliveCountMax 3",
    "ControlMaster no",
    "ControlPath none",
    "PermitLocalCommand yes",
    "LocalCommand echo connected",
)


def place(topology: Topology, role: str, host: str | None) -> Here:
    """The host to lead to. Raises Refusal where no role is named, or none has it."""
    if not role:
        raise Refusal(f"which role? fab tunnel ROLE, one of {', '.join(filter(lambda name: _has_port(topology, name), topology.roles))}")
    return host_of(topology, role, host)


def _has_port(topology: Topology, role: str) -> bool:
    try:
        return bool([target(here, role) for here in topology.with_role(role)])
    except Refusal:
        return False


def target(here: Here, role: str) -> tuple[str, int]:
    """Where a role listens on its host, as seen from there: address and port.

    Raises:
        Refusal: for a role that listens on no TCP port of its own.
    """
    settings = here.settings(here.topology.roles[role])
    port = getattr(settings, "port", None)
    addresses = _addresses(settings, here, port)
    if port is None or not addresses:
        raise Refusal(f"{role}: listens on no TCP port of {here.name}, so there is nothing to lead to")
    known = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    found = [known.get(address, address) for address in addresses]
    return ("127.0.0.1" if "127.0.0.1" in found else found[0]), port


def _addresses(settings: Any, here: Here, port: int | None) -> list[str]:
    if hasattr(settings, "binds"):  # "unix:…" or ADDRESS:PORT
        ends = [bind.rpartition(":") for bind in settings.binds(here)]
        return [address.strip("[]") for address, _, end in ends if end == str(port)]
    if hasattr(settings, "listens_on"):
        listens = settings.listens_on(here)
        return [listens] if isinstance(listens, str) else listens
    return []


def holder(port: int) -> str | None:
    """The program that listens on a port of this machine's loopback; None where nobody does."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            return None
        except PermissionError:
            raise Refusal(f"port {port} on this machine is for root alone: --port {max(port, 1024) + 10000}") from None
        except OSError:
            pass
    return _program(port) or "another program"


def _program(port: int) -> str | None:
    """Its name, where this user may know it."""
    if shutil.which("ss"):
        said = _output("ss", "-Hltnp", f"sport = :{port}")
        found = re.search(r'\("([^"]+)",pid=(\d+)', said)
    else:
        said = _output("lsof", "-nP", f"-iTCP:{port}", "-sTCP:LISTEN", "-Fcp") if shutil.which("lsof") else ""
        found = re.search(r"c(.+)\n", said) and re.search(r"p(\d+)\nc(.+)", said)
        return f"{found[2]} (process {found[1]})" if found else None
    return f"{found[1]} (process {found[2]})" if found else None


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def free_port(port: int) -> int:
    """The next port that nobody has."""
    return next(other for other in range(port + 1, 65536) if holder(other) is None)


class Tunnel:
    """An ssh that leads a local port to a service, made again when it is lost.

    Args:
        here: the service's host.
        role: the service.
        local: port on this machine's loopback; by default the service's.
        tell: called with each sentence for the person.
    Raises:
        Refusal: for a port that is taken.
    """

    def __init__(self, here: Here, role: str, local: int | None, tell: Callable[[str], None]):
        self.here, self.role, self.tell = here, role, tell
        self.address, self.remote = target(here, role)
        self.local = local or self.remote
        self.ended = False
        self.process: subprocess.Popen | None = None
        self._said: list[str] = []
        if taken := holder(self.local):
            other = ", perhaps another fab tunnel" if taken.startswith("ssh ") else ""
            raise Refusal(f"port {self.local} on this machine is taken by {taken}{other}: --port {free_port(self.local)} is free")

    def run(self) -> None:
        """Stay until a signal asks it to end. Raises Refusal where the first connection fails."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._end)
        with tempfile.TemporaryDirectory() as directory:
            config = Path(directory) / "ssh_config"
            config.write_text(openssh_config(self.here.topology.hosts.values(), OPTIONS))
            self._stay(["ssh", "-F", str(config), "-T", "-N", "-L", self._forward(), self.here.name])

    def _stay(self, command: list[str]) -> None:
        failures, ever = 0, False
        while not self.ended:
            connected = self._connect(command, first=not ever)
            if self.ended:
                break
            said = self._said[-1] if self._said else "ssh ended without a word"
            if not (connected or ever):
                raise Refusal(f"no tunnel to {self.here.name}: {said}")
            ever = True
            failures = 0 if connected else failures + 1
            wait = RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)]
            self.tell(f"{'the connection was lost' if connected else 'still no connection'} ({said}): trying again in {wait} s")
            self._sleep(wait)
        self.tell("the tunnel is closed")

    def _connect(self, command: list[str], first: bool) -> bool:
        """One connection, from its beginning to its end. Returns whether it ever stood."""
        self._said = []
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
        listener = threading.Thread(target=self._listen, args=(self.process.stderr,), daemon=True)
        listener.start()
        connected = self.process.stdout.readline().strip() == "connected"
        if connected:
            self.tell(f"{self.role} of {self.here.name} is at 127.0.0.1:{self.local}, until Ctrl-C")
            if first:
                self.tell(f"in another terminal: {hint(self.here, self.role, self.local)}")
            self._knock()
        self.process.wait()
        listener.join(1)
        return connected

    def _listen(self, lines) -> None:
        """What ssh says; that the service does not answer, in words."""
        for line in map(str.strip, lines):
            if "open failed" in line:
                self.tell(
                    f"{self.role} does not answer on {self.address}:{self.remote} of {self.here.name} ({line.rpartition('open failed: ')[2]}): "
                    "does it run there?"
                )
            elif line and not line.startswith("**"):  # warnings of the key exchange
                self._said.append(line.rstrip("."))

    def _knock(self) -> None:
        """Have ssh say now, and not at the first use, that nobody answers at the other end."""
        try:
            with socket.create_connection(("127.0.0.1", self.local), 1) as probe:
                probe.settimeout(1)
                probe.recv(1)
        except OSError:  # silence, as of a service that waits to be asked
            pass

    def _forward(self) -> str:
        return f"127.0.0.1:{self.local}:{bracketed(self.address)}:{self.remote}"

    def _end(self, number: int, frame: Any) -> None:
        self.ended = True
        if self.process is not None:
            self.process.terminate()

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.ended and time.monotonic() < end:
            time.sleep(0.1)


def hint(here: Here, role: str, local: int) -> str:
    """What to type, through the tunnel; no password is in it."""
    if role == "redis":
        return f"redis-cli -p {local} --user NAME --askpass"
    settings = here.settings(here.topology.roles[role])
    if role != "mongodb":
        return f"curl http://127.0.0.1:{local}{getattr(settings, 'health_path', None) or '/'}"
    users = settings.present
    where = f"{users[0].name}@127.0.0.1:{local}/{users[0].database}" if users else f"admin@127.0.0.1:{local}/admin"
    tls = "?tls=true&tlsAllowInvalidHostnames=true" if settings.tls != "off" else ""
    authority = f" --tlsCAFile {settings.tls_authority}" if tls and settings.tls_authority else ""
    return f'mongosh "mongodb://{where}{tls}"{authority}'
