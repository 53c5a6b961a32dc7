"""A run that is cut off, wherever it is: the next one finishes it, and what runs is what is on disk."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Iterator

import pytest
from tests.lab.conftest import ROOT, Lab
from tests.lab.test_demo import verified

from lab import hosts

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIK0wmN/Cr3JXqmLW7u+g9pTh+wyqDHpSQEIQczXkVx9q anna@laptop"
INVENTORY = f"""
from lab import lab_host
from tests.lab.stack import STACK

_host = lab_host(
    "cutoff1",
    "10.87.0.71",
    **STACK,
    base_administrators=[{{"name": "anna", "keys": [{KEY!r}]}}],
    connection_seconds=10,
)
mongodb = [_host]
redis = [_host]
chromadb = [_host]
app = [_host]
nginx = [_host]
"""
HOST = "cutoff1"
ADDRESS = "10.87.0.71"

# Each run comes a little further. A condition on the host says when it is killed; what is at work there
# at that moment goes on for a while, as it does when a laptop is closed.
POINTS = {
    "an environment, begun before the packages": "ls -d /opt/chromadb/environments/*/bin",
    "packages of all roles": "pgrep -x dpkg && [ -e /usr/bin/mongod.dpkg-new -o -e /usr/bin/mongod ]",
    "an administrator, whose keys are not there yet": "getent passwd anna",
    "firewall written, not loaded": "[ -e /etc/groundwork/firewall.nft ]",
    "sshd's drop-in written, sshd not told": "[ -e /etc/ssh/sshd_config.d/00-groundwork.conf ]",
    "MongoDB's administrator": "[ -S /run/groundwork-mongodb-administrator/mongod.sock ]",
    "mongod started, its users not made": "systemctl is-active mongod",
    "Redis's users written, not loaded": "[ -e /etc/redis/users.acl ]",
    "the application's user, before its files": "getent passwd app",
    "the application starting": "[ -L /srv/app/current ] && ! systemctl is-active app | grep -vx activating",
    "nginx's configuration": "grep -q Groundwork /etc/nginx/nginx.conf",
}


@dataclass
class Run:
    """A run that goes on while we do something to it."""

    stack: Lab
    arguments: tuple[str, ...] = ()
    lines: list[str] = field(default_factory=list)

    def __enter__(self) -> Run:
        arguments = self.arguments or ("deploy.py",)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pyinfra", "-y", self.stack.inventory, *arguments],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
            text=True, env={**os.environ, "PYINFRA_PROGRESS": "off"},
        )  # fmt: skip
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True)
        self.reader.start()
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()
        self.reader.join()

    @property
    def said(self) -> str:
        return "".join(self.lines)

    def until_said(self, text: str, seconds: int = 300) -> None:
        end = time.monotonic() + seconds
        while text not in self.said:
            assert self.process.poll() is None and time.monotonic() < end, self.said[-3000:]
            time.sleep(0.02)

    def until(self, condition: str, seconds: int = 300) -> None:
        """Wait for what a shell on the host finds."""
        script = f"until {{ {condition}; }} >/dev/null 2>&1; do sleep 0.05; done; echo now"
        waiting = subprocess.Popen(
            hosts.ssh_command(hosts.known()[HOST], f"sudo timeout {seconds} sh -c {json.dumps(script)}"),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            while waiting.poll() is None:
                assert self.process.poll() is None, f"the run ended before: {condition}\n{self.said[-3000:]}"
                time.sleep(0.01)
            assert waiting.stdout.read() == "now\n", condition
        finally:
            waiting.kill()
            waiting.wait()

    def ended(self, seconds: int) -> str:
        """Wait for the end of a run that must fail; what it said."""
        code = self.process.wait(seconds)
        self.reader.join()
        assert code != 0, self.said[-3000:]
        return self.said


@pytest.fixture(scope="module")
def stack(tmp_path_factory) -> Lab:
    return Lab.made(tmp_path_factory.mktemp("interrupted") / "interrupted_lab.py", INVENTORY)


def _settled(stack: Lab) -> None:
    """The next run finishes, the one after finds nothing to do, and nothing half made is left."""
    stack.deploy()
    assert stack.changes() == []
    left = "find /etc /srv /usr/local/lib/groundwork /home -name '.*.??????' -o -name '.new.*' -o -name '*.new' -o -name '*.dpkg-new'"
    assert stack.ssh(HOST, f"sudo {left}; ls /usr/sbin/policy-rc.d 2>/dev/null", check=False).stdout == ""
    assert stack.ssh(HOST, "sudo dpkg --audit; systemctl --failed --no-legend").stdout == ""
    ready = stack.ssh(HOST, "curl -sk https://127.0.0.1/ready -o /dev/null -w '%{http_code}'").stdout
    assert ready == "200"


def test_killed_at_one_point_after_the_other_it_ends_whole(stack):
    """kill -9 of the run, eleven times; then tests/host is the judge."""
    for point, condition in POINTS.items():
        with Run(stack) as run:
            run.until(condition)
            run.process.send_signal(signal.SIGKILL)
            run.process.wait()
        print(f"killed: {point}: {run.lines[-1:]}")
    _settled(stack)
    verified(stack.inventory)


def test_a_second_run_says_who_is_at_work(stack):
    stack.ssh(HOST, "sudo rm -rf /srv/app/environments")
    with Run(stack) as run:
        run.until_said("new environment")
        run.process.send_signal(signal.SIGSTOP)  # so that it is still there when the second asks
        done = stack.pyinfra("-y", stack.inventory, "tasks.redis.redis", check=False)
        assert done.returncode != 0
        assert f"process {run.process.pid} there" in done.stderr and "Nothing was changed" in done.stderr
        assert "Redis | Packages" not in done.stderr
        dry = stack.pyinfra("--dry", stack.inventory, "tasks.redis.redis")
        assert "locked by" not in dry.stderr
        run.process.send_signal(signal.SIGCONT)
        assert run.process.wait(300) == 0


def test_a_run_that_is_told_to_wait_waits(stack):
    waits = Run(stack, ("tasks.redis.redis", "--data", "lock_wait=300"))
    with _locked_by_bob(HOST) as bob, waits as run:
        run.until_said("waiting for another run: bob@desk")
        bob.communicate("end\n")
        assert run.process.wait(300) == 0


def test_two_hosts_are_locked_before_one_is_changed(stack, tmp_path):
    """The lock of the second is held by somebody else: the first is not touched either."""
    other = '_other = lab_host("cutoff2", "10.87.0.72", redis_port=6379)\n'
    Lab.made(tmp_path / "other_lab.py", f"from lab import lab_host\n{other}redis = [_other]\n")
    path = tmp_path / "two_lab.py"
    path.write_text(INVENTORY.split("mongodb = ")[0] + other + "redis = [_host, _other]\n")
    two = Lab(str(path))
    two.up()
    stack.ssh(HOST, "sudo chmod 600 /etc/redis/redis.conf")
    with _locked_by_bob("cutoff2"):
        done = two.pyinfra("-y", two.inventory, "tasks.redis.redis", check=False)
        assert done.returncode != 0
        assert "cutoff2 is locked by another run: bob@desk" in done.stderr
        assert stack.ssh(HOST, "sudo stat -c %a /etc/redis/redis.conf").stdout == "600\n"
        done = two.pyinfra("-y", two.inventory, "tasks.redis.redis", "--fail-percent", "50", check=False)
        assert "bob@desk" in done.stderr
        assert stack.ssh(HOST, "sudo stat -c %a /etc/redis/redis.conf").stdout == "640\n"
        assert stack.ssh("cutoff2", "ls /etc/redis", check=False).returncode != 0


@contextmanager
def _locked_by_bob(name: str) -> Iterator[subprocess.Popen]:
    run = json.dumps({"who": "bob@desk", "what": "inventories/prod.py deploy.py", "process": 7})
    script = (
        "mkdir -p /run/groundwork; cd /run/groundwork; exec 9<>run.lock; flock 9; "
        f"printf '%s\\n' {shlex.quote(run)} '2026-11-23 12:00:00 UTC' $$ '' >run.lock; echo now; read end"
    )
    holder = subprocess.Popen(
        hosts.ssh_command(hosts.known()[name], f"sudo sh -c {shlex.quote(script)}"),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == "now\n"
        yield holder
    finally:
        if holder.poll() is None:
            holder.communicate("end\n")


def test_the_network_is_cut(stack):
    """The run ends within the time that connection_seconds gives; the next one need not wait for sshd."""
    stack.ssh(HOST, "sudo rm -rf /srv/app/environments")
    with Run(stack) as run:
        run.until_said("new environment")
        with _cut():
            begin = time.monotonic()
            said = run.ended(60)
            took = time.monotonic() - begin
    assert "the connection was lost" in said and took < 30, said[-2000:]
    _settled(stack)


@contextmanager
def _cut() -> Iterator[None]:
    table = "groundwork_cut_cutoff1"
    rules = f"""table inet {table} {{
        chain out {{ type filter hook output priority filter; ip daddr {ADDRESS} drop; }}
        chain in {{ type filter hook input priority filter; ip saddr {ADDRESS} drop; }}
    }}"""
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
    try:
        yield
    finally:
        subprocess.run(["nft", "delete", "table", "inet", table], check=True)


def test_the_host_is_rebooted(stack):
    stack.ssh(HOST, "sudo rm -rf /srv/app/environments")
    before = _started(stack)
    with Run(stack) as run:
        run.until_said("new environment")
        stack.ssh(HOST, "sudo systemctl reboot", check=False)
        assert "This run is over here" in run.ended(120)
    end = time.monotonic() + 120
    while _started(stack) in ("", before):
        assert time.monotonic() < end, "the host did not come back"
        time.sleep(0.5)
    _settled(stack)


def _started(stack: Lab) -> str:
    """When PID 1 of the host started, in clock ticks."""
    return stack.ssh(HOST, "cut -d' ' -f22 /proc/1/stat", check=False).stdout


def test_the_power_is_cut(stack):
    """In dpkg, and then in MongoDB's very first start."""
    for drift, condition in (
        ("apt-get -qq -y remove redis-server redis-tools nginx >/dev/null", "pgrep -f 'status-f[d] .*unpack'"),
        ("systemctl stop mongod; rm -rf /var/lib/mongodb/*", "[ -e /var/lib/mongodb/WiredTiger.wt ]"),
    ):
        stack.ssh(HOST, f"sudo sh -c {shlex.quote(drift)}")
        with Run(stack) as run:
            run.until(condition)
            hosts.stop(hosts.known()[HOST])
            assert "This run is over here" in run.ended(60)
        stack.up()
        half = "systemctl is-system-running --wait >/dev/null; [ -e /var/lib/groundwork/mongodb-administrator ] && systemctl is-active mongod"
        assert "\nactive" not in "\n" + stack.ssh(HOST, half, check=False).stdout, "mongod runs on what its first start left"
    _settled(stack)


