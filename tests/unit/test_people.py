"""What fabfile.py's jobs do on a person's machine: .env, the ends of tunnels, OpenSSH's configuration, fab check's words."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import dotenv
import pytest
from tests.certificates import Authority
from tests.unit.conftest import make_topology

from groundwork import mongodb_check, people, services, tunnel
from groundwork.logins import openssh_config
from groundwork.errors import Refusal
from groundwork.secrets import SecretError, SecretStore

ROOT = Path(__file__).resolve().parents[2]
FAB = Path(sys.executable).with_name("fab")
INVENTORY = ROOT / "inventories/prod.py"
AWKWARD = "p@ss:/w#rd'\"$x ${HOME} \\%é`id`"
USERS = [{"name": "grid_user", "database": "urban_grid_ai"}, {"name": "reader", "database": "other"}]


class Store(SecretStore):
    """Gives one password for every name."""

    def __init__(self):
        pass

    def value(self, name):
        return AWKWARD


def topology(**data):
    data = {"mongodb_users": USERS, **data}
    return make_topology({"data": (["mongodb", "redis", "chromadb"], data), "web": (["app", "nginx"], {"app_source": "examples/app", "mongodb_users": USERS})})


def write(path: Path, force: bool = False, tunnels: bool = True, port: int | None = None, **data) -> dict:
    people.write_env(path, INVENTORY, topology(**data), Store(), None, tunnels, port, force)
    return dotenv.dotenv_values(path)


# .env


def test_an_awkward_password_survives_and_the_values_lead_through_the_tunnels(tmp_path):
    found = write(tmp_path / ".env", port=27777)
    assert set(found) == {
        "MONGO_URI", "MONGO_DB", "REDIS_HOST", "REDIS_PORT", "REDIS_DB", "REDIS_URL", "CHROMA_SERVER_HOST", "CHROMA_SERVER_PORT"
    }  # fmt: skip
    uri = mongodb_check.parsed(found["MONGO_URI"])
    assert (uri.nodes, uri.user, uri.password, uri.database) == ([("127.0.0.1", 27777)], "grid_user", AWKWARD, "urban_grid_ai")
    assert found["REDIS_HOST"] == "127.0.0.1" and found["CHROMA_SERVER_HOST"] == "127.0.0.1"


def test_a_shell_and_dotenv_read_the_same(tmp_path):
    found = write(tmp_path / ".env", mongodb_tls="provided")
    assert "&tls=true" in found["MONGO_URI"]
    said = subprocess.run(["sh", "-c", 'set -a; . ./.env; env -0'], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    shell = dict(item.split("=", 1) for item in said.split("\0") if item)
    assert {name: shell[name] for name in found} == found


@pytest.mark.parametrize("value", ["it's", "a\\b", "a\nb", "${HOME}"])
def test_what_the_readers_would_differ_about_is_refused(value):
    with pytest.raises(Refusal):
        people.quoted(value)


def test_without_tunnels_the_hosts_own_addresses_are_named(tmp_path):
    assert "@10.0.0.1:27017/" in write(tmp_path / ".env", tunnels=False)["MONGO_URI"]


def test_with_tls_the_authority_is_this_machines_and_a_tunnels_name_is_not_looked_at(tmp_path):
    (tmp_path / "authority.pem").write_text(Authority().pem)
    tls = {"mongodb_tls": "provided", "mongodb_tls_authority": str(tmp_path / "authority.pem"), "mongodb_tls_name": "db.example.org"}
    direct = write(tmp_path / ".env", tunnels=False, **tls)["MONGO_URI"]
    assert "@db.example.org:27017/" in direct and direct.endswith(f"&tls=true&tlsCAFile={tmp_path}/authority.pem")
    through = write(tmp_path / ".env", **tls)["MONGO_URI"]
    assert "@127.0.0.1:27017/" in through and through.endswith("&tlsAllowInvalidHostnames=true")


def test_it_is_for_its_owner_alone_from_the_first_moment(tmp_path, monkeypatch):
    seen = []
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append(os.stat(a).st_mode & 0o777), real(a, b)))
    previous = os.umask(0)
    try:
        write(tmp_path / ".env")
    finally:
        os.umask(previous)
    assert seen == [0o600] and (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == [".env"]


def test_somebodys_own_file_stays_unless_forced_and_ours_is_written_again(tmp_path):
    path = tmp_path / ".env"
    path.write_text("MINE=1\n")
    with pytest.raises(Refusal, match="not written by fab env"):
        write(path)
    assert path.read_text() == "MINE=1\n"
    assert "MINE" not in write(path, force=True)
    assert "@127.0.0.1:4000/" in write(path, port=4000)["MONGO_URI"]


def test_what_git_would_take_is_refused(tmp_path):
    git = ["git", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    with pytest.raises(Refusal, match="add the line .env to .*/.gitignore"):
        write(tmp_path / ".env")
    assert not (tmp_path / ".env").exists()
    (tmp_path / ".gitignore").write_text(".env\n")
    write(tmp_path / ".env")
    subprocess.run([*git, "add", "-f", ".env"], check=True)
    with pytest.raises(Refusal, match="git rm --cached"):
        write(tmp_path / ".env")


def test_an_inventory_without_users_is_told(tmp_path):
    bare = make_topology({"data": (["mongodb"], {})})
    with pytest.raises(Refusal, match="mongodb_users has nobody"):
        people.write_env(tmp_path / ".env", INVENTORY, bare, Store(), None, True, None, False)


def test_the_file_says_of_whom_it_is_and_another_inventorys_stays_unless_forced(tmp_path):
    path, other = tmp_path / ".env", Path("/elsewhere/prod.py")
    whose, _ = people.write_env(path, INVENTORY, topology(), Store(), None, True, None, False)
    assert whose == "inventories/prod.py, app of web"
    assert path.read_text().startswith("# Written by Groundwork (fab env) of inventories/prod.py, app of web: ")
    before = path.read_text()
    with pytest.raises(Refusal, match="of another inventory than /elsewhere/prod.py"):
        people.write_env(path, other, topology(), Store(), None, True, None, False)
    assert path.read_text() == before
    assert people.write_env(path, other, topology(), Store(), None, True, None, True)[0].startswith("/elsewhere/prod.py, ")


def test_no_password_goes_plainly_to_a_public_address(tmp_path):
    public = {"public_address": "203.0.113.20"}
    with pytest.raises(Refusal, match="public address 203.0.113.20 of data and speaks no TLS: fab env --tunnel"):
        write(tmp_path / ".env", tunnels=False, **public)
    assert not (tmp_path / ".env").exists()
    assert "@127.0.0.1:27017/" in write(tmp_path / ".env", **public)["MONGO_URI"]
    assert "@203.0.113.20:27017/" in write(tmp_path / ".env", tunnels=False, mongodb_tls="provided", **public)["MONGO_URI"]


def test_inference_has_what_it_has_on_its_host(tmp_path):
    hosts = {"data": (["mongodb", "redis"], {"mongodb_users": USERS}), "box": (["inference"], {"inference_models": ["load"]})}
    whose, _ = people.write_env(tmp_path / ".env", INVENTORY, make_topology(hosts), Store(), "inference", True, None, False)
    found = dotenv.dotenv_values(tmp_path / ".env")
    assert whose.endswith(", inference of box") and found["REDIS_HOST"] == "127.0.0.1"
    assert set(found) == {"REDIS_HOST", "REDIS_PORT", "REDIS_DB", "REDIS_URL", "MODELS", "MODEL_DIRECTORY"}


# Which inventory, which host


def test_the_inventory_is_named_or_of_the_environment_or_of_the_only_age_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GROUNDWORK_INVENTORY", raising=False)
    with pytest.raises(SecretError, match="say --inventory"):
        people.inventory(None)
    for name in ("inventories/prod.py", "secrets/prod.age", "other.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert people.inventory(None) == Path("inventories/prod.py")
    monkeypatch.setenv("GROUNDWORK_INVENTORY", "other.py")
    assert people.inventory(None) == Path("other.py")
    with pytest.raises(Refusal, match="nowhere.py: there is no such inventory file"):
        people.inventory("nowhere.py")


@pytest.mark.parametrize(
    "words, said",
    [
        (["tunnel", "mongo"], "error: mongo: there is no such role: "),
        (["tunnel", "nginx"], "error: no host of the inventory is in the group nginx"),
        (["tunnel", "mongodb", "--host", "x"], "error: there is no host x: data1\n"),
        (["train", "forecast", "--host", "x"], "error: there is no host x: data1\n"),
        (["tunnel"], "error: which role? fab tunnel ROLE, one of mongodb, redis\n"),
        (["logs"], "error: which service? fab logs ROLE, one of base, mongodb, redis, or a unit: "),
        (["train"], "error: no host of the inventory is in the group training"),
        (["tunnel", "mongodb", "--port", "many"], "error: --port many: must be a number"),
        (["tunnel", "base"], "error: base: listens on no TCP port of data1"),
        (["env", "--role", "redis"], "error: --role redis: is none of app, inference, training\n"),
        (["env", "--file", "/nowhere/.env"], "error: /nowhere/.env: there is no directory /nowhere"),
        (["logs", "mongodb", "--lines", "all"], "error: --lines all: must be a number"),
        (["logs", "redis;reboot"], "error: redis;reboot: is no service"),
        (["logs", "docker"], "error: no host of the inventory is in the group docker"),
        (["train", "forecast"], "error: no host of the inventory is in the group training"),
        (["progress", "forecast"], "error: no host of the inventory is in the group training"),
        (["check", "--file", "/nowhere/.env"], "error: /nowhere/.env: there is no such file"),
    ],
)
def test_a_job_that_can_not_be_done_says_so_in_a_sentence(tmp_path, words, said):
    users = repr(USERS)
    (tmp_path / "one.py").write_text(f"_host = ('data1', {{'private_address': '10.0.0.1', 'mongodb_users': {users}}})\nmongodb = [_host]\nredis = [_host]\n")
    environment = {**os.environ, "GROUNDWORK_INVENTORY": str(tmp_path / "one.py")}
    done = subprocess.run([FAB, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.startswith(said) and done.stderr.count("\n") == 1, done.stderr


# Tunnels


def test_a_tunnel_ends_where_the_service_listens():
    hosts = topology().hosts
    assert tunnel.target(hosts["data"], "mongodb") == ("127.0.0.1", 27017)
    assert tunnel.target(hosts["data"], "redis") == ("127.0.0.1", 6379)
    assert tunnel.target(hosts["data"], "chromadb") == ("10.0.0.1", 8000)
    with pytest.raises(Refusal, match="listens on no TCP port"):
        tunnel.target(hosts["web"], "app")


def test_a_port_that_is_taken_is_told_with_the_program_and_another():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(Refusal, match=rf"port {port} on this machine is taken by .*python.* \(process {os.getpid()}\): --port \d+ is free"):
            tunnel.Tunnel(topology().hosts["data"], "mongodb", port, print)
    assert tunnel.holder(port) is None


def test_what_to_type_holds_no_password():
    assert tunnel.hint(topology().hosts["data"], "mongodb", 27777) == 'mongosh "mongodb://grid_user@127.0.0.1:27777/urban_grid_ai"'


def test_what_to_type_asks_inference_where_it_answers():
    here = make_topology({"box": (["inference"], {"inference_health_path": "/alive"})}).hosts["box"]
    assert tunnel.hint(here, "inference", 8100) == "curl http://127.0.0.1:8100/alive"


def test_a_port_that_ssh_has_is_perhaps_another_tunnels(monkeypatch):
    monkeypatch.setattr(tunnel, "holder", lambda port: "ssh (process 7)" if port == 27017 else None)
    with pytest.raises(Refusal, match=r"is taken by ssh \(process 7\), perhaps another fab tunnel: --port 27018 is free"):
        tunnel.Tunnel(topology().hosts["data"], "mongodb", None, print)


def test_what_to_type_is_told_once_the_tunnel_stands():
    said = []
    made = tunnel.Tunnel(topology().hosts["data"], "mongodb", _free(), said.append)
    assert said == []
    for first in (True, False):
        assert made._connect(["echo", "connected"], first)
    assert [line.split()[0] for line in said] == ["mongodb", "in", "mongodb"]
    assert not made._connect(["false"], True) and len(said) == 3


def _free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_openssh_reads_the_inventorys_connections(tmp_path):
    (tmp_path / "config").write_text("Host 10.9.9.9\n  ProxyJump bastion\n  User jumper\nHost bastion\n  HostName 192.0.2.7\n")
    data = {
        "ssh_hostname": "10.9.9.9", "ssh_port": 2222, "ssh_key": f"{tmp_path}/a key", "ssh_config_file": str(tmp_path / "config"),
        "ssh_known_hosts_file": f"{tmp_path}/known hosts", "ssh_strict_host_key_checking": "yes",
    }  # fmt: skip
    one = make_topology({"one": (["mongodb"], data)}).hosts["one"]
    (tmp_path / "written").write_text(openssh_config([one], ["BatchMode yes"]))

    def read(name: str) -> dict[str, str]:
        said = subprocess.run(["ssh", "-F", str(tmp_path / "written"), "-G", name], capture_output=True, text=True, check=True).stdout
        return dict(reversed([line.split(" ", 1) for line in said.splitlines() if " " in line]))

    found = read("one")
    wanted = {
        "hostname": "10.9.9.9", "port": "2222", "user": "jumper", "proxyjump": "bastion", "identityfile": f"{tmp_path}/a key",
        "stricthostkeychecking": "true", "batchmode": "yes",
    }  # fmt: skip
    assert {name: found[name] for name in wanted} == wanted
    assert "known hosts" in found["userknownhostsfile"]
    assert read("bastion")["hostname"] == "192.0.2.7"


# Services


SHOWN = """Id=training-forecast.service
LoadState=loaded
ActiveState=activating
SubState=start
StatusText=read 40000 of 100000 readings (40 %)
Result=success

