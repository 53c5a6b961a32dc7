"""Four hosts: tiers that wait for each other, flows between hosts, and a host that dies."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time

import pytest
import requests
from tests.lab.conftest import ROOT, Lab

pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS")  # a placeholder certificate is self-signed
URL = "https://10.87.0.21"
APPS = {"app1": "10.87.0.22:8080", "app2": "10.87.0.23:8080"}
TIERS = [("All roles", "Base", "Docker"), ("MongoDB", "Redis", "ChromaDB"), ("Application",), ("Nginx",)]
DRIFT = "sudo sh -c 'echo drift >>/etc/systemd/journald.conf.d/groundwork.conf'"


class Cluster(Lab):
    """The cluster, and what its first run printed."""

    printed = ""

    def drifted(self, host: str) -> bool:
        return "drift" in self.ssh(host, "cat /etc/systemd/journald.conf.d/groundwork.conf").stdout

    def started(self, host: str, unit: str) -> int:
        """When a unit became active, in microseconds of the kernel's clock, which all lab hosts share."""
        return int(self.ssh(host, f"systemctl show -P ActiveEnterTimestampMonotonic {unit}").stdout)


@pytest.fixture(scope="module")
def cluster() -> Cluster:
    """Four bare hosts, and one run."""
    found = Cluster("inventories/lab_cluster.py")
    found.fresh()
    found.printed = found.deploy().stderr
    return found


def _happened(printed: str) -> list[tuple[str, str]]:
    """(role, host) of each operation that a host went through, in the order in which it was printed.

    Where there are several hosts the operation's name is in the line, and else in one before it.
    """
    found, heading = [], ""
    for line in printed.splitlines():
        if match := re.match(r"--> Starting operation: (.*?)( \||$)", line):
            heading = match[1]
        elif match := re.match(r"\s+\[(\w+)\]\s+(?:([\w ]+) \| .*: )?(Success|No changes)$", line):
            found.append((match[2] or heading, match[1]))
    return found


def test_no_tier_began_before_the_one_before_had_ended(cluster):
    tiers = {role: number for number, roles in enumerate(TIERS) for role in roles}
    happened = [(tiers[role], host) for role, host in _happened(cluster.printed) if role in tiers]
    assert {host for tier, host in happened if tier == 0} == {"edge1", "app1", "app2", "data1"}
    assert {host for tier, host in happened if tier == 1} == {"data1"}
    assert {host for tier, host in happened if tier == 2} == {"app1", "app2"}
    assert {host for tier, host in happened if tier == 3} == {"edge1"}
    order = [tier for tier, _ in happened]
    assert order == sorted(order)


def test_the_services_say_the_same_of_their_starts(cluster):
    data = [cluster.started("data1", unit) for unit in ("mongod", "redis-server", "chromadb")]
    apps = [cluster.started(host, "app") for host in APPS]
    assert 0 < max(data) < min(apps) <= max(apps) < cluster.started("edge1", "nginx")


def test_a_second_run_changes_no_host(cluster):
    assert cluster.changes() == []


def test_the_edge_asks_both_applications(cluster):
    for _ in range(8):
        assert _get("/health").status_code == 200
    log = cluster.ssh("edge1", "sudo tail -n 8 /var/log/nginx/access.json").stdout
    assert {json.loads(line)["upstream"] for line in log.splitlines()} == set(APPS.values())


def test_what_one_application_stores_the_other_reads(cluster):
    """Asked from the edge, which alone has a flow to them."""
    one, other = APPS.values()
    item = json.dumps({"name": "meter 7", "text": "a meter in the cellar of the cluster"})
    stored = cluster.ssh("edge1", f"curl -sf http://{one}/items -H 'Content-Type: application/json' -d '{item}'").stdout
    read = cluster.ssh("edge1", f"curl -sf http://{other}/items/{json.loads(stored)['id']}").stdout
    assert json.loads(read)["name"] == "meter 7"
    found = cluster.ssh("edge1", f"curl -sf 'http://{other}/search?q=cellar&limit=3'").stdout
    assert json.loads(stored)["id"] in found


def test_the_hosts_are_what_their_groups_promise(cluster):
    """And with it, from each host to each other one: what the flows allow is open, and the rest closed."""
    command = ["-m", "pytest", "-q", "tests/host", "--inventory", cluster.inventory, "-m", "not slow"]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-6000:]


def test_one_host_alone(cluster):
    """--limit: its drift is put right, and no other host is so much as looked at."""
    for host in ("app1", "data1"):
        cluster.ssh(host, DRIFT)
    done = cluster.deploy("--limit", "app1")
    assert {host for _, host in _happened(done.stderr)} == {"app1"}
    assert not cluster.drifted("app1") and cluster.drifted("data1")
    assert {host for _, host in _happened(cluster.deploy().stderr)} == {"edge1", "app1", "app2", "data1"}
    assert not cluster.drifted("data1")


def test_an_application_host_dies_and_the_edge_still_serves(cluster):
    cluster.ssh("app2", "sudo systemctl poweroff", check=False)
    _until_gone(cluster, "app2")
    answers = [_get("/ready").status_code for _ in range(6)]
    assert answers == [200] * 6


def test_a_run_stops_at_once_and_says_which_host_is_dead(cluster):
    cluster.ssh("edge1", DRIFT)
    begun = time.monotonic()
    done = cluster.deploy(check=False)
    assert done.returncode != 0 and time.monotonic() - begun < 60
    assert "[app2]" in done.stderr and "Starting operation" not in done.stderr
    assert "Traceback" not in done.stderr
    assert cluster.drifted("edge1")


def test_with_fail_percent_the_others_go_on(cluster):
    """The status tells that a host was left out."""
    done = cluster.deploy("--fail-percent", "25", check=False)
    assert done.returncode != 0
    assert {host for _, host in _happened(done.stderr)} == {"edge1", "app1", "data1"}
    assert not cluster.drifted("edge1")


def test_it_comes_back_and_there_is_nothing_to_do(cluster):
    cluster.up()
    assert cluster.changes() == []
    for _ in range(8):
        assert _get("/ready").status_code == 200


def _get(path: str) -> requests.Response:
    return requests.get(f"{URL}{path}", verify=False, timeout=20)


def _until_gone(cluster: Cluster, host: str) -> None:
    for _ in range(60):
        if cluster.ssh(host, "true", check=False).returncode:
            return
        time.sleep(0.5)
    pytest.fail(f"{host} did not power off")