def test_the_disk_is_full(stack):
    """In apt, in a file, in the application's environment: told, nothing cut short is left, made good."""
    stack.ssh(HOST, "sudo apt-get -qq -y remove redis-tools >/dev/null; sudo apt-get clean; sudo find /srv/app/environments -mindepth 1 -delete")
    stack.ssh(HOST, f"sudo sh -c {shlex.quote(_SMALL)}")
    before = stack.ssh(HOST, "sudo sha256sum /etc/nginx/nginx.conf").stdout

    said = stack.pyinfra("-y", stack.inventory, "tasks.redis.redis", check=False).stderr
    assert said.count("enough free space in /var/cache/apt/archives") == 1, said
    said = stack.pyinfra("-y", stack.inventory, "tasks.nginx.nginx", "--data", "nginx_upload_size=50M", check=False).stderr
    assert said.count("No space left on device") == 1, said
    assert "/etc/nginx/nginx.conf could not be written; what was there is as it was" in said
    assert stack.ssh(HOST, "sudo sha256sum /etc/nginx/nginx.conf").stdout == before
    assert stack.ssh(HOST, "ls -A /etc/nginx | grep '^[.]'", check=False).stdout == ""
    said = stack.pyinfra("-y", stack.inventory, "tasks.app.app", check=False).stderr
    assert "No space left on device" in said, said

    stack.ssh(HOST, "sudo sh -c 'rm /etc/nginx/filler; for d in /var/cache/apt/archives /srv/app/environments; do mount -o remount,size=1G $d; done'")
    _settled(stack)


# Small file systems in the place of three directories, one of them with no room left.
_SMALL = """set -e
small() { cp -a $1 /root/kept; mount -t tmpfs -o size=$2,mode=$(stat -c %a $1) tmpfs $1; cp -aT /root/kept $1; rm -rf /root/kept; }
small /var/cache/apt/archives 100k
small /srv/app/environments 20M
small /etc/nginx 1M
dd if=/dev/zero of=/etc/nginx/filler bs=4k 2>/dev/null || true
"""
