"""MongoDB with TLS and without, and what people's own jobs say of it: fab tunnel, env, check."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

import dotenv
import pymongo
import pytest
from tests.certificates import Authority
from tests.lab.conftest import ROOT, Lab

from groundwork.secrets import SecretStore

ADDRESS = "10.87.0.191"
CONTROLLER = "10.87.0.1"
FAB = Path(sys.executable).with_name("fab")

INVENTORY = """
from lab import lab_host
from tests.lab.stack import STACK

_stack = {{key: value for key, value in STACK.items() if key != "app_source"}}
_host = lab_host("tlsdb", "{address}", base_first_run_upgrade=False, **_stack, **{more!r})
mongodb = [_host]
"""


class World:
    """One host; an inventory without TLS, and one with it, whose allow-list has the controller alone."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.authority = Authority()
        (directory / "authority.pem").write_text(self.authority.pem)
        (directory / "other.pem").write_text(Authority().pem)
        flow = {"source": CONTROLLER, "role": "mongodb", "port": 27017}
        more = {"mongodb_tls": "provided", "mongodb_tls_authority": str(directory / "authority.pem"), "flows": [flow]}
        (directory / "on_lab.py").write_text(INVENTORY.format(address=ADDRESS, more=more))
        self.off = Lab.made(directory / "off_lab.py", INVENTORY.format(address=ADDRESS, more={}))
        self.on = Lab(str(directory / "on_lab.py"))

    def certificate(self, *names: str, days: int = 90) -> None:
        """The pair that the next run finds among its secrets."""
        certificate, key = self.authority.issue(*names, days=days)
        os.environ["GROUNDWORK_SECRET_MONGODB_TLS_CERTIFICATE"] = certificate
        os.environ["GROUNDWORK_SECRET_MONGODB_TLS_KEY"] = key

    def fab(self, *words: str, more: dict[str, str] | None = None) -> subprocess.CompletedProcess:
        environment = {key: value for key, value in os.environ.items() if key != "MONGO_URI"}
        return subprocess.run(
            [FAB, *words], cwd=ROOT, env={**environment, **(more or {})}, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
        )

    def env(self, stack: Lab, name: str, *words: str) -> str:
        """MONGO_URI, as fab env writes it."""
        path = self.directory / name
        done = self.fab("env", "--force", "--inventory", stack.inventory, "--file", str(path), *words)
        assert done.returncode == 0, done.stderr
        uri = dotenv.dotenv_values(path, interpolate=False)["MONGO_URI"]
        assert uri not in done.stdout + done.stderr and path.stat().st_mode & 0o777 == 0o600
        return uri

    def check(self, uri: str) -> str:
        """The last line of fab check: what is wrong, or how fast it is."""
        done = self.fab("check", more={"MONGO_URI": uri})
        last = " ".join(done.stdout.strip().splitlines()[-1].split())
        assert ("WRONG" in last) == (done.returncode == 1), done.stdout + done.stderr
        assert "Traceback" not in done.stderr and re.findall(r"lab-\w+", done.stdout + done.stderr) == []
        return last

    @contextmanager
    def tunnel(self, stack: Lab) -> Iterator[tuple[int, subprocess.Popen]]:
        """fab tunnel mongodb: its local port, and the process."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        process = subprocess.Popen(
            [FAB, "tunnel", "mongodb", "--port", str(port), "--inventory", stack.inventory],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            said = [process.stdout.readline(), process.stdout.readline()]
            assert f"mongodb of tlsdb is at 127.0.0.1:{port}" in said[0] and "mongosh" in said[1], said
            yield port, process
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A bare host, deployed without TLS."""
    found = World(tmp_path_factory.mktemp("tls"))
    before = dict(os.environ)
    found.off.deploy()
    yield found
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def secured(world):
    """The same host, with TLS."""
    world.certificate(ADDRESS)
    world.on.deploy()
    return world


def _pid(world: World) -> str:
    return world.off.ssh("tlsdb", "pidof mongod").stdout


