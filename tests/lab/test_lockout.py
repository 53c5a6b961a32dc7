"""A change that locks the administrator out is put back by the host alone; one that does not is confirmed."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from tests.lab.conftest import ROOT, Lab

from lab import hosts, settings
from tests.host.test_docker import MAKE_IMAGE

pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS")  # a placeholder certificate is self-signed

CONTROLLER = settings.GATEWAY
"""Where a run comes from, as the hosts see it."""

INVENTORY = """
from lab import lab_host

_one = lab_host("lockout1", "10.87.0.31", base_confirm_seconds=10, base_first_run_upgrade=False)
_two = lab_host(
    "lockout2", "10.87.0.32", base_confirm_seconds=10, base_first_run_upgrade=False, nginx_frontend="examples/frontend"
)
base = [_one, _two]
docker = [_two]
nginx = [_two]
"""

FILES = """
sha256sum /etc/groundwork/firewall.nft /etc/sudoers.d/groundwork /etc/ssh/sshd_config.d/00-groundwork.conf 2>&1
sha256sum /home/*/.ssh/authorized_keys; sshd -T | sort; ss -Hltnp | grep sshd | awk '{print $4}' | sort
"""
KEPT = "/var/lib/groundwork/unconfirmed"
DROP_IN = "/etc/ssh/sshd_config.d/00-groundwork.conf"
TABLE = "nft -s list table inet groundwork; cat /run/groundwork/firewall.loaded"
STATE = f"{FILES}\n{TABLE}"
"""What counts of firewall, sshd, keys and sudo; on disk and live."""

LEFT = """
ls -d /var/lib/groundwork/unconfirmed* /run/groundwork/unconfirmed* 2>/dev/null
find /etc /home -xdev -name '*.put-back'
systemctl list-units --all --no-legend --plain 'groundwork-unconfirmed*'
systemctl --failed --no-legend --plain
true
"""
"""What must be nowhere once a change is confirmed or put back."""

PORT = 18080
"""Published by a container on lockout2, whose web server listens on 8080."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Lab:
    """Two bare hosts."""
    stack = Lab.made(tmp_path_factory.mktemp("lockout") / "lockout_lab.py", INVENTORY)
    return stack


@pytest.fixture
def broken(tmp_path):
    """`broken(template, before, line)`: a checkout in which a template says more than it should."""

    def make(*changes: tuple[str, str, str]) -> Path:
        copy = tmp_path / "checkout"
        if not copy.exists():
            ignore = shutil.ignore_patterns(".venv", ".git", "__pycache__", ".pytest_cache")
            shutil.copytree(ROOT, copy, ignore=ignore)
        for name, before, line in changes:
            template = copy / "templates" / name
            text = template.read_text()
            assert text.count(before) == 1
            template.write_text(text.replace(before, f"{line}\n{before}"))
        return copy

    return make


NO_NEW_CONNECTION = ("base/firewall.nft.j2", '        iifname "lo" accept', f"ip saddr {CONTROLLER} ct state new drop")
NO_PACKET = ("base/firewall.nft.j2", '        iifname "lo" accept', f"ip saddr {CONTROLLER} drop")
NOBODY = ("base/sshd.conf.j2", "PermitRootLogin", "AuthorizedKeysFile none")
"""What check-sshd does not see beforehand."""


def run(stack: Lab, *arguments: str, where: Path = ROOT, host: str = "lockout1") -> subprocess.CompletedProcess:
    """A run against one host, from a checkout."""
    return subprocess.run(
        command(stack, host, *arguments), cwd=where, capture_output=True, text=True, timeout=300,
        stdin=subprocess.DEVNULL, env={**os.environ, "PYINFRA_PROGRESS": "off"},
    )  # fmt: skip


def command(stack: Lab, host: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "pyinfra", "-y", stack.inventory, "--limit", host, "deploy.py", *arguments]


def kill_at(line: str, stack: Lab, *arguments: str, where: Path = ROOT) -> None:
    """kill -9 a run against lockout1 as soon as it says something."""
    process = subprocess.Popen(
        command(stack, "lockout1", *arguments), cwd=where, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL, text=True, env={**os.environ, "PYINFRA_PROGRESS": "off"},
    )  # fmt: skip
    said = []
    for text in process.stderr:
        said.append(text)
        if line in text:
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL, "".join(said)


def ask(stack: Lab, script: str, host: str = "lockout1") -> str:
    return stack.ssh(host, f"sudo sh -c {shlex.quote(script)}").stdout


def administrators(*keys: str) -> str:
    people = [{"name": "anna", "keys": list(keys)}] if keys else []
    return f"base_administrators={json.dumps(people)}"


def lab_key() -> str:
    return subprocess.run(["ssh-keygen", "-y", "-f", str(settings.SSH_KEY)], capture_output=True, text=True, check=True).stdout.strip()


def put_back(done: subprocess.CompletedProcess, *what: str) -> None:
    """A run failed, and said what the host has put back."""
    said = done.stdout + done.stderr
    assert done.returncode == 1, said[-3000:]
    assert "a new connection does not get in: " in said or "no new connection confirmed" in said, said[-3000:]
    [line] = [line for line in said.splitlines() if "the host has put back what was there" in line]
    assert all(item in line for item in what), line
    assert "then run again" in said and "Traceback" not in said


def test_a_first_run_that_cuts_us_off_leaves_the_host_as_it_was(pair, broken):
    """Not even its own connection gets through: it goes on when the host has put things back."""
    before = ask(pair, FILES)
    done = run(pair, where=broken(NO_PACKET, NOBODY))
    put_back(done, "/etc/groundwork/firewall.nft", "the live firewall (there was none)", "00-groundwork.conf")
    assert ask(pair, FILES) == before
    assert ask(pair, "nft list tables | grep groundwork; true") == ""
    assert ask(pair, "systemctl is-active groundwork-firewall.service; true").strip() == "inactive"
    assert ask(pair, LEFT) == ""


def test_a_good_run_is_confirmed(pair):
    done = pair.deploy()
    assert done.stderr.count("confirmed by a new connection to 10.87.0.3") == 2
    assert ask(pair, LEFT) == ask(pair, LEFT, "lockout2") == ""
    assert pair.changes() == []


def test_two_changes_that_lock_out_are_both_put_back(pair, broken):
    before = ask(pair, STATE)
    done = run(pair, where=broken(NO_NEW_CONNECTION, NOBODY))
    put_back(done, "/etc/groundwork/firewall.nft", "the live firewall", "00-groundwork.conf")
    assert "base_ssh_sources, base_ssh_port and flows" in done.stderr
    assert ask(pair, STATE) == before
    assert ask(pair, LEFT) == ""


WATCH = f"""
for n in $(seq 900); do [ ! -e {KEPT}/run ] || break; sleep 0.1; done; echo kept
for n in $(seq 300); do [ -e {KEPT} ] || break; sleep 0.1; done; echo gone
"""
"""Over one connection: in between the host may take no new one."""


def test_a_run_slower_than_the_delay_changes_no_more(pair, broken):
    before = ask(pair, STATE)
    watch = subprocess.Popen(
        [sys.executable, "-m", "lab", "ssh", "lockout1", f"sudo sh -c {shlex.quote(WATCH)}"],
        cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    slow = subprocess.Popen(
        command(pair, "lockout1"), cwd=broken(NO_NEW_CONNECTION, NOBODY), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL, text=True, env={**os.environ, "PYINFRA_PROGRESS": "off"},
    )  # fmt: skip
    assert watch.stdout.readline() == "kept\n"
    slow.send_signal(signal.SIGSTOP)
    assert watch.stdout.readline() == "gone\n"
    slow.send_signal(signal.SIGCONT)
    said = slow.communicate(timeout=120)[0]
    assert slow.returncode == 1 and "no new connection confirmed what this run had changed" in said, said[-3000:]
    assert ask(pair, STATE) == before
    assert ask(pair, LEFT) == ""
    assert watch.wait(timeout=30) == 0


def test_what_nobody_has_confirmed_or_loaded_is_not_what_was_there_before(pair, broken):
    """A drop-in of ours that lies on disk and runs nowhere: the confirmed one is put back."""
    before = ask(pair, STATE)
    ask(pair, f"sed -i '1a AuthorizedKeysFile none' {DROP_IN}")
    put_back(run(pair, where=broken(NO_NEW_CONNECTION, NOBODY)), DROP_IN, "the live firewall")
    assert ask(pair, STATE) == before
    assert ask(pair, LEFT) == ""


def test_what_somebody_else_left_to_be_loaded_with_our_reload_is_refused(pair):
    foreign = "/etc/ssh/sshd_config.d/50-team.conf"

    def said(line: str) -> str:
        ask(pair, f"printf '{line}\\n' >{foreign}")
        return ask(pair, f"/usr/local/lib/groundwork/check-sshd {DROP_IN} 2>&1; true")

    try:
        for line, why in (
            ("DenyUsers *@10.87.0.0/16", "DenyUsers names them"),
            ("DenyGroups nobody *d*", "DenyGroups names them"),
            ("AllowGroups wheel", "AllowGroups does not name them"),
            (f"Match Address {CONTROLLER}\\n PubkeyAuthentication no", "would take no public key"),
            ("ListenAddress 127.0.0.1", "would not listen at 10.87.0.31 port 22"),
            ("AllowUsers somebodyelse admin@192.0.2.0/24", "AllowUsers does not name them"),
        ):
            assert why in said(line) and f"{foreign}:" in said(line), line
        done = run(pair)  # with the last of them
        assert done.returncode == 1 and "AllowUsers does not name them" in done.stderr and f"{foreign}:1:" in done.stderr
        assert ask(pair, f"[ -e {KEPT} ] || echo none").strip() == "none", "nothing was changed"
        assert said(f"AllowUsers somebodyelse *@{CONTROLLER}") == said("AllowGroups wheel sudo") == ""
    finally:
        ask(pair, f"rm -f {foreign}")
    assert "confirmed by" in run(pair).stderr


def test_a_key_or_the_sudo_of_the_one_who_connects_is_put_back(pair, tmp_path):
    own = lab_key()
    assert "confirmed by" in run(pair, "--data", administrators(own)).stderr
    before = ask(pair, STATE)
    other = own.replace(own.split()[1][-8:], "AAAAAAAA")
    # Which key connects can't be known beforehand where ssh_config or an agent has it.
    config = tmp_path / "ssh_config"
    config.write_text(f"Host *\n  IdentityFile {settings.SSH_KEY}\n")
    unsaid = ("--data", "ssh_user=anna", "--data", "ssh_key=", "--data", f"ssh_config_file={config}")
    put_back(run(pair, *unsaid, "--data", administrators(other)), "/home/anna/.ssh/authorized_keys")
    done = run(pair, "--data", "ssh_user=anna", "--data", administrators())
    put_back(done, "/etc/sudoers.d/groundwork")
    assert "password is required" in done.stderr
    assert ask(pair, STATE) == before
    assert ask(pair, LEFT) == ""
    assert "confirmed by" in run(pair, "--data", administrators()).stderr, "the ssh_user of the inventory keeps its sudo"


def test_a_run_killed_before_it_could_confirm_is_put_back_and_the_next_waits_for_that(pair):
    # Long enough for the next run to come while it is pending, on a slow machine too.
    change = ("--data", f'base_ssh_sources=["{CONTROLLER}"]', "--data", "base_confirm_seconds=25")
    before = ask(pair, STATE)
    kill_at("Base | sshd", pair, *change)
    assert f"saddr {CONTROLLER}" in ask(pair, "nft list table inet groundwork"), "killed after the rules were loaded"
    done = run(pair, *change)
    assert "waiting for another run's change" in done.stderr and "confirmed by a new connection" in done.stderr
    assert "put back, because" in ask(pair, "journalctl -u groundwork-unconfirmed -o cat -n 5")
    assert ask(pair, LEFT) == ""
    assert "confirmed by" in run(pair).stderr
    assert ask(pair, STATE) == before


def test_a_host_that_loses_power_before_the_confirmation_comes_back_with_the_old(pair, broken):
    before = ask(pair, STATE)
    kill_at("Base | sshd", pair, "--data", "base_confirm_seconds=600", where=broken(NO_NEW_CONNECTION))
    hosts.stop(hosts.known()["lockout1"])
    pair.up()  # it comes up only where we can log in
    assert ask(pair, STATE) == before
    assert ask(pair, LEFT) == ""
    assert "put back, because" in ask(pair, "journalctl -b -u groundwork-rollback -o cat")
    assert "] Success" not in run(pair).stderr


def test_a_port_that_the_next_run_could_not_come_in_by_is_refused_or_put_back_and_a_good_one_confirmed(pair, tmp_path):
    before = ask(pair, STATE)
    known = tmp_path / "known_hosts"
    known.write_text(settings.KNOWN_HOSTS.read_text())
    here = ("--data", f"ssh_known_hosts_file={known}")
    move = ("--data", "base_ssh_port=2222", "--data", "ssh_port=22", *here)
    done = run(pair, *move)  # it knows the host at port 22 only, and strict it is
    assert done.returncode == 1 and "sshd was not moved from port 22 to 2222, and nothing was changed" in done.stderr
    assert "] Success" not in done.stderr and ask(pair, STATE) == before
    copy = next(line.split("run again: ")[1] for line in done.stderr.splitlines() if "run again: " in line)

    other = next(line for line in known.read_text().splitlines() if line.startswith("10.87.0.32") and "ed25519" in line)
    known.write_text(f"{known.read_text()}[10.87.0.31]:2222 {other.split(' ', 1)[1]}\n")
    done = run(pair, *move)  # another's key there: seen only by who knocks
    put_back(done, "00-groundwork.conf", "the live firewall")
    assert "its host key has changed" in done.stderr
    assert ask(pair, STATE) == before

    known.write_text(settings.KNOWN_HOSTS.read_text())
    subprocess.run(["bash", "-c", copy], check=True)  # as it was said
    assert "confirmed by a new connection to 10.87.0.31 port 2222" in run(pair, *move).stderr
    arrived = ("--data", "base_ssh_port=2222", "--data", "ssh_port=2222", *here)
    done = run(pair, *arrived)  # and the door at 22 is closed
    assert "confirmed by a new connection to 10.87.0.31 port 2222" in done.stderr
    assert "] Success" not in run(pair, *arrived).stderr


@pytest.fixture(scope="module")
def published(pair):
    """A container on lockout2 that serves the web, published to everybody who may."""
    ask(pair, MAKE_IMAGE, "lockout2")
    ask(
        pair,
        f"docker run --detach --name web --publish 0.0.0.0:{PORT}:8080 groundwork-test /bin/busybox httpd -f -p 8080",
        "lockout2",
    )


def answers(url: str) -> int:
    return requests.get(url, verify=False, timeout=10).status_code


def test_nginx_and_docker_restart_after_a_change_of_the_firewall(pair, published):
    url = f"http://10.87.0.32:{PORT}/"
    with pytest.raises(requests.RequestException):
        requests.get(url, timeout=2)
    flow = json.dumps([{"source": "internet", "role": "docker", "port": PORT}])
    done = run(pair, "--data", f"flows={flow}", host="lockout2")
    assert "confirmed by a new connection to 10.87.0.32" in done.stderr
    assert answers(url) == 404
    for restarted in ("true", "systemctl restart nginx", "systemctl restart docker", "docker restart -t 1 web"):
        ask(pair, restarted, "lockout2")
        assert answers(url) == 404, restarted
        assert answers("https://10.87.0.32/") < 600, restarted
        # Out by Docker's address translation, and a name by the name server that the container was given.
        ask(pair, f"docker exec web /bin/busybox nc -w 5 {CONTROLLER} {settings.REPOSITORY_PORT} </dev/null", "lockout2")
        assert resolved(pair), restarted


def resolved(stack: Lab) -> bool:
    """Whether a container resolves the name of the first package mirror, as its host does."""
    mirror = "$(grep -rhoE 'https?://[^/ ]+' /etc/apt/sources.list* | head -n 1 | cut -d/ -f3)"
    said = ask(stack, f"getent hosts {mirror} >/dev/null || exit 0; docker exec web /bin/busybox nslookup {mirror} && echo found", "lockout2")
    return said == "" or "found" in said
