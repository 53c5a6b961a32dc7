"""Secrets change, users and keys come and go: in ordinary runs, with the databases up all the while."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from typing import Iterator
from unittest.mock import patch

import pytest
from tests.lab.conftest import ROOT, Lab

from groundwork.secrets import KEPT

HOST = "rotate1"
NAMES = ("mongodb/admin", "mongodb/grid_user", "redis/app", "redis/admin", "app/sentry_dsn")

# Without ChromaDB, which takes a third of the time and has no password: so /ready has no say.
INVENTORY = """
from groundwork.secrets import Secret
from lab import lab_host
from tests.lab.stack import STACK

_host = lab_host(
    "rotate1",
    "10.87.0.61",
    **STACK,
    app_ready_path=None,
    app_environment={
        "CHROMA_SERVER_HOST": "127.0.0.1",
        "CHROMA_SERVER_PORT": 8000,
        "SENTRY_DSN": Secret("app/sentry_dsn"),
    },
)
mongodb = [_host]
redis = [_host]
app = [_host]
"""

# Asks the application for items, four requests at a time, until it is told to end.
CLIENT = """
import http.client, json, os, socket, threading, time

class Unix(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(120)
        self.sock.connect("/run/app/app.sock")

def ask():
    while not os.path.exists("/run/client-ends"):
        began = time.time()
        try:
            connection = Unix("localhost")
            connection.request("GET", "/items?limit=1")
            said = connection.getresponse().status
        except OSError as error:
            said = type(error).__name__
        found.append((began, time.time() - began, said))
        time.sleep(0.05)

found = []
threads = [threading.Thread(target=ask) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(json.dumps(found))
"""

# Which of the logins on standard input MongoDB takes.
LOGINS = """
print(JSON.stringify(logins.map(([user, source, password]) => {
  const part = encodeURIComponent;
  try {
    new Mongo(`mongodb://${part(user)}:${part(password)}@127.0.0.1/?authSource=${source}&directConnection=true`);
    return true;
  } catch (error) {
    if (error.code === 18) return false;
    throw error;
  }
})));
"""


def _values(round: str) -> dict[str, str]:
    """A value of each secret: awkward ones, as in tests/lab/test_leaks.py."""
    return {name: f"{round}-{number} '\"$x\\:@/%#&" for number, name in enumerate(NAMES)}


@contextmanager
def _secrets(values: dict[str, str]) -> Iterator[None]:
    with patch.dict(os.environ, {f"GROUNDWORK_SECRET_{name.replace('/', '_').upper()}": value for name, value in values.items()}):
        yield


def _ask(command: str, stdin: str) -> str:
    """Output of a command on the host that is given something on its standard input."""
    done = subprocess.run(
        [sys.executable, "-m", "lab", "ssh", HOST, command],
        cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _mongosh(script: str) -> str:
    home = "home=$(mktemp -d); trap 'rm -rf $home' EXIT; "
    return _ask(f"{home} HOME=$home mongosh --quiet --norc --nodb --file /dev/stdin", script)


def _as_admin(values: dict[str, str], script: str) -> str:
    """Output of a script for mongosh, with `admin` as the administrator's connection."""
    login = f"admin:${{encodeURIComponent({json.dumps(values['mongodb/admin'])})}}@"
    return _mongosh(f"const admin = new Mongo(`mongodb://{login}127.0.0.1/?authSource=admin&directConnection=true`);\n{script}")


def _taken(values: dict[str, str]) -> dict[str, bool]:
    """Which of the databases' passwords are taken."""
    logins = [["admin", "admin", values["mongodb/admin"]], ["grid_user", "urban_grid_ai", values["mongodb/grid_user"]]]
    found = dict(zip(NAMES, json.loads(_mongosh(f"const logins = {json.dumps(logins)};{LOGINS}"))))
    for user in ("app", "admin"):
        found[f"redis/{user}"] = _redis(user, values, "PING").startswith("PONG")
    return found


def _redis(user: str, values: dict[str, str], command: str) -> str:
    """What Redis says to a command of a user."""
    password = values[f"redis/{user}"].replace("\\", "\\\\").replace('"', '\\"')
    said = _ask("redis-cli", f'AUTH {user} "{password}"\n{command}\n')
    return said.removeprefix("OK\n")


def _processes(stack: Lab) -> list[str]:
    """The databases' main processes."""
    return stack.ssh(HOST, "systemctl show -P MainPID mongod redis-server").stdout.split()


def _kept(stack: Lab) -> list[str]:
    """The files in which the host keeps the administrators' passwords."""
    return sorted(stack.ssh(HOST, f"sudo find {KEPT} -printf '%p %u:%g %m\\n'").stdout.splitlines())


AS_KEPT = [f"{KEPT} root:root 700", f"{KEPT}/mongodb-admin root:root 600", f"{KEPT}/redis-admin root:root 600"]


def _whole(stack: Lab, values: dict[str, str]) -> None:
    """The host has these secrets everywhere, and a run finds nothing to do."""
    assert set(_taken(values).values()) == {True}
    environment = stack.ssh(HOST, "sudo cat /proc/$(systemctl show -P MainPID app)/environ | tr '\\0' '\\n'").stdout
    assert f"SENTRY_DSN={values['app/sentry_dsn']}" in environment.splitlines()
    ready = json.loads(stack.ssh(HOST, "sudo curl -s --unix-socket /run/app/app.sock http://localhost/ready").stdout)
    assert (ready["mongodb"], ready["redis"]) == ("ok", "ok")
    assert _kept(stack) == AS_KEPT
    with _secrets(values):
        assert stack.changes() == []


def _role(stack: Lab, role: str, *arguments: str, check: bool = True, **data: object) -> subprocess.CompletedProcess:
    """One role alone, with other settings."""
    given = [word for name, value in data.items() for word in ("--data", f"{name}={json.dumps(value)}")]
    return stack.pyinfra("-y", stack.inventory, f"tasks.{role}.{role}", *given, *arguments, check=check)


FIRST, SECOND, THIRD, FOURTH = (_values(round) for round in ("first", "second", "third", "fourth"))


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    stack = Lab.made(tmp_path_factory.mktemp("rotation") / "rotation_lab.py", INVENTORY)
    with _secrets(FIRST):
        stack.deploy()
    return stack


@contextmanager
def _client(stack: Lab) -> Iterator[list]:
    """A steady client; what it saw is in the list afterwards: when, for how long, status or error."""
    seen: list = []
    stack.ssh(HOST, "sudo rm -f /run/client-ends")
    process = subprocess.Popen(
        [sys.executable, "-m", "lab", "ssh", HOST, "sudo python3 -"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdin.write(CLIENT)
    process.stdin.close()
    process.stdin = None
    try:
        yield seen
    finally:
        stack.ssh(HOST, "sudo touch /run/client-ends")
        seen += json.loads(process.communicate(timeout=180)[0])


def _restart(stack: Lab) -> list[int]:
    """When the application last stopped and was up again, in seconds since the epoch."""
    said = stack.ssh(HOST, "systemctl show app --timestamp=unix -p ActiveExitTimestamp,ActiveEnterTimestamp").stdout
    found = dict(line.split("=@") for line in said.split())
    return [int(found[name]) for name in ("ActiveExitTimestamp", "ActiveEnterTimestamp")]


def test_all_secrets_change_in_one_run_and_no_database_restarts(stack):
    """A client has errors only until the application has restarted with its new passwords."""
    before = _processes(stack)
    with _client(stack) as seen, _secrets(SECOND):
        time.sleep(1)
        stack.deploy()
    assert _processes(stack) == before
    assert set(_taken(FIRST).values()) == {False}
    _whole(stack, SECOND)
    assert len(seen) > 100
    failed = [(when + took, said) for when, took, said in seen if said != 200]
    stopped, started = _restart(stack)
    span = max(failed)[0] - min(failed)[0] if failed else 0
    slowest = max(took for _, took, _ in seen)
    kinds = dict(Counter(str(said) for _, said in failed))
    print(
        f"{len(failed)} of {len(seen)} requests failed {kinds}, within {span:.1f} s; the application's restart took "
        f"{started - stopped} s; the slowest answer took {slowest:.1f} s"
    )
    # 503: a new connection with the old password. The others: nobody listens, which only the restart may cause.
    refused = {"FileNotFoundError", "ConnectionRefusedError", "ConnectionResetError", "RemoteDisconnected"}
    assert set(kinds) <= refused | {"503"}
    assert all(stopped - 1 <= when for when, said in failed if said != 503)
    assert all(when < started + 1 for when, took, said in seen if said != 200)


def test_a_run_killed_between_database_and_application_is_made_whole_by_the_next(stack):
    before = _processes(stack)
    with _secrets(THIRD):
        process = subprocess.Popen(
            [sys.executable, "-m", "pyinfra", "-y", stack.inventory, "deploy.py"],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
            text=True, env={**os.environ, "PYINFRA_PROGRESS": "off"},
        )  # fmt: skip
        for line in process.stderr:
            if "Stage: application" in line:
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert set(_taken(THIRD).values()) == {True}
        assert "second-4" in stack.ssh(HOST, "sudo cat /etc/app/environment").stdout
        stack.deploy()
    _whole(stack, THIRD)
    assert _processes(stack) == before


def test_a_run_killed_while_it_set_a_password_does_not_lose_the_way_in(stack):
    """What such a run leaves: the password that works is the one that was about to be set. And then the secret changes again."""
    before = _processes(stack)
    for name in ("mongodb-admin", "redis-admin"):
        stack.ssh(HOST, f"sudo sh -c 'cd {KEPT} && cp {name} {name}.new && sed -i s/third/zeroth/ {name}'")
    with _secrets(FOURTH):
        stack.deploy()
    assert set(_taken(THIRD).values()) == {False} and set(_taken(FOURTH).values()) == {True}
    assert _kept(stack) == AS_KEPT
    assert _processes(stack) == before


def test_without_what_the_host_kept_it_is_told_what_to_do(stack):
    """MongoDB: nothing is changed, and the old password given for one run is the way out. Redis: restarted."""
    stack.ssh(HOST, f"sudo rm {KEPT}/mongodb-admin {KEPT}/redis-admin")
    with _secrets({**FOURTH, "mongodb/admin": "fifth", "mongodb/grid_user": "fifth"}):
        done = _role(stack, "mongodb", check=False)
        assert done.returncode == 1
        assert "MongoDB refuses the administrator" in done.stderr and "GROUNDWORK_SECRET_MONGODB_ADMIN" in done.stderr
    assert set(_taken(FOURTH).values()) == {True}
    with _secrets({**FOURTH, "redis/admin": "fifth"}):
        assert "restarted, because it takes neither" in _role(stack, "redis").stderr
    with _secrets(FOURTH):
        _role(stack, "redis")
        _role(stack, "mongodb")
    assert set(_taken(FOURTH).values()) == {True}
    assert _kept(stack) == AS_KEPT


USER = {"name": "grid_user", "database": "urban_grid_ai"}
REPORTER = {"name": "reporter", "database": "urban_grid_ai"}


def _users(values: dict[str, str]) -> dict[str, list[str]]:
    """MongoDB's users, as name@database, with their roles."""
    script = "print(JSON.stringify(admin.getDB('admin').runCommand({usersInfo: {forAllDBs: true}}).users))"
    users = json.loads(_as_admin(values, script))
    return {f"{user['user']}@{user['db']}": sorted(f"{role['role']}@{role['db']}" for role in user["roles"]) for user in users}


def test_users_of_mongodb_come_change_and_go(stack):
    before = _processes(stack)
    admin = {"admin@admin": ["userAdminAnyDatabase@admin"]}
    with _secrets({**FOURTH, "mongodb/reporter": "reporter's own"}):
        grown = [{**USER, "roles": ["readWrite", "dbAdmin"]}, {**REPORTER, "roles": ["read"]}]
        said = _role(stack, "mongodb", mongodb_users=grown).stderr
        assert "user reporter of urban_grid_ai: new, read" in said
        assert _users(FOURTH) == admin | {
            "grid_user@urban_grid_ai": ["dbAdmin@urban_grid_ai", "readWrite@urban_grid_ai"],
            "reporter@urban_grid_ai": ["read@urban_grid_ai"],
        }
    # The reporter's secret is there no more. A user who is not listed is left alone.
    with _secrets(FOURTH):
        _as_admin(FOURTH, "admin.getDB('other').createUser({user: 'by_hand', pwd: 'x', roles: []})")
        shrunk = [{**USER, "roles": ["readWrite"]}, {**REPORTER, "state": "absent"}]
        said = _role(stack, "mongodb", mongodb_users=shrunk).stderr
        assert "user grid_user of urban_grid_ai: roles readWrite" in said
        assert "user reporter of urban_grid_ai: removed" in said
        left = admin | {"grid_user@urban_grid_ai": ["readWrite@urban_grid_ai"], "by_hand@other": []}
        assert _users(FOURTH) == left
        # One that moves to another database is told of what stays, until it is declared absent there.
        moved = [{**USER, "database": "elsewhere"}, {**REPORTER, "state": "absent"}]
        said = _role(stack, "mongodb", mongodb_users=moved).stderr
        assert "there is a user grid_user of urban_grid_ai too" in said and "reporter" not in said
        assert "grid_user@urban_grid_ai" in _users(FOURTH)
        back = [USER, {**USER, "database": "elsewhere", "state": "absent"}]
        said = _role(stack, "mongodb", mongodb_users=back).stderr
        assert "user grid_user of elsewhere: removed" in said and "there is a user" not in said
        assert _users(FOURTH) == left
    assert _processes(stack) == before


def test_what_redis_lets_the_application_do_changes_while_it_runs(stack):
    before = _processes(stack)
    assert _redis("app", FOURTH, "KEYS nothing").startswith("NOPERM")
    with _secrets(FOURTH):
        _role(stack, "redis", redis_app_rules=["+keys"])
        assert "NOPERM" not in _redis("app", FOURTH, "KEYS nothing")
        _role(stack, "redis")
    assert _redis("app", FOURTH, "KEYS nothing").startswith("NOPERM")
    assert _processes(stack) == before


def test_no_password_of_then_or_now_is_anywhere_else(stack):
    # The journal has what sudo is told: so it is told a pattern that does not find itself.
    search = "find / -xdev -type f -newer /etc/machine-id -exec grep -alE '(firs[t]|secon[d]|thir[d]|fourt[h])-[0-4] ' {} +"
    found = stack.ssh(HOST, f"sudo {search}", check=False).stdout.split()
    assert sorted(found) == ["/etc/app/environment", f"{KEPT}/mongodb-admin", f"{KEPT}/redis-admin"]


def _key(directory, name: str) -> str:
    """A new key pair; its public half."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", directory / name], check=True)
    return (directory / f"{name}.pub").read_text().strip()


def _logs_in(directory, name: str) -> bool:
    """Whether anna gets in with a key."""
    options = [f"-o{option}" for option in ("BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "IdentitiesOnly=yes")]
    done = subprocess.run(["ssh", *options, "-i", directory / name, "anna@10.87.0.61", "true"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0 or "Permission denied" in done.stderr, done.stderr
    return done.returncode == 0


def test_an_administrators_key_and_then_the_administrator_are_gone(stack, tmp_path):
    home, laptop = _key(tmp_path, "home"), _key(tmp_path, "laptop")
    with _secrets(FOURTH):
        _role(stack, "base", base_administrators=[{"name": "anna", "keys": [home, laptop]}])
        assert _logs_in(tmp_path, "home") and _logs_in(tmp_path, "laptop")
        _role(stack, "base", base_administrators=[{"name": "anna", "keys": [home]}])
        assert _logs_in(tmp_path, "home") and not _logs_in(tmp_path, "laptop")
        _role(stack, "base", base_administrators=[{"name": "anna", "state": "absent"}])
        assert not _logs_in(tmp_path, "home")
        # The last way in stays: refused before the host is touched.
        for way_out in ({"name": "ubuntu", "state": "absent"}, {"name": "ubuntu", "keys": [home]}):
            done = _role(stack, "base", base_administrators=[way_out], check=False)
            assert done.returncode == 1 and "base_administrators: ubuntu is the user whom" in done.stderr
    assert stack.ssh(HOST, "true").returncode == 0


def test_who_lives_elsewhere_and_is_logged_in_stays_there_and_is_removed_whole(stack, tmp_path):
    old, new = _key(tmp_path, "old"), _key(tmp_path, "new")
    user = "useradd --create-home --home-dir /srv/anna --shell /bin/bash anna; install -d -o anna -g anna -m 700 /srv/anna/.ssh"
    _ask(f"sudo sh -c '{user}; cat >/srv/anna/.ssh/authorized_keys; chown anna: /srv/anna/.ssh/authorized_keys'", old)
    options = [f"-o{option}" for option in ("BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "IdentitiesOnly=yes")]
    session = subprocess.Popen(
        ["ssh", *options, "-i", tmp_path / "old", "anna@10.87.0.61", "echo in; exec cat"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert session.stdout.readline() == "in\n"
        with _secrets(FOURTH):
            _role(stack, "base", base_administrators=[{"name": "anna", "keys": [new]}])
            assert _logs_in(tmp_path, "new") and not _logs_in(tmp_path, "old")
            assert _ask("getent passwd anna | cut -d: -f6", "") == "/srv/anna\n"
            said = _role(stack, "base").stderr
            assert "user anna: is in base_administrators no more and loses the sudo that it gave, but still gets in" in said
            assert session.poll() is None and _logs_in(tmp_path, "new")
            assert "loses the sudo" not in _role(stack, "base", base_administrators=[{"name": "anna", "state": "absent"}]).stderr
        assert session.wait(timeout=30) != 0 and not _logs_in(tmp_path, "new")
        assert _ask("systemctl --failed --no-legend; getent passwd anna; sudo stat -c '%U %a' /srv/anna", "") == "root 700\n"
    finally:
        session.kill()