Id=training-gone.service
LoadState=not-found
ActiveState=inactive
SubState=dead
StatusText=
Result=success

Id=training-old.service
LoadState=loaded
ActiveState=failed
SubState=failed
StatusText=
Result=exit-code

Id=ssh.socket
LoadState=loaded
ActiveState=active
SubState=listening
"""


def test_units_are_told_in_words():
    assert [services.words(state) for state in services.states(SHOWN)] == [
        "activating (start): read 40000 of 100000 readings (40 %)", "is not installed", "failed (failed, exit-code)",
        "active (listening)",
    ]  # fmt: skip


def test_status_looks_at_what_the_roles_run_by_their_settings(monkeypatch):
    jobs = [{"name": "a", "command": ["true"], "schedule": "daily"}, {"name": "b", "command": ["true"]}]
    groups = ["gpu", "training"]
    asked = []

    def ask(here, command):
        asked.append(command)
        units = command.split("; ")[0].split(" Result ")[1].split()
        blocks = [f"Id={unit}\nLoadState=loaded\nActiveState={'inactive' if unit in off else 'active'}\nSubState=x\n" for unit in units]
        return "\n".join(blocks) + "\n---\n"

    def told(**data) -> dict[str, bool]:
        lines = []
        well = services.status(make_topology({"box": (groups, {"training_jobs": jobs, **data})}), lines.append)
        return {"well": well, **{line.split()[1]: "inactive" not in line for line in lines}}

    monkeypatch.setattr(services, "ask", ask)
    off = {"ssh.socket"}
    always = {"well", "groundwork-firewall.service", "fail2ban.service", "training-a.timer"}
    cards = {"nvidia-persistenced.service", "groundwork-gpu.service"}
    found = told()
    assert always | cards <= set(found) and all(found.values()) and "training-b.timer" not in found
    assert not cards & set(told(gpu_card=False))
    for unit in (always | cards) - {"well"}:
        off = {unit}
        assert [name for name, well in told().items() if not well] == ["well", unit]


def test_only_jobs_that_are_declared_are_started():
    jobs = [{"name": "forecast", "command": ["true"]}]
    here = make_topology({"box": (["training"], {"training_jobs": jobs})}).hosts["box"]
    assert services.unit_of(here, "forecast") == "training-forecast.service"
    with pytest.raises(Refusal, match=r"other: is none of training_jobs of box \(forecast\)"):
        services.unit_of(here, "other")
    with pytest.raises(Refusal, match="which job. training_jobs of box: forecast"):
        services.unit_of(here, "")


@pytest.mark.parametrize("result, last", [
    ("success", "forecast: inactive (dead)"), ("exit-code", "forecast did not end well; its log says why: fab logs training-forecast --host box"),
])  # fmt: skip
def test_a_job_that_failed_is_told_with_the_place_to_look(monkeypatch, result, last):
    here = make_topology({"box": (["training"], {"training_jobs": [{"name": "forecast", "command": ["true"]}]})}).hosts["box"]
    block = f"Id=training-forecast.service\nLoadState=loaded\nActiveState=inactive\nSubState=dead\nStatusText=\nResult={result}\n"

    @contextmanager
    def ssh(here, command):
        with subprocess.Popen(["echo", block], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            yield process

    monkeypatch.setattr(services, "_ssh", ssh)
    said = []
    assert services.follow(here, "forecast", said.append) is (result == "success")
    assert said[-1] == last


def test_the_journal_of_a_role_is_that_of_its_own_units(monkeypatch):
    here = make_topology({"one": (["link"], {"link_endpoint": "192.0.2.1"})}).hosts["one"]
    monkeypatch.setattr(services, "ask", lambda here, command: command)
    assert services.logs(here, "link", 5).endswith(" -n 5 -u wg-quick@wg-groundwork.service")


LINKED = {
    "data1": (["link"], {"site": "cloud", "link_endpoint": "192.0.2.1", "link_address": "10.77.0.1"}),
    "box": (["link"], {"site": "office", "link_address": "10.77.0.2"}),
    "gpu1": (["link"], {"site": "attic", "link_address": "10.77.0.3"}),
}


@pytest.fixture
def heard(tmp_path, monkeypatch):
    """`heard(host, {address: seconds ago, or None})`: fab status's lines of the link, of a host whose wg knows that."""

    def ask(here, command, seconds=30):
        done = subprocess.run(["sh", "-c", command], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True)
        assert "own-private-key" not in done.stdout
        if done.returncode:
            raise Refusal(f"{here.name}: {done.stderr.strip()}")
        return done.stdout

    def lines(host, peers):
        rows = ["own-private-key\town-public-key\t51820\toff"]
        for address, ago in peers.items():
            rows.append(f"key\t(none)\t(none)\t{address}/32\t{0 if ago is None else int(time.time()) - ago}\t1\t1\toff")
        (tmp_path / "dump").write_text("\n".join(rows) + "\n")
        return services._link(make_topology(LINKED).hosts[host])

    (tmp_path / "sudo").write_text('#!/bin/sh\n[ "$*" = "-n wg show wg-groundwork dump" ] && cat "${0%/*}/dump"\n')
    (tmp_path / "sudo").chmod(0o755)
    monkeypatch.setattr(services, "ask", ask)
    return lines


