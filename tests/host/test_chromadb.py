"""ChromaDB: where it listens, what it keeps where, and that it speaks to nobody else."""

from __future__ import annotations

import ipaddress

import pytest
import requests

from tasks.chromadb import DATA, ENVIRONMENTS, UNIT, VERSION


@pytest.fixture(scope="module")
def url(chromadb):
    """Its API, through a tunnel."""
    settings = chromadb.settings("chromadb")
    address = settings.listens_on(chromadb.here)
    with chromadb.tunnel(settings.port, {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(address, address)) as port:
        yield f"http://127.0.0.1:{port}/api/v2"


def test_its_heart_beats(url):
    assert requests.get(f"{url}/heartbeat", timeout=10).json()["nanosecond heartbeat"] > 0


def test_nobody_drops_everything_with_one_request(chromadb, url):
    if not chromadb.is_lab:
        pytest.skip("tries to drop everything: only on lab hosts")
    assert requests.post(f"{url}/reset", timeout=10).status_code == 403


def test_it_listens_where_it_was_told_and_nowhere_else(chromadb):
    settings = chromadb.settings("chromadb")
    listening = [line.split()[3] for line in chromadb.check("ss -Hltnp | grep '\"chroma\"'").splitlines()]
    address = settings.listens_on(chromadb.here)
    assert listening == [f"[{address}]:{settings.port}" if ":" in address else f"{address}:{settings.port}"]


def test_it_is_closed_to_those_without_a_flow(chromadb, outside):
    port = chromadb.settings("chromadb").port
    if outside.address == "the controller" or _has_a_flow(chromadb, outside.address):
        pytest.skip("the machine to knock from may be allowed in: name another with --outside")
    assert outside.reaches([(address, port) for address in chromadb.addresses()]) == []


def _has_a_flow(chromadb, address: str) -> bool:
    clients = chromadb.settings("chromadb").networks(chromadb.here)
    return any(ipaddress.ip_address(address) in ipaddress.ip_network(client) for client in clients)


def test_what_runs_is_what_is_installed(chromadb):
    # /api/v2/version is the API's version, 1.0.0 in every release of 1.x.
    ask = "from importlib.metadata import version; print(version('chromadb'))"
    assert chromadb.check(f'{ENVIRONMENTS}/current/bin/python -c "{ask}"').strip() == VERSION
    current = chromadb.check(f"readlink -f {ENVIRONMENTS}/current").strip()
    mapped = chromadb.check(f"awk '{{print $6}}' /proc/$(systemctl show -P MainPID {UNIT})/maps")
    assert f"{current}/" in mapped


def test_it_runs_as_its_own_user_and_has_its_share_of_memory(chromadb):
    assert chromadb.check(f"ps -o user= -p $(systemctl show -P MainPID {UNIT})").strip() == "chromadb"
    assert "nologin" in chromadb.check("getent passwd chromadb")
    share = chromadb.here.memory_share("chromadb") * 1024 * 1024
    assert chromadb.check(f"systemctl show -P MemoryMax {UNIT}").strip() == str(share)


def test_it_writes_where_it_should_and_others_do_not_read_it(chromadb):
    opened = chromadb.check(f"readlink /proc/$(systemctl show -P MainPID {UNIT})/fd/*").splitlines()
    assert f"{DATA}/chroma.sqlite3" in opened
    assert chromadb.check(f"stat -c '%U:%G %a' {DATA}").strip() == "chromadb:chromadb 750"
    assert chromadb.check(f"find {DATA}/ -mindepth 1 -perm /o+rwx; find {DATA}/ ! -user chromadb") == ""


def test_it_tells_nobody_about_itself(chromadb):
    said = chromadb.check(f"tr '\\0' '\\n' </proc/$(systemctl show -P MainPID {UNIT})/environ")
    assert "ANONYMIZED_TELEMETRY=False" in said.splitlines()
    limited = chromadb.check(f"systemctl show -p IPAddressDeny -p IPAddressAllow {UNIT}")
    limits = dict(line.split("=", 1) for line in limited.splitlines())
    assert set(limits["IPAddressDeny"].split()) == {"0.0.0.0/0", "::/0"}
    allowed = {ipaddress.ip_network(item) for item in limits["IPAddressAllow"].split()}
    clients = chromadb.settings("chromadb").networks(chromadb.here)
    assert allowed == {ipaddress.ip_network(item) for item in ["127.0.0.0/8", "::1", *clients]}