def _end(world: World) -> str:
    return world.off.ssh("tlsdb", "echo | openssl s_client -connect 127.0.0.1:27017 2>/dev/null | openssl x509 -noout -enddate").stdout


# Without TLS, and without a flow


def test_who_is_not_in_the_list_meets_silence(world):
    uri = world.env(world.off, "direct.env")
    assert f"@{ADDRESS}:27017/" in uri and "tls" not in uri
    assert world.check(uri).startswith(f"firewall WRONG {ADDRESS} is silent on port 27017")
    for port in (27017, 27018, 28017):
        with socket.socket() as probe, pytest.raises(TimeoutError):
            probe.settimeout(1)
            probe.connect((ADDRESS, port))


def test_the_ways_that_end_before_it(world):
    uri = world.env(world.off, "direct.env")
    assert world.check(uri.replace(ADDRESS, "nowhere.invalid")).startswith("name WRONG nowhere.invalid ")
    assert world.check(uri.replace(ADDRESS, "10.87.0.192")).startswith("route WRONG no way to 10.87.0.192")
    refused = world.check(uri.replace(ADDRESS, "127.0.0.1").replace("27017", "27199"))
    assert refused.startswith("firewall WRONG 127.0.0.1 refuses port 27199") and "fab tunnel" in refused
    assert world.check(uri.replace("27017", "22")).startswith("tls WRONG what answers on port 22 is no MongoDB")


def test_through_the_tunnel_all_is_well_or_it_is_said_what_is_not(world):
    with world.tunnel(world.off) as (port, _):
        uri = world.env(world.off, "tunnel.env", "--tunnel", "--port", str(port))
        assert f"@127.0.0.1:{port}/urban_grid_ai?authSource=urban_grid_ai" in uri
        assert world.check(uri).startswith("database ok urban_grid_ai can be read")
        login, _, rest = uri.partition("@")
        user = login.rpartition(":")[0]
        assert world.check(f"{user}:wrong@{rest}").startswith("password WRONG the password of grid_user is wrong")
        assert "but of urban_grid_ai: write authSource=urban_grid_ai" in world.check(uri.replace("authSource=urban_grid_ai", "authSource=admin"))
        assert world.check(f"mongodb://{rest}").startswith("database WRONG MONGO_URI names no user")
        assert world.check(f"{uri}&tls=true").startswith("tls WRONG MONGO_URI wants TLS, and the server speaks none")
        again = world.fab("tunnel", "mongodb", "--port", str(port), "--inventory", world.off.inventory)
        assert again.returncode == 1 and re.search(rf"port {port} .* is taken by ssh .*--port \d+ is free", again.stderr)


def test_a_tunnel_that_is_cut_says_so_and_comes_back(world):
    with world.tunnel(world.off) as (port, process):
        world.off.ssh("tlsdb", "sudo pkill -f '^sshd: ubuntu$|^sshd-session: ubuntu$'", check=False)
        assert "the connection was lost" in process.stdout.readline()
        assert f"at 127.0.0.1:{port}" in process.stdout.readline()
        world.off.ssh("tlsdb", "sudo systemctl stop mongod")
        with socket.create_connection(("127.0.0.1", port)):
            assert "mongodb does not answer on 127.0.0.1:27017 of tlsdb" in process.stdout.readline()
        world.off.ssh("tlsdb", "sudo systemctl start mongod")


# With TLS, and a flow from the controller


def test_a_certificate_that_does_not_fit_changes_nothing(world):
    world.certificate("10.87.0.99")
    done = world.on.deploy(check=False)
    assert done.returncode != 0 and f"is for 10.87.0.99, and clients ask for {ADDRESS}" in done.stderr
    world.certificate(ADDRESS, days=-3)
    done = world.on.deploy(check=False)
    assert done.returncode != 0 and "secret mongodb/tls_certificate: has ended on" in done.stderr
    assert "Starting operation" not in done.stderr


