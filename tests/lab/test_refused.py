"""Nothing bad lands: each daemon's own checker is asked about the candidate, and its refusal is told."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.lab.conftest import ROOT, Lab

HOST = "refuse1"
INVENTORY = f"""
from lab import lab_host
from tests.lab.stack import STACK

_host = lab_host("{HOST}", "10.87.0.41", nginx_frontend="examples/frontend", **STACK)
docker = [_host]
mongodb = [_host]
redis = [_host]
chromadb = [_host]
app = [_host]
nginx = [_host]
"""


@dataclass
class Case:
    """A change that must not land."""

    role: str
    live: str
    """The file that it would break."""
    unit: str
    """What runs on it."""
    says: tuple[str, ...]
    """Words that the reader must see, besides the file and where it comes from."""
    data: dict | None = None
    """Settings, as --data gives them."""
    template: str | None = None
    """A file of the checkout that somebody edits: in it, `old` becomes `new`."""
    old: str = ""
    new: str = ""


THIEF = (
    "sudo systemd-run --quiet --collect --unit=thief-{port} python3 -m http.server {port}; "
    "until ss -Hltn 'sport = :{port}' | grep -q .; do sleep 0.1; done"
)
"""A program that has a port."""

SSHD = ("/etc/ssh/sshd_config.d/00-groundwork.conf", "ssh.service")
NFT = ("/etc/groundwork/firewall.nft", "groundwork-firewall.service")
JOURNAL = ("/etc/systemd/journald.conf.d/groundwork.conf", "systemd-journald.service")
FAIL2BAN = ("/etc/fail2ban/jail.d/groundwork.local", "fail2ban.service")
NGINX = ("/etc/nginx/nginx.conf", "nginx.service")
REDIS = ("/etc/redis/redis.conf", "redis-server.service")
MONGODB = ("/etc/mongod.conf", "mongod.service")
CHROMADB = ("/etc/chromadb/chroma.yaml", "chromadb.service")
DOCKER = ("/etc/docker/daemon.json", "docker.service")
SYSCTLS = ("/etc/sysctl.d/60-groundwork-base.conf", "ssh.service")

CASES = {
    # Values that only the daemon, or the host, knows to be wrong.
    "sshd: a taken port": Case(
        "base", *SSHD, ("port 8999", "base_ssh_port", '"python3"'),
        # Where known_hosts is strict the move is refused before: tests/lab/test_lockout.py.
        {"base_ssh_port": 8999, "ssh_port": 22, "ssh_strict_host_key_checking": "accept-new"},
    ),
    "sysctl: no such setting": Case(
        "base", *SYSCTLS, ("knows no kernel.dmesg_restict",), {"base_sysctls": {"kernel.dmesg_restict": 1}}
    ),
    "sysctl: no such value": Case(
        "base", *SYSCTLS, ("net.ipv4.tcp_syncookies = many",), {"base_sysctls": {"net.ipv4.tcp_syncookies": "many"}}
    ),
    "journald: a size beyond measure": Case(
        "base", *JOURNAL, ("Failed to parse", "base_journal_size"), {"base_journal_size": "99999999999999999999G"}
    ),
    "docker: an address of another host": Case(
        "docker", *DOCKER, ("10.9.9.9", "docker_publish_address"), {"docker_publish_address": "10.9.9.9"}
    ),
    "mongodb: an address of another host": Case(
        "mongodb", *MONGODB, ("10.9.9.9", "mongodb_bind_addresses"), {"mongodb_bind_addresses": ["10.9.9.9"]}
    ),
    "mongodb: a taken port": Case("mongodb", *MONGODB, ("port 8999", '"python3"'), {"mongodb_port": 8999}),
    "redis: a taken port": Case("redis", *REDIS, ("port 8999", '"python3"'), {"redis_port": 8999}),
    "chromadb: a taken port": Case("chromadb", *CHROMADB, ("port 8999", '"python3"'), {"chromadb_port": 8999}),
    "redis: no such command": Case(
        "redis", "/etc/redis/users.acl", REDIS[1], ("nonsense", "redis_app_rules"), {"redis_app_rules": ["+nonsense"]}
    ),
    "nginx: a size beyond measure": Case(
        "nginx", *NGINX, ("client_max_body_size", "nginx_upload_size"), {"nginx_upload_size": "99999999999999G"}
    ),
    # A template that somebody edited.
    "sshd": Case(
        "base", *SSHD, ("Bad SSH2 cipher spec",),
        template="templates/base/sshd.conf.j2", old="Ciphers aes256-gcm@openssh.com", new="Ciphers aes256-nonsense",
    ),  # fmt: skip
    "nftables": Case(
        "base", *NFT, ("syntax error",),
        template="templates/base/firewall.nft.j2", old='iifname "lo" accept', new='iifname "lo" acept',
    ),  # fmt: skip
    "journald": Case(
        "base", *JOURNAL, ("Unknown key", "SystemMaxUsed"),
        template="templates/base/journald.conf.j2", old="SystemMaxUse", new="SystemMaxUsed",
    ),  # fmt: skip
    "fail2ban": Case(
        "base", *FAIL2BAN, ("nfftables",),
        template="templates/base/fail2ban.local.j2", old="banaction = nftables", new="banaction = nfftables",
    ),  # fmt: skip
    "sudo": Case(
        "base", "/etc/sudoers.d/groundwork", "ssh.service", ("syntax error",),
        template="templates/base/sudoers.j2", old="{% for", new="anna ALL=(ALL:ALL NOPASSWD ALL\n{% for",
    ),  # fmt: skip
    "apt": Case(
        "base", "/etc/apt/apt.conf.d/52groundwork", "apt-daily.timer", ("Syntax error",),
        template="templates/base/apt.conf.j2", old='"7";', new='"7"',
    ),  # fmt: skip
    "chrony": Case(
        "base", "/etc/chrony/sources.d/groundwork.sources", "ssh.service", ("Could not parse server directive",),
        template="templates/base/chrony.sources.j2", old="{% for", new="server ntp.example.org ibrst\n{% for",
    ),  # fmt: skip
    "needrestart": Case(
        "base", "/etc/needrestart/conf.d/groundwork.conf", "ssh.service", ("Can't find string terminator",),
        template="templates/base/needrestart.conf.j2", old="= 'l';", new="= 'l;",
    ),  # fmt: skip
    "systemd": Case(
        "redis", "/etc/systemd/system/redis-server.service.d/groundwork.conf", REDIS[1], ("Failed to parse", "soon"),
        template="templates/redis/redis-server.service.j2", old="RestartSec=1s", new="RestartSec=soon",
    ),  # fmt: skip
    "logrotate": Case(
        "nginx", "/etc/logrotate.d/groundwork-nginx", NGINX[1], ("unknown option 'weakly'",),
        template="templates/nginx/logrotate.j2", old="daily", new="weakly",
    ),  # fmt: skip
    "a script of ours": Case(
        "docker", "/usr/local/lib/groundwork/stop-containers", DOCKER[1], ("yntax error",),
        template="files/docker/stop-containers", old="; do", new=";",
    ),  # fmt: skip
    "docker": Case(
        "docker", *DOCKER, ("nonsense",),
        template="templates/docker/daemon.json.j2", 
        old="{{ settings.daemon(here) | tojson(indent=2) }}", new='{"nonsense": 1}',
    ),  # fmt: skip
    "mongodb: what --outputConfig takes": Case(
        "mongodb", *MONGODB, ("unsupported value for logRotate",),
        template="templates/mongodb/mongod.conf.j2", old="logRotate: reopen", new="logRotate: sometimes",
    ),  # fmt: skip
    "redis": Case(
        "redis", *REDIS, ("appendfsync",),
        template="templates/redis/redis.conf.j2", old="appendfsync everysec", new="appendfsync seldom",
    ),  # fmt: skip
    "chromadb": Case(
        "chromadb", *CHROMADB, ("expected a boolean",),
        template="templates/chromadb/chroma.yaml.j2", old="allow_reset: false", new="allow_reset: perhaps",
    ),  # fmt: skip
    "gunicorn": Case(
        "app", "/etc/app/gunicorn.conf.py", "app.service", ("timeout = 'soon'",),
        template="templates/app/gunicorn.conf.py.j2", old="timeout = {{ settings.timeout_seconds }}", new="timeout = 'soon'",
    ),  # fmt: skip
    "nginx": Case(
        "nginx", *NGINX, ('unknown directive "sendfle"',),
        template="templates/nginx/nginx.conf.j2", old="sendfile on;", new="sendfle on;",
    ),  # fmt: skip
}  # fmt: skip


@pytest.fixture(scope="module")
def stack(tmp_path_factory) -> Lab:
    """A host with everything on it, deployed once."""
    stack = Lab.made(tmp_path_factory.mktemp("refused") / "refused_lab.py", INVENTORY)
    stack.deploy()
    return stack


@pytest.fixture(scope="module")
def thief(stack):
    """Another program, which has the port 8999."""
    stack.ssh(HOST, THIEF.format(port=8999))
    yield
    stack.ssh(HOST, "sudo systemctl stop thief-8999")


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A checkout of somebody's own, to edit in."""
    copy = tmp_path / "checkout"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".venv", ".git", "__pycache__", ".pytest_cache"))
    return copy


