"""Data in the cloud, a box at the office behind NAT, WireGuard between them; and the link is cut for a minute."""

from __future__ import annotations

import json
import time

import pytest
from tests.lab.conftest import Lab
from tests.lab.test_demo import verified

from lab.network import cut
from lab.settings import OFFICE_PREFIX, PREFIX

CLOUD, BOX = f"{PREFIX}.101", f"{OFFICE_PREFIX}.101"
STRANGERS = {"desk": f"{OFFICE_PREFIX}.102", "neighbour": f"{PREFIX}.102"}
READINGS, MORE = 100_000, 40_000
PYTHON = "/srv/training/current/.venv/bin/python"
AS_TRAINING = "sudo systemd-run --quiet --uid=training -p EnvironmentFile=/etc/training/environment -p WorkingDirectory=/srv/training/current"
ASK = "curl -sS --fail-with-body -m 5 localhost:8100"
QUESTION = """-H 'Content-Type: application/json' -d '{"meter_id": "meter-3", "timestamp": "2026-11-24T10:00:00"}'"""


class Hybrid(Lab):
    """The two sites, and who has no business with them."""

    strangers: Lab
    link: dict[str, str]
    """Host -> its address on the link."""

    def python(self, code: str) -> str:
        """What a program prints that speaks with MongoDB as the jobs do; `d` is the database."""
        return self.ssh("box-office", f"{AS_TRAINING} --pipe --wait {PYTHON} -c \"from forecast.store import database; d = database(); {code}\"").stdout.strip()

    def train(self) -> None:
        self.ssh("box-office", "sudo systemctl start --no-block training-forecast")

    def status(self) -> str:
        return self.ssh("box-office", "systemctl show -P StatusText training-forecast").stdout.strip()

    def predict(self) -> dict:
        return json.loads(self.ssh("box-office", f"{ASK}/predict {QUESTION}").stdout)

    def published(self, seconds: int, but: str = "") -> str:
        """The version that the API answers from, once it is another than that."""
        return until(lambda: _version(self) not in ("", but) and _version(self), seconds, self.status)


def _version(hybrid: Hybrid) -> str:
    said = hybrid.ssh("box-office", f"{ASK}/model", check=False)
    return json.loads(said.stdout)["version"] if said.returncode == 0 else ""


def until(answer, seconds: int, why):
    """A true answer, waited for."""
    end = time.monotonic() + seconds
    while not (found := answer()):
        assert time.monotonic() < end, why()
        time.sleep(1)
    return found


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory) -> Hybrid:
    """Two bare hosts and one run; a desk at the office and a neighbour in the cloud, which have nothing to do with it."""
    found = Hybrid("inventories/lab_hybrid.py")
    path = tmp_path_factory.mktemp("hybrid") / "strangers_lab.py"
    found.strangers = Lab.made(path, f"from lab import lab_host\nbase = [lab_host(*item) for item in {list(STRANGERS.items())}]\n")
    found.fresh()
    assert "nothing heard" not in found.deploy().stderr
    show = "ip -4 -o addr show wg-groundwork | awk '{print $4}' | cut -d/ -f1"
    found.link = {host: found.ssh(host, show).stdout.strip() for host in ("data-cloud", "box-office")}
    return found


def test_a_second_run_changes_neither(hybrid):
    assert hybrid.changes() == []


def test_the_two_run_different_distributions(hybrid):
    names = {hybrid.ssh(host, ". /etc/os-release; echo $VERSION_CODENAME").stdout.strip() for host in hybrid.link}
    assert names == {"bookworm", "trixie"}


def test_they_are_what_their_groups_promise(hybrid):
    verified(hybrid.inventory)


def _reaches(stack: Lab, host: str, address: str, port: int = 27017) -> bool:
    return stack.ssh(host, f"timeout 3 bash -c 'exec 3<>/dev/tcp/{address}/{port}'", check=False).returncode == 0


def test_nothing_but_the_link_leads_to_mongodb(hybrid):
    listening = hybrid.ssh("data-cloud", "ss -Hltn 'sport = :27017' | awk '{print $4}'").stdout.split()
    assert sorted(listening) == sorted(["127.0.0.1:27017", f"{hybrid.link['data-cloud']}:27017"])
    assert _reaches(hybrid, "box-office", hybrid.link["data-cloud"])
    assert not _reaches(hybrid, "box-office", CLOUD)
    for stranger in STRANGERS:
        assert _reaches(hybrid.strangers, stranger, CLOUD, 22)
        assert not _reaches(hybrid.strangers, stranger, CLOUD)
    # A neighbour can bring packets for the link's address to the host, and under the box's address, too.
    there, box = hybrid.link["data-cloud"], hybrid.link["box-office"]
    hybrid.strangers.ssh("neighbour", f"sudo ip route add {there} via {CLOUD}")
    assert not _reaches(hybrid.strangers, "neighbour", there)
    hybrid.strangers.ssh("neighbour", f"sudo ip address add {box}/32 dev host0; sudo ip route replace {there} via {CLOUD} src {box}")
    hybrid.ssh("data-cloud", f"sudo ip route add {box} via {STRANGERS['neighbour']}")  # even if it were answered
    try:
        assert not _reaches(hybrid.strangers, "neighbour", there)
    finally:
        hybrid.ssh("data-cloud", f"sudo ip route delete {box} via {STRANGERS['neighbour']}")