def test_with_the_authority_clients_come_in_and_a_second_run_changes_nothing(secured):
    uri = secured.env(secured.on, "tls.env")
    assert f"@{ADDRESS}:27017/urban_grid_ai?authSource=urban_grid_ai&tls=true&tlsCAFile=" in uri
    assert secured.check(uri).startswith("database ok urban_grid_ai can be read")
    assert secured.on.changes() == []


def test_without_tls_or_by_another_name_or_authority_nobody_does(secured):
    uri = secured.env(secured.on, "tls.env")
    plain = uri.partition("&tls=true")[0]
    assert secured.check(plain).startswith("tls WRONG the server wants TLS, and MONGO_URI has none")
    with pytest.raises(pymongo.errors.ServerSelectionTimeoutError):
        pymongo.MongoClient(plain, serverSelectionTimeoutMS=1000).admin.command("ping")
    other = secured.check(uri.replace("authority.pem", "other.pem"))
    assert other.startswith("tls WRONG the server's certificate") and "other.pem" in other
    assert "not issued by an authority that this machine trusts" in secured.check(re.sub("&tlsCAFile=.*", "", uri))
    with secured.tunnel(secured.on) as (port, _):
        assert "is for another address" in secured.check(uri.replace(f"{ADDRESS}:27017", f"127.0.0.1:{port}"))
        through = secured.env(secured.on, "tunnel.env", "--tunnel", "--port", str(port))
        assert secured.check(through).startswith("database ok")
    for version in ("-tls1", "-tls1_1"):
        done = secured.on.ssh("tlsdb", f"echo | openssl s_client {version} -cipher ALL:@SECLEVEL=0 -connect {ADDRESS}:27017 2>&1", check=False)
        assert "Cipher is (NONE)" in done.stdout


def test_a_certificate_that_has_ended_is_told_and_a_new_one_taken_while_it_runs(secured):
    uri = secured.env(secured.on, "tls.env")
    # mongod does not start with one that has ended: this one ends while it runs.
    (secured.directory / "ends.pem").write_text("".join(secured.authority.issue(ADDRESS, days=10 / 86400)))
    put = f"sudo sh -c 'cat >/etc/mongodb/tls.pem' <<'END'\n{(secured.directory / 'ends.pem').read_text()}END\n"
    secured.on.ssh("tlsdb", f"{put}sudo systemctl restart mongod")
    for _ in range(30):
        said = secured.check(uri)
        if "has ended" in said:
            break
        time.sleep(0.5)
    assert said.startswith("tls WRONG the server's certificate has ended")
    before, ended = _pid(secured), _end(secured)
    careless = pymongo.MongoClient(f"{uri}&tlsAllowInvalidCertificates=true", maxPoolSize=1)
    opened = careless.admin.command("hello")["connectionId"]
    secured.certificate(ADDRESS, days=12.5)
    done = secured.on.deploy()
    assert "MongoDB: takes the new certificate" in done.stderr and "in 12 days: get a new one" in done.stderr
    assert _pid(secured) == before and _end(secured) != ended
    assert careless.admin.command("hello")["connectionId"] == opened, "a connection was lost"
    assert secured.check(uri).startswith("database ok")
    password = SecretStore(Path(secured.on.inventory), lab=True).value("mongodb/admin")
    admin = pymongo.MongoClient(f"mongodb://{uri.partition('@')[2]}", username="admin", password=password, authSource="admin")
    roles = admin.admin.command("connectionStatus")["authInfo"]["authenticatedUserRoles"]
    assert roles == [{"role": "userAdminAnyDatabase", "db": "admin"}], "what it had for the exchange is there no more"


def test_and_back(secured):
    secured.off.deploy()
    assert secured.off.changes() == []
    assert secured.off.ssh("tlsdb", "ls /etc/mongodb").stdout == ""
    with secured.tunnel(secured.off) as (port, _):
        assert secured.check(secured.env(secured.off, "tunnel.env", "--tunnel", "--port", str(port))).startswith("database ok")
