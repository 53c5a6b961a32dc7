"""Connections that fail, in words; and what of a password of sudo's reaches a host."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import paramiko
import pytest
from paramiko.auth_handler import AuthHandler
from paramiko.common import MSG_SERVICE_ACCEPT
from paramiko.ssh_exception import NoValidConnectionsError
from pyinfra.api.exceptions import ConnectError
from pyinfra.connectors.sshuserclient import client

from groundwork import connections, logins
from groundwork.connections import HostKeyError, Target, explain
from groundwork.secrets import AgeFile, Environment, Secret, main
from tests.unit.pyinfra_fake import group_data, inventory, run

TARGET = Target("10.0.0.5", 22, "ubuntu", "/keys/own")
SAID = {
    "refused": (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), ["nothing listens at 10.0.0.5 port 22", "ssh_port"]),
    "one address refused": (
        NoValidConnectionsError({("10.0.0.5", 22): ConnectionRefusedError(errno.ECONNREFUSED, "refused")}),
        ["nothing listens at 10.0.0.5 port 22"],
    ),
    "silence": (TimeoutError("timed out"), ["no answer from 10.0.0.5 port 22", "ssh_hostname", "security group"]),
    "no route": (OSError(errno.EHOSTUNREACH, "no route"), ["no way to 10.0.0.5 port 22"]),
    "no name": (socket.gaierror(-2, "unknown"), ["ssh_hostname = '10.0.0.5'"]),
    "key refused": (paramiko.AuthenticationException("no"), ["refuses user ubuntu with the key /keys/own", "ssh-copy-id -i /keys/own -p 22 ubuntu@10.0.0.5"]),
    "no sshd": (paramiko.SSHException("Error reading SSH protocol banner"), ["not as sshd does (Error reading SSH protocol banner)"]),
    "hung up": (EOFError(), ["not as sshd does (EOFError)"]),
    "another error": (OSError(errno.EMFILE, "too many open files"), ["10.0.0.5 port 22: ", "too many open files"]),
}  # fmt: skip


@pytest.mark.parametrize("case", SAID)
def test_an_error_in_words(case):
    error, words = SAID[case]
    said = explain(error, TARGET)
    assert all(word in said for word in words), said
    assert "\n" not in said and not said.startswith("jump")


def test_of_a_lab_host_that_is_not_up_it_is_said_how_it_gets_up():
    for case in ("silence", "no route"):
        assert "is the host up (python -m lab up INVENTORY), is" in explain(SAID[case][0], Target("10.0.0.5", lab=True))
        assert "lab" not in explain(SAID[case][0], TARGET)


def test_a_jump_host_is_named_with_its_own_words():
    said = explain(paramiko.AuthenticationException("no"), Target("198.51.100.7", 2222, "me", jump=True))
    assert said.startswith("jump host 198.51.100.7: ") and "IdentityFile in ssh_config_file" in said and "ssh_key" not in said


@pytest.fixture
def key(tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    return paramiko.Ed25519Key(filename=str(tmp_path / "key"))


def test_a_changed_key_is_found_where_it_is_recorded(tmp_path, key):
    known = tmp_path / "known"
    known.write_text(f"# ours\nother.example {key.get_name()} {key.get_base64()}\n[10.0.0.5]:2222 {key.get_name()} {key.get_base64()}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", known], check=True, capture_output=True)  # hashed, as Debian's ssh does it
    said = explain(HostKeyError(key, key), Target("10.0.0.5", 2222, known_hosts=str(known)))
    assert f"{known}:3 has" in said and f"ssh-keygen -f {known} -R '[10.0.0.5]:2222'" in said and key.fingerprint in said


def test_an_unknown_key_comes_with_the_commands(key):
    said = explain(HostKeyError(key), Target("10.0.0.5", 2222, known_hosts="/known"))
    assert "ssh-keyscan -p 2222 -t ed25519 10.0.0.5 >>/known" in said and key.fingerprint in said


def test_how_many_can_be_gone_on_without():
    assert "--fail-percent 34" in connections._unreached(["a"], 3)
    assert "--fail-percent 25" in connections._unreached(["a"], 4)


def test_a_jump_host_is_read_from_the_file(make_here, tmp_path):
    path = tmp_path / "config"
    path.write_text("Host *\n  ProxyJump me@jump:2222\nHost jump\n  HostName 198.51.100.7\n  ProxyJump none\nHost 10.0.0.9\n  ProxyJump none\n")
    behind = make_here(["base"], ssh_config_file=str(path), ssh_hostname="10.0.0.5")
    assert logins.jumps(behind) == ["198.51.100.7"]
    settings = behind.settings(behind.topology.roles["base"])
    assert "198.51.100.7" in settings.never_banned(behind)
    assert logins.jumps(make_here(["base"], ssh_config_file=str(path), ssh_hostname="jump")) == []
    # The first ProxyJump counts, as in OpenSSH.
    path.write_text("Host 10.0.0.9\n  ProxyJump none\nHost *\n  ProxyJump jump\n")
    assert logins.jumps(make_here(["base"], ssh_config_file=str(path), ssh_hostname="10.0.0.9")) == []


SUDO = {
    "sudo: a password is required": 'sudo asks ubuntu for a password: set sudo_password = Secret("sudo/NAME")',
    "sudo: 3 incorrect password attempts": "sudo refuses the password of ubuntu",
    "ubuntu is not in the sudoers file.": "ubuntu may not use sudo: as root, `usermod -aG sudo ubuntu`",
    "sh: 1: sudo: not found": "there is no sudo: install it",
}


@pytest.mark.parametrize("said", SUDO)
def test_no_sudo(tmp_path, said):
    path = inventory(tmp_path, ["redis"], ssh_user="ubuntu", fake_responses={"os-release": {"success": False, "stderr": [said]}})
    done = run(path, "deploy.py", "-y")
    assert done.returncode == 1 and SUDO[said] in done.stderr, done.stderr
    assert "nothing was changed" in done.stderr and "Traceback" not in done.stderr and "Starting operation" not in done.stderr


MACHINE = {"distribution": "debian", "codename": "bookworm", "architecture": "amd64", "cores": "2", "memory": "4194304", "container": "none"}


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"distribution": "fedora", "codename": ""}, "fedora  is not supported: ubuntu jammy, ubuntu noble, debian bookworm, debian trixie"),
        ({"disk_free": "1048576"}, "1024 MiB free on /, 3072 are needed"),
        ({"memory": "524288"}, "512 MiB of memory leave 58 MiB for redis, which needs 64"),
    ],
)
def test_a_host_that_does_not_do(tmp_path, changed, words):
    answer = [f"{name}={value}" for name, value in {**MACHINE, "disk_free": "20971520", **changed}.items()]
    roles = ["redis", "mongodb", "chromadb"] if "memory" in changed else ["redis"]
    done = run(inventory(tmp_path, roles, fake_responses={"os-release": answer}), "deploy.py", "-y")
    assert done.returncode == 1 and "Starting operation" not in done.stderr and "Traceback" not in done.stderr
    assert words in done.stderr, done.stderr


@pytest.mark.parametrize("argument", ["--use-sudo-password", "--same-sudo-password"])
def test_pyinfras_own_ways_with_a_password_are_refused(tmp_path, argument):
    done = run(inventory(tmp_path, ["redis"]), "deploy.py", "-y", argument)
    assert done.returncode == 1 and f"{argument} is refused" in done.stderr and "sudo_password" in done.stderr


def test_a_password_in_the_inventory_is_refused_and_not_shown(tmp_path):
    group_data(tmp_path, "all", '_sudo_password = "open-sesame"\n')
    done = run(inventory(tmp_path, ["redis"]), "deploy.py", "-y")
    assert done.returncode == 1 and "_sudo_password: is refused" in done.stderr and "open-sesame" not in done.stdout + done.stderr
    group_data(tmp_path, "all", 'sudo_password = "open-sesame"\n')
    done = run(inventory(tmp_path, ["redis"]), "deploy.py", "-y")
    assert done.returncode == 1 and "sudo_password" in done.stderr and "open-sesame" not in done.stdout + done.stderr


def test_the_last_words_of_a_run_name_the_hosts_and_where_they_failed(tmp_path):
    path = inventory(tmp_path, ["redis"])
    good = path.read_text()
    bad = good.replace('"fake_responses": {', '"fake_responses": {"apt-get": {"success": False}, ')
    path.write_text(bad)
    said = run(path, "deploy.py", "-y").stderr.rstrip().splitlines()
    assert "No hosts remaining!" in said[-2], said[-3:]
    assert said[-1].startswith("--> 1 of 1 hosts failed: @fake/one at All roles | Packages (why is said above). Nothing more was done"), said[-1]

    two = good.replace("_host", "_two").replace("base_twoname", "base_hostname").replace("@fake/one", "@fake/two").replace("10.0.0.5", "10.0.0.6")
    path.write_text(f"{bad}\n{two}\nredis = [_host, _two]\n")
    for arguments, others in (((), "Nothing more was done on any host"), (("--fail-percent", "50"), "The other hosts are done")):
        done = run(path, "deploy.py", "-y", *arguments)
        last = done.stderr.rstrip().splitlines()[-1]
        assert done.returncode == 1 and last.startswith("--> 1 of 2 hosts failed: @fake/one at All roles | Packages "), done.stderr[-2000:]
        assert others in last, last
    path.write_text(good)
    assert "failed:" not in run(path, "deploy.py", "-y").stderr


def _known_at_port_22(file, policy) -> SimpleNamespace:
    """A host that is connected to at port 22, as pyinfra has it then."""
    connected = connections.Client()
    connected._policy, connected._ssh_config, connected._host_keys_filename = policy, {"port": 22}, str(file)
    connected._host_keys = paramiko.HostKeys(str(file))
    return SimpleNamespace(connector=SimpleNamespace(client=connected))


@pytest.mark.parametrize("hashed", [False, True])
def test_a_key_that_is_known_at_another_port_is_copied_by_the_command(tmp_path, key, make_here, hashed):
    known = tmp_path / "known hosts"
    known.write_text(f"# ours\n# theirs\n10.0.0.5,one {key.get_name()} {key.get_base64()} c")  # the last line has no end
    if hashed:
        subprocess.run(["ssh-keygen", "-q", "-H", "-f", known], check=True, capture_output=True)
    here = make_here(["base"], ssh_hostname="10.0.0.5", ssh_config_file=str(tmp_path / "none"))
    said = logins.unknown_at(_known_at_port_22(known, connections.StrictPolicy()), here, 2222)
    subprocess.run(["bash", "-c", said.split("run again: ")[1]], check=True)
    assert logins.unknown_at(_known_at_port_22(known, connections.StrictPolicy()), here, 2222) is None
    assert known.read_text().splitlines()[-1:] == [f"[10.0.0.5]:2222 {key.get_name()} {key.get_base64()} c"]
    assert logins.unknown_at(_known_at_port_22(known, client.AcceptNewPolicy()), here, 2223) is None, "it is taken down by itself"


def test_a_move_of_sshd_that_was_not_made_yet_is_thought_of():
    silence = TimeoutError("timed out")
    assert "--data ssh_port=22" in explain(silence, Target("10.0.0.5", 2222, moved=True))
    assert "--data ssh_port=22" not in explain(silence, Target("10.0.0.5", 2222))
    assert "--data ssh_port=22" not in explain(paramiko.AuthenticationException("no"), Target("10.0.0.5", 2222, moved=True))


def test_a_wrong_sudo_password_names_its_secret(tmp_path):
    refused = {"groundwork-askpass": "/dev/shm/it", "os-release": {"success": False, "stderr": ["sudo: 3 incorrect password attempts"]}}
    path = inventory(tmp_path, ["redis"], ssh_user="dora", fake_responses=refused)
    path.write_text(path.read_text().replace('"private_address"', '"sudo_password": Secret("sudo/dora"), "private_address"'))
    path.write_text(f"from groundwork.secrets import Secret\n{path.read_text()}")
    done = run(path, "deploy.py", "-y", more={"GROUNDWORK_SECRET_SUDO_DORA": "open-sesame"})
    assert "sudo refuses the password of dora, which is the secret sudo/dora in the environment variable GROUNDWORK_SECRET_SUDO_DORA" in done.stderr
    assert done.returncode == 1 and "open-sesame" not in done.stdout + done.stderr


def test_a_wrong_sudo_password_comes_with_the_command_that_sets_it(tmp_path, make_here, monkeypatch):
    file = AgeFile(tmp_path / "inventories/prod.py")
    monkeypatch.setattr(file, "get", lambda name: "open-sesame")
    monkeypatch.setattr(logins.context, "secret_store", lambda: SimpleNamespace(sources=[Environment(), file], file=file))
    monkeypatch.delenv("GROUNDWORK_SECRET_SUDO_DORA", raising=False)
    said = logins._sudo_error("sudo: 3 incorrect password attempts", make_here(["base"], ssh_user="dora", sudo_password=Secret("sudo/dora")))
    assert "the secret sudo/dora in " in said and "prod.age" in said and "prod.py rotate --no-generate sudo/dora`" in said
    command = said.split("`")[1].split()
    assert main([*command[command.index("-m") + 2 :]]) == 1, "there is no such inventory, and the words are right"


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no /dev/shm here")
def test_a_password_file_that_a_killed_run_left_is_taken_away_and_no_others(tmp_path):
    left, live, other = (Path("/dev/shm") / name for name in ("groundwork-askpass.unit-old", "groundwork-askpass.unit-new", "unit-askpass"))
    try:
        for path, hours in ((left, 13), (live, 11), (other, 13)):
            path.write_text("")
            os.utime(path, (time.time() - hours * 3600,) * 2)
        done = subprocess.run(
            ["sh", "-c", logins._ASKPASS], input="#!/bin/sh\n", capture_output=True, text=True, env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
        )
        assert Path(done.stdout.strip()).parent == tmp_path, done.stderr
        assert [path.exists() for path in (left, live, other)] == [False, True, True]
    finally:
        for path in (left, live, other):
            path.unlink(missing_ok=True)


# Through a program


def test_a_proxy_command_that_ends_is_told_with_its_last_words():
    """paramiko's own reads on for ever, so that no host gets any further."""
    way = connections.ProxyCommand("sh -c 'printf SSH-2; echo TargetNotConnected >&2'")
    way.settimeout(10)
    received = b""
    with pytest.raises(paramiko.ProxyCommandFailure) as error:
        while True:
            received += way.recv(100)
    assert received == b"SSH-2"
    way.process.wait()
    way.close()
    said = explain(error.value, Target("i-0123"))
    assert said.startswith("i-0123 port 22: the ProxyCommand of ssh_config_file ended (TargetNotConnected): sh -c ")


