"""An inventory from EC2's tags: moto is the account, and lab hosts stand in for its instances."""

from __future__ import annotations

import socket

import boto3
import pytest
from tests.aws import credentials, launch, moto_server
from tests.lab.conftest import Lab

from lab import hosts

ONE, TWO = "10.87.0.151", "10.87.0.152"

# What a production inventory has in `data` is its login; this one has the lab's.
INVENTORY = f"""
from groundwork import ec2
from lab import lab_host

_data = {{**lab_host("any", "{ONE}")[1], "base_first_run_upgrade": False, "flows": [{{"source": "app", "role": "redis", "port": 6379}}]}}
for _name in ("ssh_hostname", "private_address"):
    del _data[_name]
globals().update(ec2.hosts(env="lab-ec2", address=__ADDRESS__, data={{**_data, **__MORE__}}))
"""
RULES = "sudo nft list table inet groundwork"


@pytest.fixture(scope="module")
def account(tmp_path_factory):
    """Two hosts, and two instances with their addresses; the id of the second."""
    directory = tmp_path_factory.mktemp("ec2")
    listed = f'from lab import lab_host\nbase = [lab_host("ec2one", "{ONE}"), lab_host("ec2two", "{TWO}")]\n'
    Lab.made(directory / "hosts_lab.py", listed)
    with moto_server() as url, pytest.MonkeyPatch.context() as patch:
        for name, value in {**credentials(url), "XDG_CACHE_HOME": str(directory / "cache")}.items():
            patch.setenv(name, value)
        launch("ec2one", "redis", ONE, env="lab-ec2")
        yield directory, launch("ec2two", "base", TWO, env="lab-ec2")


def _inventory(directory, address: str = "private", **more: object) -> Lab:
    path = directory / "tags_lab.py"
    path.write_text(INVENTORY.replace("__ADDRESS__", repr(address)).replace("__MORE__", repr(more)))
    return Lab(str(path))


def _forget(directory) -> None:
    """The minute is over."""
    for file in (directory / "cache/groundwork/ec2").iterdir():
        file.unlink()


def test_tags_are_an_inventory(account):
    directory, _ = account
    tags = _inventory(directory)
    tags.deploy()
    assert tags.changes() == []
    assert tags.ssh("ec2one", "redis-cli ping").stdout.startswith("NOAUTH")
    assert tags.ssh("ec2two", "ls /etc/redis", check=False).returncode != 0
    assert "ec2two" in tags.ssh("ec2one", f"getent hosts {TWO}").stdout


def test_a_host_that_sleeps_may_still_come_in_when_it_wakes(account):
    directory, second = account
    client = boto3.client("ec2")
    client.create_tags(Resources=[second], Tags=[{"Key": "role", "Value": "app"}])
    client.stop_instances(InstanceIds=[second])
    _forget(directory)
    tags = _inventory(directory)
    done = tags.deploy()
    assert done.stderr.count(f"ec2two ({second}) is stopped: left out") == 1 and "[ec2two]" not in done.stderr
    assert TWO in tags.ssh("ec2one", RULES).stdout
    client.terminate_instances(InstanceIds=[second])
    _forget(directory)
    tags.deploy()
    assert TWO not in tags.ssh("ec2one", RULES).stdout
    assert tags.changes() == []


def test_with_port_22_closed_it_is_reached_from_within(account, monkeypatch):
    """As SSM does it: something on the host connects to its loopback, and ssh is given that as a ProxyCommand."""
    directory, _ = account
    home = directory / "home"
    (home / ".ssh").mkdir(parents=True)
    inside = _first_process("ec2one")
    pipe = "exec 3<>/dev/tcp/127.0.0.1/%p; cat <&3 & cat >&3; kill $!"
    (home / ".ssh/config").write_text(f"Host i-*\n    ProxyCommand nsenter -n -t {inside} bash -c '{pipe}'\n")
    monkeypatch.setenv("HOME", str(home))
    tags = _inventory(directory, "ssm", base_ssh_sources=["127.0.0.1/32"], ssh_strict_host_key_checking="accept-new",
                      ssh_known_hosts_file=str(directory / "known_hosts"))  # fmt: skip
    tags.deploy()
    with socket.socket() as outside, pytest.raises(OSError):
        outside.settimeout(3)
        outside.connect((ONE, 22))
    assert tags.changes() == []


def _first_process(host: str) -> str:
    """The controller's number for a host's process 1."""
    for path in hosts.known()[host].cgroup.rglob("cgroup.procs"):
        for pid in path.read_text().split():
            numbers = next(line for line in open(f"/proc/{pid}/status") if line.startswith("NSpid:")).split()[1:]
            if len(numbers) > 1 and numbers[-1] == "1":
                return pid
    raise AssertionError(f"{host} does not run")
