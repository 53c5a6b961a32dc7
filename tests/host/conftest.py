"""What a host of a group must look like: read-only, safe on production, for any inventory.

    pytest tests/host --inventory inventories/prod.py

A test that takes `mongodb` runs on every host of the group mongodb, and so for each role. What it
expects comes from the same settings and topology as the deploy; what it asks is the effective state.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

import pytest
import testinfra

from facts.machine import Machine
from groundwork import context
from groundwork.logins import openssh_config
from groundwork.roles import ORDER
from groundwork.secrets import SecretStore
from groundwork.settings import HostSettings
from groundwork.topology import Here, Topology

import lab.settings
from tests.host.site import site  # noqa: F401  (a fixture)

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = ROOT / "tests" / "host" / "outside.py"

KNOCK = """
import json, socket, sys
from concurrent.futures import ThreadPoolExecutor

def answers(target):
    try:
        socket.create_connection(target, 3).close()
        return True
    except OSError:
        return False

targets = [tuple(target) for target in json.loads(sys.argv[1])]
with ThreadPoolExecutor(len(targets)) as pool:
    print(json.dumps([target for target, open in zip(targets, pool.map(answers, targets)) if open]))
"""


def pytest_addoption(parser):
    parser.addoption("--inventory", help="the pyinfra inventory whose hosts are verified")
    parser.addoption(
        "--outside",
        help="where to knock from, as ssh knows it; a lab inventory gets a lab host, others the controller",
    )


def pytest_configure(config):
    inventory = config.getoption("--inventory", None)
    if inventory and not Path(inventory).is_file():
        raise pytest.UsageError(f"--inventory {inventory}: there is no such file")


def pytest_generate_tests(metafunc):
    """Run a test that takes a role's name on every host of that role."""
    inventory = metafunc.config.getoption("--inventory")
    for role in ORDER:
        if role in metafunc.fixturenames:
            names = [here.name for here in load(inventory).with_role(role)] if inventory else []
            why = f"no host has the role {role}" if inventory else "needs --inventory: tests/host looks at real hosts"
            values = names or [pytest.param(None, id="none", marks=pytest.mark.skip(reason=why))]
            metafunc.parametrize(role, values, indirect=True, scope="session")


_loaded: dict[str, Topology] = {}


def load(inventory: str) -> Topology:
    """The topology of an inventory file."""
    if inventory not in _loaded:
        os.chdir(ROOT)
        _loaded[inventory] = context.load(inventory)
    return _loaded[inventory]