def _seen(stack: Lab, live: str, unit: str) -> str:
    """What must stay as it is: the file, the process, the rules in the kernel, and nothing left lying about."""
    return stack.ssh(
        HOST,
        f"sudo sh -c \"stat -c '%n %i %y' {live}; sha256sum {live}; systemctl show -p MainPID,ActiveEnterTimestamp,NRestarts {unit}; "
        "nft -s list ruleset | sha256sum; find /etc /usr/local /run/systemd -xdev -name '.*.??????' -o -name '*groundwork-check*'; "
        "ls -A /tmp | grep -v systemd-private\"",
    ).stdout  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_broken_change_is_refused_and_nothing_is_touched(stack, thief, checkout, name):
    case = CASES[name]
    where = ROOT
    if case.template:
        where = checkout
        file = checkout / case.template
        assert case.old in file.read_text()
        file.write_text(file.read_text().replace(case.old, case.new, 1))
    before = _seen(stack, case.live, case.unit)
    done = _run(stack, where, case)
    said = done.stdout + done.stderr
    assert done.returncode != 0, said
    origin = [case.template] if case.template else list(case.data)[:1]
    for words in [case.live, *case.says, *origin]:
        assert words in said, f"{words!r} is not in\n{said}"
    assert "Traceback" not in said
    assert _seen(stack, case.live, case.unit) == before