def test_of_the_link_it_is_told_who_was_heard_and_when(heard, tmp_path):
    ((said, well),) = heard("box", {"10.77.0.1": 12})
    assert well and re.fullmatch(r"box +link: data1 heard 1[2-4] s ago", said)
    assert [well for _, well in heard("box", {"10.77.0.1": 400})] == [False]
    assert heard("box", {"10.77.0.1": None}) == heard("box", {}) == [("box          link: data1 never", False)]
    # Who is dialed: one that dials in is enough.
    assert [well for _, well in heard("data1", {"10.77.0.2": 30, "10.77.0.3": None})] == [True, True]
    assert [well for _, well in heard("data1", {"10.77.0.2": 400, "10.77.0.3": None})] == [False, False]
    (tmp_path / "sudo").write_text("#!/bin/sh\necho 'sudo: a password is required' >&2; exit 1\n")
    ((said, well),) = heard("box", {})
    assert not well and said == "box: sudo: a password is required (who is heard on the link can't be told: it takes sudo without a password)"


def test_of_several_hosts_a_units_is_named():
    with pytest.raises(Refusal, match="x: on which host. --host, one of data, web"):
        services.place(topology(), "x", None)
    assert services.place(topology(), "x", "web").name == "web" and services.place(topology(), "redis", None).name == "data"