@dataclass
class Host:
    """A host of the inventory: what it should be (`here`), what it is (`run`, by testinfra)."""

    here: Here
    secrets: SecretStore
    ssh_config: Path

    @property
    def name(self) -> str:
        return self.here.name

    @property
    def settings(self):
        """Settings of a role: `host.settings("redis").port`."""
        return lambda role: self.here.settings(self.here.topology.roles[role])

    @property
    def is_lab(self) -> bool:
        return self.here.settings(HostSettings).lab_suite is not None

    def run(self, command: str, stdin: str = "", sudo: bool = True) -> subprocess.CompletedProcess:
        """Run a command; what must not be seen in a process list goes to its standard input."""
        if not stdin:
            config = {"ssh_config": str(self.ssh_config), "sudo": sudo}
            done = testinfra.get_host(f"ssh://{self.name}", **config).run(command)
            return subprocess.CompletedProcess(done.command, done.rc, done.stdout, done.stderr)
        # testinfra has no standard input.
        remote = f"sudo -n sh -c {shlex.quote(command)}" if sudo else command
        return subprocess.run(
            ["ssh", "-F", str(self.ssh_config), self.name, remote],
            input=stdin, capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    def check(self, command: str, stdin: str = "") -> str:
        """Standard output of a command that must succeed."""
        done = self.run(command, stdin)
        assert done.returncode == 0, f"{self.name}: {command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def listening(self) -> list[int]:
        """TCP ports on which anything listens, on whichever address."""
        found = self.check("ss -Hltn | awk '{print $4}'").split()
        return sorted({int(item.rsplit(":", 1)[1]) for item in found})

    def reaches(self, targets: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """Those (address, port) that take a connection from this host."""
        return _reached(self.check(f"python3 - {shlex.quote(json.dumps(targets))}", stdin=KNOCK))

    def addresses(self) -> list[str]:
        """Where anybody could try to reach it: the private address, and IPv6."""
        ipv6 = self.check("ip -6 -o addr show scope global | awk '{print $4}' | cut -d/ -f1").split()
        return list(dict.fromkeys([self.here.private_address, *ipv6]))

    @contextmanager
    def tunnel(self, port: int, address: str = "127.0.0.1") -> Iterator[int]:
        """A port on this machine's loopback that leads to one of the host's."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            local = free.getsockname()[1]
        forward = f"127.0.0.1:{local}:{address}:{port}"
        process = subprocess.Popen(
            ["ssh", "-F", str(self.ssh_config), "-o", "ExitOnForwardFailure=yes", "-S", "none", "-N", "-L", forward, self.name],
            stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            for _ in range(100):
                if process.poll() is not None:
                    raise AssertionError(f"no tunnel to {self.name}: {process.stderr.read().decode()}")
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", local)) == 0:
                        break
                time.sleep(0.1)
            yield local
        finally:
            process.terminate()
            process.wait()


@pytest.fixture(scope="session")
def topology(request) -> Topology:
    return load(request.config.getoption("--inventory"))


@pytest.fixture(scope="session")
def secrets(request, topology) -> SecretStore:
    return SecretStore.for_inventory(request.config.getoption("--inventory"), lab=topology.is_lab)


@pytest.fixture(scope="session")
def ssh_config(topology, tmp_path_factory) -> Path:
    """The inventory's connections, as OpenSSH reads them."""
    directory = tmp_path_factory.mktemp("ssh")
    path = directory / "config"
    control = ["BatchMode yes", "ControlMaster auto", f"ControlPath {directory}/%C", "ControlPersist 60"]
    path.write_text(openssh_config(topology.hosts.values(), control))
    return path


@pytest.fixture(scope="session")
def hosts(topology, secrets, ssh_config) -> dict[str, Host]:
    """Every host of the inventory, by name."""
    return {name: Host(here, secrets, ssh_config) for name, here in topology.hosts.items()}


def unasked(here: Here, said: str) -> str:
    """Why a host can't be asked what it is, the first thing that all its tests need.

    Args:
        said: by ssh or sudo, on standard error.
    """
    user = here.data.get("ssh_user") or "the ssh_user"
    if "password is required" in said or "authentication is required" in said:
        return (
            f"{here.name}: sudo asks {user} for a password, and tests/host has none: set ssh_user (and ssh_key) to one of "
            "base_administrators, whom sudo asks for none once the host is deployed"
        )
    return f"{here.name}: can't be asked what it is, with sudo, as {user}: {' '.join(said.strip().splitlines()[-1:])}"


def _fixture(role: str):
    @pytest.fixture(scope="session", name=role)
    def of_role(request, hosts) -> Host:
        host = hosts[request.param]
        if host.here.machine is None:
            fact = Machine()
            try:
                done = host.run(fact.command())
            except RuntimeError as error:  # testinfra's, of an ssh that does not get there
                pytest.exit(unasked(host.here, error.args[0].stderr), returncode=1)
            if done.returncode:
                pytest.exit(unasked(host.here, done.stderr), returncode=1)
            host.here.machine = fact.process(done.stdout.splitlines())
        return host

    return of_role


for _role in ORDER:
    globals()[f"host_of_{_role}"] = _fixture(_role)


@dataclass
class Outside:
    """A machine that has no business with the hosts: what it can reach, everybody can."""

    command: list[str]
    address: str

    def run(self, script: str, *arguments: str) -> str:
        """Standard output of a Python script run there."""
        done = subprocess.run(
            [*self.command, shlex.join(["python3", "-", *arguments])],
            input=script, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def reaches(self, targets: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """Those (address, port) that take a connection from there."""
        return _reached(self.run(KNOCK, json.dumps(targets)))


def _reached(printed: str) -> list[tuple[str, int]]:
    return [tuple(target) for target in json.loads(printed)]


_booted: dict[str, Outside] = {}


@pytest.fixture
def outside(request, topology) -> Outside:
    """Another host to knock from; of the lab's hosts, one of the same network: into an office nobody comes from elsewhere."""
    given = request.config.getoption("--outside")
    if given:
        return Outside(["ssh", "-o", "BatchMode=yes", given], given)
    if not topology.is_lab:
        return Outside(["sh", "-c"], "the controller")
    asked = next(topology.hosts[value] for name, value in request.node.callspec.params.items() if name in ORDER)
    prefix = lab.settings.prefix(asked.private_address)
    if prefix not in _booted:
        name = {lab.settings.PREFIX: "outside", lab.settings.OFFICE_PREFIX: "outside-office"}[prefix]
        up = [sys.executable, "-m", "lab", "up", str(OUTSIDE), name]
        if subprocess.run(up, cwd=ROOT).returncode:  # one of another suite is there
            subprocess.run([*up, "--fresh"], check=True, cwd=ROOT)
        _booted[prefix] = Outside([sys.executable, "-m", "lab", "ssh", name], f"{prefix}.250")
    return _booted[prefix]
