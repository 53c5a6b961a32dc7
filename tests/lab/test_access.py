"""Ways in: what stops a run before any host is touched, and what is no plain login as a user with free sudo."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time

import pytest

from lab import settings as lab_settings
from tests.lab.conftest import ROOT, Lab

PASSWORD = "leak-S1 '\"$x\\:@/%#&"

HOSTS = """
from lab import lab_host
from groundwork.secrets import Secret

_data = dict(base_first_run_upgrade=False)
"""

JUMP = HOSTS + """
_jump = lab_host("jump1", "10.87.0.86", **_data)
base = [_jump]
"""

BEHIND = HOSTS + """
_behind = lab_host("behind1", "10.87.0.87", ssh_config_file="{ssh_config}", ssh_port=2222, base_ssh_port=2222,
                   base_ssh_sources=["10.87.0.86"], ssh_known_hosts_file="{known_hosts}", **_data)
base = [_behind]
"""

PASSWORD_HOST = HOSTS + """
_host = lab_host("password1", "10.87.0.85", ssh_port=2222, base_ssh_port=2222, **_data)
_host[1].update(ssh_user="dora", sudo_password=Secret("sudo/dora"), ssh_known_hosts_file="{known_hosts}")
base = [_host]
"""

SSH_CONFIG = """
Host jump1
  HostName 10.87.0.86
  User ubuntu
  ProxyJump none
  IdentityFile {key}
  UserKnownHostsFile {known_hosts}
  StrictHostKeyChecking yes

Host *
  ProxyJump jump1
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("access")


@pytest.fixture(scope="module")
def known_hosts(directory, hosts):
    """The lab's known hosts, at port 2222 too: a host is known by address and port."""
    lines = lab_settings.KNOWN_HOSTS.read_text().splitlines()
    lines += [f"[{line.split(',')[0]}]:2222 {line.split(' ', 1)[1]}" for line in lines]
    path = directory / "known_hosts"
    path.write_text("\n".join([*lines, ""]))
    return path


@pytest.fixture(scope="module")
def ssh_config(directory, known_hosts):
    path = directory / "ssh_config"
    path.write_text(SSH_CONFIG.format(key=lab_settings.SSH_KEY, known_hosts=known_hosts))
    return path


@pytest.fixture(scope="module")
def hosts(directory):
    """Three fresh hosts, as `python -m lab` knows them."""
    return Lab.made(
        directory / "hosts_lab.py",
        HOSTS
        + "base = [lab_host('password1', '10.87.0.85', **_data), lab_host('jump1', '10.87.0.86', **_data), "
        + "lab_host('behind1', '10.87.0.87', **_data)]\n",
    )


def _inventory(directory, name: str, text: str, **values: object) -> Lab:
    path = directory / f"{name}.py"
    path.write_text(text.format(**values) if values else text)
    return Lab(str(path))