def test_nobody_comes_into_the_office(hybrid):
    assert not _reaches(hybrid, "data-cloud", BOX, 22)
    assert not _reaches(hybrid, "data-cloud", hybrid.link["box-office"], 6379)


def test_who_is_connected_by_the_link_is_not_cut_off(hybrid):
    once = f"exec 3<>/dev/tcp/{hybrid.link['box-office']}/22; sleep 20"  # who does not log in is put out after 30 s
    hybrid.ssh("data-cloud", f"sudo systemd-run --quiet --unit=held bash -c 'for i in 1 2 3 4 5 6; do {once}; done'")
    before = hybrid.ssh("box-office", "sudo sha256sum /etc/wireguard/wg-groundwork.conf").stdout
    done = hybrid.deploy("--data", "link_mtu=1380", check=False)
    assert done.returncode != 0 and done.stderr.count("somebody is connected by ssh over the link") == 2
    assert hybrid.ssh("box-office", "sudo sha256sum /etc/wireguard/wg-groundwork.conf").stdout == before
    hybrid.ssh("data-cloud", "sudo systemctl stop held")
    assert hybrid.changes() == []


def test_a_job_learns_from_the_cloud_and_the_api_answers(hybrid):
    hybrid.ssh("box-office", f"{AS_TRAINING} --pipe --wait {PYTHON} -m forecast.seed {READINGS}")
    assert hybrid.ssh("box-office", f"{ASK}/ready", check=False).returncode != 0
    hybrid.train()
    version = hybrid.published(60)
    assert json.loads(hybrid.ssh("box-office", f"{ASK}/model").stdout)["metrics"]["readings"] == READINGS
    assert hybrid.predict()["version"] == version and len(hybrid.predict()["values"]) == 1
    told = until(lambda: hybrid.python(f"print((d.models.find_one('forecast/{version}') or {{}}).get('host', ''))"), 30, hybrid.status)
    assert told == "box-office"


def test_the_link_is_cut_for_a_minute(hybrid):
    before = _version(hybrid)
    processes = {host: hybrid.ssh(host, "systemctl show -P MainPID mongod inference redis-server").stdout for host in hybrid.link}
    hybrid.ssh("box-office", f"{AS_TRAINING} --unit=writer {PYTHON} -m forecast.seed {MORE}")
    until(lambda: int(hybrid.python("print(d.meter_readings.estimated_document_count())")) > READINGS, 20, hybrid.status)
    with cut(BOX):
        hybrid.train()
        end = time.monotonic() + 60
        while time.monotonic() < end:
            assert hybrid.predict()["version"] == before  # local, and it answers all the while
            time.sleep(2)
        assert hybrid.status().startswith("MongoDB can't be reached")
        assert "active" == hybrid.ssh("data-cloud", "systemctl is-active mongod").stdout.strip()
    until(lambda: hybrid.ssh("box-office", "systemctl is-active writer", check=False).stdout.strip() != "active", 60, hybrid.status)
    written = "sum(1 for _ in d.meter_readings.aggregate([{'\\$group': {'_id': '\\$_id'}}]))"  # a batch may have been told twice
    assert int(hybrid.python(f"print({written})")) == READINGS + MORE
    version = hybrid.published(60, but=before)
    until(lambda: hybrid.python(f"print((d.models.find_one('forecast/{version}') or {{}}).get('host', ''))"), 30, hybrid.status)
    now = {host: hybrid.ssh(host, "systemctl show -P MainPID mongod inference redis-server").stdout for host in hybrid.link}
    assert now == processes
    assert hybrid.changes() == []


def test_mongodb_starts_without_the_link(hybrid):
    hybrid.ssh("data-cloud", "sudo systemctl stop wg-quick@wg-groundwork; sudo systemctl restart mongod")
    wanted = f"{hybrid.link['data-cloud']}:27017"
    until(lambda: wanted in hybrid.ssh("data-cloud", "ss -Hltn 'sport = :27017'").stdout, 30, lambda: "mongod does not listen")
    assert hybrid.changes() == ["Private link | Service"]
    until(lambda: _reaches(hybrid, "box-office", hybrid.link["data-cloud"]), 40, hybrid.status)


def test_both_boot_while_the_link_is_cut(hybrid):
    version = _version(hybrid)
    started = {host: hybrid.ssh(host, "cut -d' ' -f22 /proc/1/stat").stdout for host in hybrid.link}
    with cut(BOX):
        for host in hybrid.link:
            hybrid.ssh(host, "sudo systemctl reboot", check=False)
        for host, before in started.items():
            until(lambda: hybrid.ssh(host, "cut -d' ' -f22 /proc/1/stat", check=False).stdout not in ("", before), 90, lambda: f"{host} does not boot")
        until(lambda: _version(hybrid) == version, 60, hybrid.status)
        until(lambda: hybrid.ssh("data-cloud", "systemctl is-active mongod", check=False).stdout.strip() == "active", 60, hybrid.status)
    until(lambda: _reaches(hybrid, "box-office", hybrid.link["data-cloud"]), 40, hybrid.status)
    for host in hybrid.link:
        assert hybrid.ssh(host, "systemctl is-system-running --wait", check=False).stdout.strip() == "running"
    assert hybrid.changes() == []