# fab check (against a real mongod: tests/lab/test_tls.py)


@pytest.mark.parametrize(
    "text",
    ["mongodb://u:hid@den@h/d", "mongodb://u:hid/den@h/d", "mongodb://u:hid@den/x@h.example/d", "mongodb://u:hidden@h:port/d", "http://hidden", "hidden", "mongodb://u:hid%zzden@h/d", "mongodb://u:hidden@h/d?tlsCAFile=/nowhere"],
)
def test_a_uri_that_can_not_be_read_is_told_without_its_text(text):
    with pytest.raises(Refusal) as caught:
        mongodb_check.parsed(text)
    assert "MONGO_URI" in str(caught.value) and "hid" not in str(caught.value) and "den" not in str(caught.value)


def test_a_uri_without_its_beginning_is_told_so():
    with pytest.raises(Refusal, match="^MONGO_URI must begin with mongodb://"):
        mongodb_check.parsed("127.0.0.1:27017")


def test_mongodb_srv_without_dnspython_is_told_as_not_checked(monkeypatch):
    monkeypatch.setitem(sys.modules, "dns.resolver", None)
    with pytest.raises(Refusal, match="mongodb.srv, which is not checked here: dnspython is missing"):
        mongodb_check.parsed("mongodb+srv://u:p@cluster.example.org/d")


