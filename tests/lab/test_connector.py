"""Asked together or one by one: the answers are the same, whatever they look like and whoever's shell is asked."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.lab.conftest import ROOT, Lab

HOST = "asked1"
ADDRESS = "10.87.0.141"

INVENTORY = f"""
from lab import lab_host

_host = lab_host("{HOST}", "{ADDRESS}")
base = [_host]
"""

USERS = {"dash1": "/bin/dash", "zsh1": "/usr/bin/zsh", "fish1": "/usr/bin/fish", "noisy1": "/bin/bash", "silent1": "/bin/true", "password1": "/bin/bash"}
"""Who else can log in, by their login shell; password1's sudo asks for a password."""
PASSWORD = "pass-S1 '\"$x\\:@/%#&"

DEPLOY = r'''
"""Asks one host many questions, changes something, and asks again; writes down what the answers are."""

import json
import os

from pyinfra import host, state
from pyinfra.api import FactBase, operation


class Said(FactBase):
    default = list

    def command(self, line):
        return line

    def process(self, output):
        return list(output)


ASKED = {
    "plain": ("echo one; echo two", {}),
    "nothing": ("true", {}),
    "control characters": (r"printf 'a\033[31mred\007\r\nb\tc\n'", {}),
    "nul": (r"printf 'a\000b\n'", {}),
    "no text": (r"printf 'good\n\377\376\nmore\n'", {}),
    "no newline": ("printf 'no newline'", {}),
    "empty lines": (r"printf '\n\na\n\n'", {}),
    "ten megabytes": ("head -c 10000000 /dev/zero | tr '\\0' x | fold -w 100", {}),
    "what looks like a frame": (r"printf '\ngroundwork-0123 1 0\n\ngroundwork-0123 2 0\n'", {}),
    "reads": ("cat; read line; echo \"read: $line\"", {}),
    "quotes": (r"""echo 'it'\''s' "\"quoted\"" \$HOME \\ 'back\slash' 'two\\' "a\\b" """, {}),
    "status 3": ("echo half; exit 3", {"_ignore_errors": True}),
    "signal": ("echo half; kill -9 $$", {"_ignore_errors": True}),
    "no command": ("nonesuch", {"_ignore_errors": True}),
    "without sudo": ("id -un", {"_sudo": False}),
    "as root": ("id -un; echo $HOME; umask", {}),
    "as another by sudo": ("id -un; echo $HOME", {"_sudo_user": "nobody"}),
    "as another by su": ("id -un; echo $HOME", {"_su_user": "ubuntu"}),
    "elsewhere": ("pwd", {"_chdir": "/usr"}),
    "environment": ("echo $SAID", {"_env": {"SAID": "a b"}}),
    "bash": ("echo ${BASH_VERSION:+bash}", {"_shell_executable": "bash"}),
    "in time": ("echo in time", {"_timeout": 20}),
    "a terminal": ("[ -t 1 ] && echo terminal || echo none", {"_get_pty": True}),
    "cut": ("[ ! -e /run/cut ] || { rm /run/cut; p=$$; while [ $p != 1 ] && [ \"$(cat /proc/$p/comm)\" != sshd ]; do "
            "p=$(awk '{print $4}' /proc/$p/stat); done; [ $p = 1 ] || kill -9 $p; }; echo there", {}),
    "hangs": ("[ ! -e /run/hang ] || { sleep 25; rm /run/hang; }; echo there", {}),
    "last": ("cat /run/asked 2>/dev/null || echo none", {}),
}

answers = {}


@operation()
def look(when):
    found = {asked: host.get_fact(Said, line=line, **arguments) for asked, (line, arguments) in ASKED.items()}
    if state.is_executing:
        answers[when] = {asked: lines if len(str(lines)) < 1000 else [len(lines), lines[0], lines[-1]] for asked, lines in found.items()}
        with open(os.environ["ANSWERS"], "w") as file:
            json.dump(answers, file)
    yield from ()


@operation()
def change():
    yield "echo changed >/run/asked"


@operation()
def undo():
    yield "rm /run/asked"


look(name="Look", when="Look")
change(name="Change")
look(name="Look again", when="Look again")
undo(name="Undo")
'''


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("asked")


@pytest.fixture(scope="module")
def stack(directory) -> Lab:
    (directory / "asked.py").write_text(DEPLOY)
    stack = Lab.made(directory / "hosts.py", INVENTORY)
    stack.ssh(HOST, "sudo apt-get -qq update && sudo DEBIAN_FRONTEND=noninteractive apt-get -qq -y install zsh fish >/dev/null")
    for user, shell in USERS.items():
        stack.ssh(
            HOST,
            f"sudo useradd -m -s {shell} {user} && sudo cp -r ~/.ssh /home/{user}/ && sudo chown -R {user}: /home/{user}/.ssh && "
            f"echo '{user} ALL=(ALL:ALL) {'' if user == 'password1' else 'NOPASSWD: '}ALL' | sudo tee /etc/sudoers.d/{user} >/dev/null",
        )
    stack.ssh(HOST, "echo 'Banner /etc/issue.net' | sudo tee /etc/ssh/sshd_config.d/banner.conf && sudo systemctl reload ssh")
    stack.ssh(HOST, "sudo sed -i '1i echo Welcome to this host' /home/noisy1/.bashrc")
    secret = json.dumps(f"password1:{PASSWORD}")
    subprocess.run(
        [sys.executable, "-m", "lab", "ssh", HOST, "sudo chpasswd"], cwd=ROOT, input=json.loads(secret), text=True, check=True, timeout=60
    )
    return stack