def test_a_proxy_command_that_ends_before_it_is_told_anything():
    way = connections.ProxyCommand("sh -c 'echo TargetNotConnected >&2'")
    way.process.wait()
    with pytest.raises(paramiko.ProxyCommandFailure) as error:
        way.send(b"SSH-2")
    assert "ended (TargetNotConnected): " in explain(error.value, Target("i-0123"))


def test_a_proxy_command_gives_what_there_is_and_waits_no_longer_than_told():
    way = connections.ProxyCommand("sh -c 'printf SSH-2; sleep 30'")
    try:
        way.settimeout(0.2)
        assert way.recv(100) == b"SSH-2"
        with pytest.raises(socket.timeout):
            way.recv(100)
    finally:
        way.close()
        way.process.wait()


def test_a_proxy_command_that_is_not_there():
    with pytest.raises(paramiko.ProxyCommandFailure) as error:
        connections.ProxyCommand("no-such-program --target x")
    assert "ended (No such file or directory: no-such-program): no-such-program --target x" in explain(error.value, Target("i-0123"))

class _Sshd(paramiko.ServerInterface):
    """Notes who wants to log in, and lets nobody."""

    def __init__(self):
        self.asked = []

    def get_allowed_auths(self, username):
        return "publickey"

    def check_auth_publickey(self, username, key):
        self.asked.append(username)
        return paramiko.AUTH_FAILED