def test_the_uri_is_of_the_environment_or_of_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MONGO_URI", raising=False)
    with pytest.raises(Refusal, match="no MONGO_URI"):
        mongodb_check.uri_of(None)
    (tmp_path / ".env").write_text("MONGO_URI='mongodb://a@of-the-file/d'\n")
    assert mongodb_check.uri_of(None).nodes == [("of-the-file", 27017)]
    monkeypatch.setenv("MONGO_URI", "mongodb://a@of-the-environment/d")
    assert mongodb_check.uri_of(None).nodes == [("of-the-environment", 27017)]
    assert mongodb_check.uri_of(".env").nodes == [("of-the-file", 27017)]


def _said(uri: str) -> str:
    uri = mongodb_check.parsed(uri)
    with pytest.raises(mongodb_check.Wrong) as caught:
        list(mongodb_check.check(uri, uri.nodes[0]))
    return str(caught.value)


def test_names_and_ports_that_lead_nowhere():
    assert _said("mongodb://nowhere.invalid/d").startswith("name: nowhere.invalid ")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert _said(f"mongodb://127.0.0.1:{port}/d").startswith(f"firewall: 127.0.0.1 refuses port {port}: nobody listens: `fab tunnel mongodb`")


def test_what_answers_and_is_no_mongodb(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        threading.Thread(target=_greet, args=(server,), daemon=True).start()
        assert "is no MongoDB: is the port right?" in _said(f"mongodb://127.0.0.1:{port}/d")
        assert "speaks no TLS, and is no MongoDB" in _said(f"mongodb://127.0.0.1:{port}/d?tls=true")


def _greet(server: socket.socket) -> None:
    """As SSH or SMTP do."""
    try:
        while True:
            connection, _ = server.accept()
            connection.sendall(b"SSH-2.0-x\r\n")
            connection.close()
    except OSError:
        return


def test_every_host_of_a_uri_is_checked(capsys):
    uri = mongodb_check.parsed("mongodb://one.invalid,two.invalid:27018/d")
    assert mongodb_check.run(uri) is False
    said = capsys.readouterr().out
    assert "one.invalid port 27017" in said and "two.invalid port 27018" in said and said.count("WRONG") == 2