def run(stack: Lab, directory: Path, *arguments: str, deploy: str = "asked.py", more: dict[str, str] | None = None):
    """One run; gives pyinfra's end, the answers, and the number of exchanges."""
    answers, counted = directory / "answers.json", directory / "exchanges"
    # Said in any case: GROUNDWORK_LAB_CONNECTOR may say otherwise.
    named = [] if any(item.startswith("connector=") for item in arguments) else ["--data", "connector=groundwork"]
    for file in (answers, counted):
        file.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "pyinfra", "-y", stack.inventory, str(directory / deploy), *arguments, *named],
        cwd=ROOT, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL,
        env={
            **os.environ, "PYINFRA_PROGRESS": "off", "XDG_CACHE_HOME": str(directory / "cache"),
            "ANSWERS": str(answers), "GROUNDWORK_EXCHANGES": str(counted), **(more or {}),
        },
    )  # fmt: skip
    said = json.loads(answers.read_text()) if answers.exists() else None
    return done, said, json.loads(counted.read_text()) if counted.exists() else None


def remembered(directory: Path) -> list[Path]:
    return list((directory / "cache/groundwork/questions").glob("*.json"))


@pytest.fixture(scope="module")
def plain(stack, directory) -> dict:
    """What pyinfra's own connector answers."""
    done, answers, _ = run(stack, directory, "--data", "connector=ssh")
    assert done.returncode == 0, done.stdout + done.stderr
    assert answers["Look"]["last"] == ["none"] and answers["Look again"]["last"] == ["changed"]
    assert not remembered(directory)
    return answers


def as_user(answers: dict, user: str) -> dict:
    return {look: {**said, "without sudo": [user]} for look, said in answers.items()}


def test_the_answers_are_pyinfras_own(stack, directory, plain):
    for _ in range(2):
        done, answers, count = run(stack, directory)
        assert done.returncode == 0 and answers == plain, done.stderr
    # Twice a script, and the change and its undoing; of each look's questions three can't be asked together, and four
    # are not answered well.
    assert count["batches"] == 2 and count["exchanges"] == 2 + 2 + 2 * 7


@pytest.mark.parametrize("user", ["dash1", "zsh1", "fish1"])
def test_whatever_the_login_shell_is(stack, directory, plain, user):
    for _ in range(2):
        done, answers, count = run(stack, directory, "--data", f"ssh_user={user}")
        assert done.returncode == 0 and answers == as_user(plain, user), done.stderr
    assert count["batches"] == 2


@pytest.mark.parametrize("most", [1, 2])
def test_where_sshd_gives_few_sessions(stack, directory, plain, most):
    """None can be opened before it is needed; the lock has one for itself all the while."""
    limit = "/etc/ssh/sshd_config.d/sessions.conf"
    (directory / "locked.py").write_text(
        "from groundwork.preflight import preflight\nfrom operations.lock import lock\npreflight()\nlock()\n" + DEPLOY
    )
    stack.ssh(HOST, f"echo 'MaxSessions {most}' | sudo tee {limit} && sudo systemctl reload ssh")
    try:
        for _ in range(2):
            done, answers, _ = run(stack, directory, deploy="asked.py" if most == 1 else "locked.py")
            assert done.returncode == 0 and answers == plain, done.stderr
    finally:
        stack.ssh(HOST, f"sudo rm {limit} && sudo systemctl reload ssh")


