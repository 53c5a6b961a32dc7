"""Who reaches what: every port that is not in a flow is closed, tried from another host."""

from __future__ import annotations

import ipaddress
import json

import pytest

SCAN = """
import asyncio, json, sys
address, seconds = sys.argv[1], float(sys.argv[2])
ports = json.loads(sys.argv[3]) or range(1, 65536)
found = []
limit = asyncio.Semaphore(4000)

async def knock(port):
    async with limit:
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(address, port), seconds)
        except (OSError, asyncio.TimeoutError):
            return
        found.append(port)
        writer.close()

async def main():
    await asyncio.gather(*(knock(port) for port in ports))

import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
asyncio.run(main())
print(json.dumps(sorted(found)))
"""


def _open_to(here, address: str) -> set[int]:
    """TCP ports that the flows open to an address."""
    found = set()
    for opening in [opening for opening in here.openings() if opening.protocol == "tcp"]:
        networks = [ipaddress.ip_network(n) for ns in opening.sources.values() for n in ns or []]
        known = [n for n in networks if n.version == ipaddress.ip_address(address).version]
        if opening.everybody or any(ipaddress.ip_address(address) in network for network in known):
            found.add(opening.port)
    return found


@pytest.mark.slow
def test_every_port_not_in_a_flow_is_closed(base, outside):
    if not base.is_lab:
        pytest.skip("scans all 65535 ports: only on lab hosts")
    address = base.here.private_address
    scanned, opened = set(json.loads(outside.run(SCAN, address, "1.5", "[]"))), _open_to(base.here, outside.address)
    # 65535 knocks at once are many for a busy machine: those that should be answered are made once more.
    scanned |= set(json.loads(outside.run(SCAN, address, "5", json.dumps(sorted(opened)))))
    assert scanned == opened


def test_what_listens_and_is_not_in_a_flow_is_closed(base, outside):
    ports = base.listening()
    if outside.address == "the controller":
        pytest.skip("the controller may be allowed in: name a machine with --outside")
    reached = set(json.loads(outside.run(SCAN, base.here.private_address, "2", json.dumps(ports))))
    assert reached <= _open_to(base.here, outside.address), "reached from outside"


def test_the_hosts_reach_each_other_by_flows_alone(base, hosts):
    """From one host, every port on which another listens: those of its flows answer, and no other."""
    others = [host for host in hosts.values() if host.name != base.name]
    if not others:
        pytest.skip("one host")
    own = [*base.addresses(), *([base.here.link_address] if base.here.link_address else [])]
    forbidden, allowed = set(), set()
    for other in others:
        listening = set(other.listening())
        linked = [other.here.link_address] if base.here.is_linked(other.here) else []
        for address in [*other.addresses(), *linked]:
            sources = [source for source in own if (":" in source) == (":" in address)]
            if other.here.link_address:  # whose addresses count on the link alone
                sources = [source for source in sources if (source == base.here.link_address) == (address == other.here.link_address)]
            opened = {port for source in sources for port in _open_to(other.here, source)} & listening
            forbidden |= {(address, port) for port in listening - opened}
            if address == base.here.address_of(other.here):  # by which the flows go
                allowed |= {(address, port) for port in opened}
    reached = set(base.reaches(sorted(allowed | forbidden)))
    assert sorted(reached & forbidden) == [], f"{base.name} reaches what no flow lets it reach"
    assert sorted(allowed - reached) == [], f"{base.name} does not reach what its flows let it reach"


@pytest.mark.slow
def test_the_same_over_ipv6(base, outside):
    found = base.check("ip -6 -o addr show scope global | awk '{print $4}' | cut -d/ -f1").split()
    if not found or not base.is_lab:
        pytest.skip("no global IPv6 address" if not found else "scans: only on lab hosts")
    everybody = {opening.port for opening in base.here.openings() if opening.everybody and opening.protocol == "tcp"}
    scanned = set(json.loads(outside.run(SCAN, found[0], "1.5", "[]")))
    assert scanned <= everybody


def test_the_firewall_is_ours_alone_and_on(base):
    tables = base.check("nft list tables").splitlines()
    assert "table inet groundwork" in tables
    ruleset = base.check("nft list table inet groundwork")
    assert "policy drop" in ruleset
    assert "ct status dnat" in ruleset