@pytest.fixture
def sshd(tmp_path, key):
    """An SSH server at a port of its own, and the data of a host behind it."""
    server, there = _Sshd(), paramiko.RSAKey.generate(2048)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        def serve():
            with suppress(OSError):
                while True:
                    transport = paramiko.Transport(listening.accept()[0])
                    transport.add_server_key(there)
                    transport.start_server(server=server)

        Thread(target=serve, daemon=True).start()
        known = tmp_path / "known"
        known.write_text(f"[127.0.0.1]:{port} {there.get_name()} {there.get_base64()}\n")
        data = {"ssh_port": port, "base_ssh_port": port, "ssh_user": "me", "ssh_key": str(tmp_path / "key"), "ssh_known_hosts_file": str(known)}
        yield server, data
        listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("port, said", [("6379", "refuses user me"), ('"many"', "redis_port")])
def test_nobody_logs_in_before_the_inventory_is_checked(tmp_path, sshd, port, said):
    server, data = sshd
    path = tmp_path / "try_out.py"
    path.write_text(f"_host = ('127.0.0.1', {data | {'private_address': '10.0.0.5'}!r} | {{'redis_port': {port}}})\nredis = [_host]\n")
    done = run(path, "deploy.py", "-y")
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert server.asked == ([] if "many" in port else ["me"]), done.stderr
    assert ("refuses" in done.stderr) == (port == "6379")