def _run(inventory: Lab, *arguments: str, what: str = "deploy.py", **environment: str) -> subprocess.CompletedProcess:
    """pyinfra, with nobody at its terminal."""
    return subprocess.run(
        [sys.executable, "-m", "pyinfra", "-y", inventory.inventory, what, *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYINFRA_PROGRESS": "off", **environment},
    )  # fmt: skip


def _untouched(hosts: Lab, host: str) -> None:
    found = hosts.ssh(host, "ls -d /var/lib/groundwork /etc/groundwork /usr/local/lib/groundwork 2>/dev/null", check=False).stdout
    assert found == "", f"{host} was touched: {found}"


# What stops a run


def _bad(directory, keys) -> dict[str, tuple[str, list[str]]]:
    """Case -> what is wrong with jump1 in the inventory, and what is said."""
    other_key = keys["other"]
    return {
        "switched off": ('ssh_hostname="10.87.0.88", private_address="10.87.0.88"', ["no way to 10.87.0.88 port 22", "ssh_hostname"]),
        "no such name": ('ssh_hostname="no.such.invalid"', ["ssh_hostname = 'no.such.invalid'", "no host of that name"]),
        "nothing at the port": ("ssh_port=2023, base_ssh_port=22", ["nothing listens at 10.87.0.86 port 2023", "(ssh_port)"]),
        "another key": (f'ssh_key="{other_key}"', ["refuses user ubuntu with the key", "ssh_key", "ssh-copy-id"]),
        "another user": ('ssh_user="ec2-user"', ["refuses user ec2-user", "ssh_user"]),
        "a key with a passphrase": (f'ssh_key="{keys["locked"]}"', ["ssh_key", "passphrase", "ssh-add"]),
        "an unknown host key": (
            f'ssh_known_hosts_file="{directory}/empty"',
            ["its host key is not known: ", "SHA256:", "ssh-keyscan -t", f">>{directory}/empty"],
        ),
        "another host key": (
            f'ssh_known_hosts_file="{directory}/changed"',
            ["its host key has changed", f"{directory}/changed:2", f"ssh-keygen -f {directory}/changed -R 10.87.0.86"],
        ),
    }


@pytest.fixture(scope="module")
def keys(directory):
    found = {}
    for name, passphrase in (("other", ""), ("locked", "a passphrase")):
        found[name] = directory / name
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", found[name]], check=True)
    (directory / "empty").write_text("")
    public = (directory / "other.pub").read_text()
    (directory / "changed").write_text(f"# known hosts\n10.87.0.86 {public}")
    return found


CASES = [
    "switched off", "no such name", "nothing at the port", "another key", "another user",
    "a key with a passphrase", "an unknown host key", "another host key",
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_host_that_is_not_reached_stops_the_run(hosts, directory, keys, case):
    wrong, said = _bad(directory, keys)[case]
    # A good host beside it: it is not touched either.
    inventory = _inventory(
        directory, "bad_lab", HOSTS + f"_bad = lab_host('jump1', '10.87.0.86', **_data)\n_bad[1].update(dict({wrong}))\n"
        "base = [lab_host('behind1', '10.87.0.87', **_data), _bad]\n",
    )  # fmt: skip
    start = time.monotonic()
    done = _run(inventory)
    assert time.monotonic() - start < 40
    _refused(done, *said, "1 of 2 hosts can't be reached: jump1. Nothing was changed on any host", "--fail-percent 50")
    _untouched(hosts, "behind1")
    _untouched(hosts, "jump1")
    # Asked to look only, and with no -y: the same, and no question.
    if case == "another key":
        look = subprocess.run(
            [sys.executable, "-m", "pyinfra", inventory.inventory, "deploy.py", "--dry"],
            cwd=ROOT, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, env={**os.environ, "PYINFRA_PROGRESS": "off"},
        )  # fmt: skip
        _refused(look, *said)


def _refused(done: subprocess.CompletedProcess, *said: str) -> None:
    assert done.returncode == 1, done.stdout + done.stderr
    for words in said:
        assert words in done.stderr, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "Starting operation" not in done.stderr


def test_a_host_that_only_waits_does_not_hang_the_run(hosts, directory):
    """Something takes the connection and says nothing: a firewall's tarpit, a host out of memory."""
    hosts.ssh(
        "jump1",
        "sudo systemd-run -q --unit=tarpit python3 -c "
        "'import socket,time; s=socket.create_server((\"\", 2024)); time.sleep(300)'",
    )
    inventory = _inventory(
        directory, "tarpit_lab", HOSTS + "base = [lab_host('jump1', '10.87.0.86', ssh_port=2024, base_ssh_port=22, **_data)]\n"
    )
    start = time.monotonic()
    _refused(_run(inventory), "10.87.0.86 port 2024 answers, but not as sshd does")
    assert time.monotonic() - start < 60
    hosts.ssh("jump1", "sudo systemctl stop tarpit")


@pytest.mark.parametrize(
    "before, after, said",
    [
        (
            "echo 'ubuntu ALL=(ALL) ALL' >/etc/sudoers.d/90-cloud-init-users",
            "echo 'ubuntu ALL=(ALL) NOPASSWD:ALL' >/etc/sudoers.d/90-cloud-init-users",
            ["jump1: sudo asks ubuntu for a password", 'sudo_password = Secret("sudo/NAME")', "NOPASSWD"],
        ),
        (
            "sed -i s/^ID=.*/ID=fedora/ /etc/os-release",
            "sed -i s/^ID=.*/ID=debian/ /etc/os-release",
            ["jump1: fedora", "is not supported: ubuntu jammy, ubuntu noble, debian bookworm, debian trixie"],
        ),
    ],
)
def test_a_host_that_can_not_be_worked_on(hosts, directory, before, after, said):
    inventory = _inventory(
        directory, "unfit_lab",
        HOSTS + "base = [lab_host('jump1', '10.87.0.86', **_data), lab_host('behind1', '10.87.0.87', **_data)]\n",
    )  # fmt: skip
    # One root shell for both: without sudo there would be no way back.
    hosts.ssh("jump1", "sudo systemd-run -q --on-active=20 --unit=put-back sh -c " + json.dumps(after))
    hosts.ssh("jump1", f"sudo sh -c {json.dumps(before)}")
    _refused(_run(inventory), *said, "nothing was changed")
    _until(lambda: hosts.ssh("jump1", "sudo -n true && grep -q ^ID=debian /etc/os-release", check=False).returncode == 0)
    hosts.ssh("jump1", "sudo systemctl reset-failed 'put-back*' 2>/dev/null; true")
    _untouched(hosts, "jump1")
    _untouched(hosts, "behind1")


def _until(good, seconds: int = 40) -> None:
    end = time.monotonic() + seconds
    while not good():
        assert time.monotonic() < end
        time.sleep(0.5)


# sudo with a password, and sshd on the move


@pytest.fixture(scope="module")
def password_host(hosts, directory, known_hosts):
    """A user whose sudo asks for a password, as an on-prem installation leaves it."""
    hosts.ssh(
        "password1",
        "sudo useradd -m -s /bin/bash -G sudo dora; sudo cp -r .ssh ~dora/ && sudo chown -R dora: ~dora/.ssh",
    )
    line = base64.b64encode(f"dora:{PASSWORD}".encode()).decode()
    hosts.ssh("password1", f"echo {line} | base64 -d | sudo chpasswd")
    return _inventory(directory, "password_lab", PASSWORD_HOST, known_hosts=known_hosts)


def test_a_wrong_sudo_password_is_refused(hosts, password_host):
    done = _run(password_host, "--data", "ssh_port=22", GROUNDWORK_SECRET_SUDO_DORA="wrong")
    _refused(done, "password1: sudo refuses the password of dora", "the secret sudo/dora in the environment variable GROUNDWORK_SECRET_SUDO_DORA")
    _untouched(hosts, "password1")


def test_sudo_with_a_password_while_sshd_moves(hosts, password_host):
    """From port 22 to 2222 by one run, sudo asking all the while; the password is seen nowhere."""
    with hosts.sampled("password1") as samples:
        done = _run(
            password_host, "-vvv", "--debug", "--diff", "--data", "ssh_port=22", GROUNDWORK_SECRET_SUDO_DORA=PASSWORD
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(samples) > 300
    assert any("groundwork-askpass" in line for line in samples), "the search did not look while sudo was asked"
    assert [line for line in samples if "leak-S1" in line] == []
    assert "leak-S1" not in done.stdout + done.stderr

    closed = _run(password_host, GROUNDWORK_SECRET_SUDO_DORA=PASSWORD)  # port 22's door, which was left open for the move
    assert closed.returncode == 0, closed.stderr[-3000:]
    assert _knock("10.87.0.85", 22) is False and _knock("10.87.0.85", 2222) is True
    again = _run(password_host, "--json", GROUNDWORK_SECRET_SUDO_DORA=PASSWORD)
    assert again.returncode == 0, again.stderr[-3000:]
    assert [item["name"] for item in json.loads(again.stdout)["results"]["operations"] if item["success"]] == []
    left = _ssh(password_host, "dora@10.87.0.85", "ls -d /run/user/*/groundwork* /dev/shm/groundwork* /tmp/*askpass* 2>/dev/null; true")
    assert left == ""


def _ssh(inventory: Lab, target: str, command: str, *options: str) -> str:
    done = subprocess.run(
        ["ssh", "-i", lab_settings.SSH_KEY, "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
         "-o", "LogLevel=ERROR", "-p", "2222", *options, target, command],
        capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def _knock(address: str, port: int) -> bool:
    return subprocess.run(["bash", "-c", f"timeout 3 bash -c '</dev/tcp/{address}/{port}' 2>/dev/null"]).returncode == 0


# Behind a jump host


@pytest.fixture(scope="module")
def behind(hosts, directory, known_hosts, ssh_config):
    """A host whose sshd listens on 2222 from the start, and that only the jump host shall reach."""
    hosts.ssh("behind1", "echo 'Port 2222' | sudo tee /etc/ssh/sshd_config.d/20-port.conf; sudo systemctl restart ssh")
    inventory = _inventory(directory, "behind_lab", BEHIND, ssh_config=ssh_config, known_hosts=known_hosts)
    return inventory


def test_a_jump_host_that_refuses_is_named(behind, ssh_config, keys):
    good = ssh_config.read_text()
    try:
        ssh_config.write_text(good.replace(str(lab_settings.SSH_KEY), str(keys["other"])))
        _refused(_run(behind), "behind1", "jump host 10.87.0.86: 10.87.0.86 port 22 refuses user ubuntu", "IdentityFile in ssh_config_file")
        ssh_config.write_text(good.replace("UserKnownHostsFile", f"UserKnownHostsFile {keys['other'].parent}/empty\n#"))
        _refused(_run(behind), "jump host 10.87.0.86: its host key is not known")
    finally:
        ssh_config.write_text(good)


def test_a_host_behind_a_jump_host(behind, ssh_config):
    behind.deploy()
    assert behind.changes() == []
    # Only the jump host gets in, and it is never banned.
    assert _knock("10.87.0.87", 2222) is False
    through = ["-F", str(ssh_config)]
    never = subprocess.run(
        ["ssh", *through, "-i", lab_settings.SSH_KEY, "-o", f"UserKnownHostsFile={ssh_config.parent}/known_hosts", "-p", "2222", "ubuntu@10.87.0.87",
         "sudo fail2ban-client get sshd ignoreip; echo $SSH_CONNECTION"],
        capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert never.returncode == 0, never.stderr
    assert never.stdout.splitlines()[-1].startswith("10.87.0.86 ")
    assert "10.87.0.86" in "\n".join(never.stdout.splitlines()[:-1])


def test_tests_host_goes_the_same_way(behind):
    # Those that only ask the host: others knock from a lab host that no flow lets in.
    ask = "sshd_is_set or never_banned or only_the_declared or sudo_reads"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/host/test_base.py", "-k", ask, "--inventory", behind.inventory],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert "4 passed" in done.stdout


def test_a_host_through_a_proxy_command(behind, ssh_config, known_hosts):
    """The way is a program's: a run is the same, and where the program ends its last words are told."""
    way = f"ssh -F none -i {lab_settings.SSH_KEY} -o IdentitiesOnly=yes -o UserKnownHostsFile={known_hosts} -W %h:%p ubuntu@10.87.0.86"
    for program, said in (
        ("sh -c 'echo TargetNotConnected >&2; exit 255'", "the ProxyCommand of ssh_config_file ended (TargetNotConnected): sh -c "),
        ("no-such-program %h", "the ProxyCommand of ssh_config_file ended (No such file or directory: no-such-program)"),
        (way.replace("10.87.0.86", "10.87.0.88"), "the ProxyCommand of ssh_config_file ended ("),
    ):
        ssh_config.write_text(f"Host 10.87.0.87\n    Port 2222\n    ProxyCommand {program}\n")
        begin = time.monotonic()
        _refused(_run(behind), "behind1", said)
        assert time.monotonic() - begin < 40
    ssh_config.write_text(f"Host 10.87.0.87\n    Port 2222\n    ProxyCommand {way}\n")
    behind.deploy()
    assert behind.changes() == []
