"""A fresh cloud instance: cloud-init still works, another apt holds the lock, and systemd listens for sshd."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time

import pytest
from tests.lab.conftest import ROOT, Lab, changed

from lab import hosts, settings

# As unattended-upgrades does at a first boot: dpkg and apt lock by fcntl.
HOLD_LOCK = """
import fcntl, time
file = open("/var/lib/dpkg/lock-frontend", "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
time.sleep(20)
"""

# Work that lasts until the run has been seen to wait for it, on a slow machine too.
BUSY = ["sh", "-c", "for n in $(seq 300); do [ -e /run/go ] && exit; sleep 0.5; done"]

# The first ends with an error; the second with a warning, of a key that is not known, and apt's lock is taken then.
FIRST = {"runcmd": [BUSY, ["touch", "/run/first-boot-ended"], ["false"]]}
SECOND = {"no_such_key": 1, "runcmd": [BUSY, ["systemd-run", "python3", "-c", HOLD_LOCK]]}

INVENTORY = """
from lab import lab_host

_fresh1 = lab_host("fresh1", "{prefix}.91", user_data={first!r})
_fresh2 = lab_host("fresh2", "{prefix}.92", user_data={second!r}, ssh_known_hosts_file={known_hosts!r}, ssh_socket=True)
base = [_fresh1, _fresh2]
"""

QUICK = ("--data", "base_first_run_upgrade=false")
"""Upgrading everything is tests/lab/test_demo.py's."""

CLOSING = {"Base | Ways in", "Base | Firewall"}
"""While sshd moves, the firewall has both doors open; the next run closes the old one."""


@pytest.fixture(scope="module")
def instances(tmp_path_factory) -> Lab:
    """Two instances that have booted a moment ago."""
    directory = tmp_path_factory.mktemp("first")
    known_hosts = directory / "known_hosts"
    first, second = (f"#cloud-config\n{json.dumps(work)}\n" for work in (FIRST, SECOND))
    values = {"prefix": settings.PREFIX, "known_hosts": str(known_hosts), "first": first, "second": second}
    stack = Lab.made(directory / "first_lab.py", INVENTORY.format(**values))
    known = settings.KNOWN_HOSTS.read_text()
    # On another port sshd is another host, for ssh.
    known_hosts.write_text(known + re.sub(r"^([0-9.]+)", r"[\1]:2222", known, flags=re.MULTILINE))
    return stack


@pytest.fixture(scope="module")
def first_run(instances) -> str:
    """What the run prints that comes while both still boot."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pyinfra", "-y", instances.inventory, "deploy.py", *QUICK],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        text=True, env={**os.environ, "PYINFRA_PROGRESS": "off"},
    )  # fmt: skip
    printed = []
    for line in process.stdout:
        printed.append(line)
        if waits := re.search(r"\[(\w+)\] .*first boot: waiting for cloud-init", line):
            instances.ssh(waits.group(1), "sudo touch /run/go")
    assert process.wait() == 0, "".join(printed)
    return "".join(printed)


def test_the_first_run_waits_for_cloud_init_and_tells_of_its_errors(instances, first_run):
    assert re.search(r"fresh1\] .*first boot: waiting for cloud-init", first_run)
    assert re.search(r"fresh1\] .*first boot: cloud-init ended with errors; going on", first_run)
    assert "/var/log/cloud-init-output.log" in first_run
    assert re.search("scripts.user", first_run), "cloud-init's own word for what failed"
    said = instances.ssh("fresh1", "sudo stat -c %Y /run/first-boot-ended /var/lib/groundwork/apt-updated").stdout
    ended, packages = map(int, said.split())
    assert packages >= ended


def test_a_warning_of_cloud_inits_is_no_error(instances, first_run):
    assert re.search(r"fresh2\] .*first boot: cloud-init is done", first_run)
    # Its exit status says so from 23.4 on, which trixie has.
    status = instances.ssh("fresh2", "cloud-init status", check=False)
    assert status.returncode == {"bookworm": 0, "jammy": 0}.get(settings.SUITE, 2), status.stdout


def test_another_apt_is_waited_for_and_named(instances, first_run):
    assert re.search(r"fresh2\] .*waiting for process \d+ \(python3\S*\), which holds /var/lib/dpkg/lock-frontend", first_run)
    assert instances.ssh("fresh2", "systemctl is-active fail2ban").stdout == "active\n"


def test_the_next_run_changes_nothing_and_waits_for_nothing(instances):
    done = instances.pyinfra("-y", "--json", instances.inventory, "deploy.py", *QUICK)
    assert changed(json.loads(done.stdout)) == []
    assert "first boot" not in done.stderr


def test_needrestart_reads_what_we_set(instances):
    said = instances.ssh("fresh2", "sudo needrestart -b -v 2>&1").stdout
    assert "groundwork.conf" in said, said


def test_where_systemd_listens_sshd_moves_and_returns_with_no_session_lost(instances):
    with _session(instances, "fresh2") as still_there:
        instances.deploy("--data", "base_ssh_port=2222", "--data", "ssh_port=22", "--limit", "fresh2", *QUICK)
        assert _listeners(instances, port=2222) == {"2222": {"sshd", "systemd"}}
        subprocess.run(_ssh("fresh2", "sudo systemctl daemon-reload", 2222), check=True, capture_output=True, timeout=60)
        there = ("--data", "base_ssh_port=2222", "--data", "ssh_port=2222", "--limit", "fresh2")
        again = instances.pyinfra("-y", "--json", instances.inventory, "deploy.py", *there, *QUICK)
        assert set(changed(json.loads(again.stdout))) <= CLOSING
        instances.deploy("--data", "base_ssh_port=22", "--data", "ssh_port=2222", "--limit", "fresh2", *QUICK)
        assert _listeners(instances) == {"22": {"sshd", "systemd"}}
        assert still_there()


def test_after_a_reboot_all_is_as_it_was(instances):
    """cloud-init works at each boot, and this image's would write /etc/hosts anew."""
    before = _started(instances)
    instances.ssh("fresh2", "sudo systemctl reboot", check=False)
    for _ in range(120):
        if _started(instances) not in ("", before):
            break
        time.sleep(0.5)
    else:
        pytest.fail("the host did not come back")
    instances.ssh("fresh2", "timeout 60 cloud-init status --wait; [ $? != 1 ] && systemctl is-active ssh.socket")
    done = instances.pyinfra("-y", "--json", instances.inventory, "deploy.py", *QUICK)
    assert set(changed(json.loads(done.stdout))) <= CLOSING


def _started(instances: Lab) -> str:
    """When PID 1 of the host started, in clock ticks; empty while it does not answer."""
    return instances.ssh("fresh2", "cut -d' ' -f22 /proc/1/stat", check=False).stdout


class _session:
    """A login that is held open; `still_there()` asks through it."""

    def __init__(self, instances: Lab, host: str):
        command = "while read line; do echo $line; done"
        self.process = subprocess.Popen(
            _ssh(host, command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def __enter__(self):
        assert self.answers()
        return self.answers

    def answers(self) -> bool:
        self.process.stdin.write("hello\n")
        return self.process.stdout.readline() == "hello\n"

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(20)


def _ssh(host: str, command: str, port: int = 22) -> list[str]:
    """The command line of a login, on any port."""
    line = hosts.ssh_command(hosts.known()[host], command)
    return [*line[:1], "-p", str(port), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", *line[1:]]


def _listeners(instances: Lab, port: int = 22) -> dict[str, set[str]]:
    """Ports of 22 and 2222 that are listened on -> who does, asked by a new login."""
    command = "sudo ss -Hltnp 'sport = :22 or sport = :2222'"
    said = subprocess.run(_ssh("fresh2", command, port), capture_output=True, text=True, check=True, timeout=30).stdout
    found: dict[str, set[str]] = {}
    for line in said.splitlines():
        found.setdefault(line.split()[3].rsplit(":", 1)[1], set()).update(re.findall(r'\("([^"]+)"', line))
    return found