def _run(stack: Lab, where: Path, case: Case) -> subprocess.CompletedProcess:
    data = [word for key, value in (case.data or {}).items() for word in ("--data", f"{key}={json.dumps(value)}")]
    return stack.pyinfra("-y", stack.inventory, f"tasks.{case.role}.{case.role}", *data, check=False, where=where)


@pytest.mark.parametrize(
    "role, unit, port", [("nginx", "nginx.service", 80), ("redis", "redis-server.service", 6379), ("mongodb", "mongod.service", 27017)]
)
def test_who_has_taken_a_port_is_told_and_the_next_run_converges(stack, role, unit, port):
    """The file is as it should be: the service was down for a moment, and another program was quicker."""
    stack.ssh(HOST, f"sudo systemctl stop {unit}; {THIEF.format(port=port)}")
    try:
        done = stack.pyinfra("-y", stack.inventory, f"tasks.{role}.{role}", check=False)
    finally:
        stack.ssh(HOST, f"sudo systemctl stop thief-{port}")
    assert done.returncode != 0
    assert f"{unit} can't have port {port}" in done.stderr and '"python3"' in done.stderr, done.stderr
    stack.pyinfra("-y", stack.inventory, f"tasks.{role}.{role}")
    assert stack.ssh(HOST, f"systemctl is-active {unit}").stdout.strip() == "active"


def test_a_taken_port_is_refused_before_the_file_lands(stack):
    """nginx has no configuration of ours yet, and another program has its port."""
    stack.ssh(HOST, "sudo sh -c 'systemctl stop nginx; echo \"# theirs\" >>/etc/nginx/nginx.conf'")
    stack.ssh(HOST, THIEF.format(port=80))
    before = _seen(stack, *NGINX)
    try:
        done = stack.pyinfra("-y", stack.inventory, "tasks.nginx.nginx", check=False)
        assert _seen(stack, *NGINX) == before
    finally:
        stack.ssh(HOST, "sudo systemctl stop thief-80")
    assert done.returncode != 0
    for words in ("nginx.service can't have port 80", '"python3"', "refused: /etc/nginx/nginx.conf"):
        assert words in done.stderr, done.stderr


def test_the_next_run_is_as_if_nothing_had_been(stack):
    stack.deploy()
    assert stack.changes() == []
