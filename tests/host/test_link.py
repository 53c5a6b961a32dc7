"""The private link: who is on it, that they hear each other, and that its key is root's alone."""

from __future__ import annotations

import json
import time

import pytest

from groundwork.topology import LINK_INTERFACE
from groundwork.wireguard import public_key
from tasks.link import CONFIGURATION, UNIT


def _dump(link) -> list[list[str]]:
    """`wg show … dump`: the interface, then its peers."""
    return [line.split("\t") for line in link.check(f"wg show {LINK_INTERFACE} dump").splitlines()]


def test_the_interface_has_its_address_and_its_key(link):
    settings = link.settings("link")
    [interface] = json.loads(link.check(f"ip -j addr show {LINK_INTERFACE}"))
    found = [f"{item['local']}/{item['prefixlen']}" for item in interface["addr_info"] if item["scope"] == "global"]
    assert found == [settings.interface(link.here)]
    assert _dump(link)[0][1] == public_key(link.secrets.value(settings.secret_of(link.here)))


def test_it_knows_its_peers_and_nobody_else(link):
    settings = link.settings("link")
    wanted = {
        public_key(link.secrets.value(settings.secret_of(peer))): f"{peer.link_address}/{128 if ':' in peer.link_address else 32}"
        for peer in settings.peers(link.here)
    }
    assert {peer[0]: peer[3] for peer in _dump(link)[1:]} == wanted


def test_each_peer_has_been_heard_of_late(link):
    """A session is renewed every two minutes, by who dials with every sign of life (WireGuard's paper, 6.1)."""
    if not (peers := _dump(link)[1:]):
        pytest.skip("it has no peers")
    now = time.time()
    assert all(now - int(peer[4]) < 200 for peer in peers), [peer[3:5] for peer in peers]


def test_it_listens_only_where_it_is_dialed(link):
    settings = link.settings("link")
    fixed = _dump(link)[0][2] == str(settings.port)
    assert fixed == link.here.is_dialed


def test_the_key_is_roots_alone_and_the_link_comes_with_a_boot(link):
    assert link.check(f"stat -c '%U:%G %a' {CONFIGURATION} /etc/wireguard").split("\n")[:2] == ["root:root 600", "root:root 700"]
    assert link.check(f"systemctl is-enabled {UNIT}").strip() == "enabled"