def test_a_login_that_says_nothing(stack):
    """Its shell ends well, and does nothing."""
    done = stack.deploy("--data", "ssh_user=silent1", check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "asked1: the login of silent1 ends well and says nothing" in done.stderr


def test_a_shell_that_greets_gives_pyinfras_own_answers(stack, directory, plain):
    """They begin with the greeting, which is no use to anybody: but they are no others than before."""
    answers = [run(stack, directory, "--data", "ssh_user=noisy1", "--data", f"connector={name}")[1] for name in ("ssh", "groundwork", "groundwork")]
    assert answers[0] == answers[1] == answers[2] and answers[0]["Look"]["plain"][0] == "Welcome to this host"


def test_a_deploy_says_that_the_shell_greets(stack):
    done = stack.deploy("--data", "ssh_user=noisy1", check=False)
    assert done.returncode == 1 and "nothing was changed" in done.stderr
    assert "asked1: the login shell of noisy1 says 'Welcome to this host' before each command's answer" in done.stderr
    assert "Traceback" not in done.stderr


def test_sudo_with_a_password(stack, directory, plain):
    """It is asked for in pyinfra's own way, by a file that only the user reads: and never remembered."""
    more = {"GROUNDWORK_SECRET_SUDO_PASSWORD1": PASSWORD}
    (directory / "password.py").write_text(
        "from groundwork.preflight import preflight\npreflight()\n" + DEPLOY
    )
    data = ("--data", "ssh_user=password1")
    (directory / "group_data").mkdir(exist_ok=True)
    group = directory / "group_data/hosts.py"
    group.write_text('from groundwork.secrets import Secret\nsudo_password = Secret("sudo/password1")\n')
    try:
        for _ in range(2):
            done, answers, count = run(stack, directory, *data, deploy="password.py", more=more)
            assert done.returncode == 0 and answers == as_user(plain, "password1"), done.stdout + done.stderr
    finally:
        group.unlink()
    assert count["batches"] >= 2 and not any(PASSWORD in path.read_text() for path in remembered(directory))


def test_a_connection_that_is_cut_in_the_middle(stack, directory, plain):
    run(stack, directory)
    stack.ssh(HOST, "sudo touch /run/cut")
    done, answers, _ = run(stack, directory)
    assert done.returncode == 1 and "1 of 1 hosts failed: asked1 at Look" in done.stderr, done.stderr
    assert done.stderr.count("Traceback") == done.stderr.count("UnicodeDecodeError:"), "pyinfra's own, of what is no text: no other"
    assert "cut" not in (answers or {}).get("Look", {})
    done, answers, _ = run(stack, directory)
    assert done.returncode == 0 and answers == plain


def test_a_question_that_hangs_is_asked_alone(stack, directory, plain):
    """It is waited for as pyinfra waits for it."""
    run(stack, directory)
    stack.ssh(HOST, "sudo touch /run/hang")
    done, answers, count = run(stack, directory)
    assert done.returncode == 0 and answers == plain and count["batches"] == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text(""),
        lambda path: path.write_text(path.read_text()[:-100]),
        lambda path: path.write_text(path.read_text().replace('"format":1', '"format":0')),
        lambda path: path.write_text(path.read_text().replace("echo one", "sleep 30")),
        lambda path: path.write_bytes(os.urandom(5000)),
        lambda path: os.chown(path, 12345, 12345),
        lambda path: path.chmod(0o644),
        lambda path: path.parent.chmod(0o755),
    ],
    ids=["empty", "truncated", "another version's", "stale", "noise", "another user's", "readable by all", "in an open directory"],
)
def test_remembered_questions_that_are_no_good_cost_time_alone(stack, directory, plain, damage):
    if not remembered(directory):
        run(stack, directory)
    for path in remembered(directory):
        damage(path)
    done, answers, _ = run(stack, directory)
    for path in remembered(directory):
        path.parent.chmod(0o700)
        path.unlink()
    assert done.returncode == 0 and answers == plain


# The stack, by both connectors

FULL = """
from lab import lab_host
from tests.lab.stack import STACK

_host = lab_host("{name}", "{address}", **{{**STACK, "connector": "{connector}"}})
docker = mongodb = redis = chromadb = app = nginx = [_host]
"""

DRIFT = """
systemctl stop redis-server; echo '# by hand' >>/etc/redis/redis.conf; chmod 666 /etc/app/environment
rm /etc/nginx/nginx.conf /etc/systemd/system/app.service; userdel -f app 2>/dev/null
echo 1 >/proc/sys/net/ipv4/conf/all/accept_redirects; systemctl disable -q --now chrony
nft delete table inet groundwork; apt-get -qq -y purge fail2ban >/dev/null 2>&1; true
"""


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> dict[str, Lab]:
    """Two hosts of the same roles, by the connector that each is reached by."""
    directory = tmp_path_factory.mktemp("both")
    return {
        connector: Lab.made(directory / f"{name}.py", FULL.format(name=name, address=address, connector=connector))
        for name, address, connector in (("both1", "10.87.0.142", "ssh"), ("both2", "10.87.0.143", "groundwork"))
    }


def changes(both: dict[str, Lab]) -> list[list[str]]:
    """What a run changes, operation for operation: by each connector, at the same time."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(Lab.changes, both.values()))


def test_both_connectors_report_the_same_changes(both):
    first = changes(both)
    assert first[0] == first[1] and len(first[0]) > 20
    assert changes(both) == [[], []]
    for name in ("both1", "both2"):
        next(iter(both.values())).ssh(name, f"sudo sh -c {shlex.quote(DRIFT)}")
    drifted = changes(both)
    assert drifted[0] == drifted[1] and len(drifted[0]) >= 8
    assert changes(both) == [[], []]


def test_a_run_that_changes_nothing_makes_few_exchanges(both, tmp_path, monkeypatch):
    """All questions and the lock; and what the operations ask once more, when they were looked ahead for."""
    counted = tmp_path / "counted"
    monkeypatch.setenv("GROUNDWORK_EXCHANGES", str(counted))
    stack = both["groundwork"]
    assert stack.changes() == []
    assert json.loads(counted.read_text())["exchanges"] <= 2
    for _ in range(2):
        counted.unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, "-m", "pyinfra", stack.inventory, "deploy.py"], cwd=ROOT, input="\n", capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
    assert json.loads(counted.read_text())["exchanges"] <= 3