def test_a_login_is_asked_for_with_its_service(tmp_path, sshd, monkeypatch):
    """In one round trip, then: this server never says that it grants the service."""
    monkeypatch.setattr(AuthHandler, "_parse_service_request", lambda handler, message: None)
    server, data = sshd
    path = tmp_path / "try_out.py"
    path.write_text(f"_host = ('127.0.0.1', {data | {'private_address': '10.0.0.5'}!r})\nredis = [_host]\n")
    done = run(path, "deploy.py", "-y")
    assert server.asked == ["me"] and "refuses user me" in done.stderr, done.stderr


def test_a_key_signs_once_where_the_server_answers_meanwhile():
    """An agent takes its time, and what the server says of the service is read while it does."""
    asked = []

    class Handler(AuthHandler):
        auth_method = "publickey"

        def __init__(self):
            self.transport = SimpleNamespace(_send_message=lambda message: asked.append("service"))

        def _parse_service_accept(self, message):
            asked.append(message.get_text())
            AuthHandler._client_handler_table.fget(self)[MSG_SERVICE_ACCEPT](message)  # as the transport calls it

    connections._request_auth(Handler())
    assert asked == ["service", "ssh-userauth"]


def test_a_login_that_has_waited_long_is_begun_anew(monkeypatch):
    tried = []

    def connect(connector):
        tried.append(connector)
        if len(tried) == 1:
            try:
                connections.Client()._auth()
            except paramiko.SSHException as error:
                raise ConnectError(f"SSH error ({error})")

    monkeypatch.setattr(connections, "PATIENCE_SECONDS", -1)
    monkeypatch.setattr(connections, "_pyinfras_connect", connect)
    connections._connect("one")
    assert tried == ["one", "one"]


def test_a_passphrase_is_asked_for_once(monkeypatch):
    asked = []
    monkeypatch.setattr(connections, "_given", {})
    monkeypatch.setattr(connections, "_getpass", lambda prompt: asked.append(prompt) or "secret")
    monkeypatch.setattr(connections.sys, "stdin", SimpleNamespace(isatty=lambda: True))
    assert [connections._passphrase(f"key {name}: ") for name in "aab"] == ["secret"] * 3
    assert asked == ["key a: ", "key b: "]
