"""Who is where and who may reach whom."""

from __future__ import annotations

from tests.unit.conftest import make_topology

from groundwork.preflight import setting_errors
from groundwork.topology import external

HOSTS = {
    "edge1": (["nginx"], {}),
    "app1": (["app"], {"app_source": "examples/app"}),
    "data1": (["mongodb", "redis"], {}),
}


def test_a_flow_opens_the_port_to_those_hosts_alone():
    data = make_topology(HOSTS).hosts["data1"]
    openings = {opening.port: opening for opening in data.openings()}
    assert openings[27017].networks(4) == ["10.0.0.2"]
    assert not openings[27017].everybody
    assert openings[27017].networks(6) == []


def test_everybody_reaches_the_edge():
    edge = make_topology(HOSTS).hosts["edge1"]
    assert {80, 443} <= {opening.port for opening in edge.openings() if opening.everybody}


def test_on_one_host_nothing_is_opened_between_roles():
    one = make_topology({"one": (["mongodb", "redis", "app", "nginx"], {"app_source": "examples/app"})}).hosts["one"]
    assert {27017, 6379}.isdisjoint(opening.port for opening in one.openings())
    assert one.address("mongodb") == "127.0.0.1"


def test_another_host_is_found_by_its_private_address():
    assert make_topology(HOSTS).hosts["app1"].address("mongodb") == "10.0.0.3"


def test_an_added_flow_from_a_network():
    flows = [{"source": "192.0.2.0/24", "role": "mongodb", "port": 27017}]
    data = make_topology({**HOSTS, "data1": (["mongodb"], {"flows": flows})}).hosts["data1"]
    assert [o.networks(4) for o in data.openings() if o.port == 27017] == [["10.0.0.2", "192.0.2.0/24"]]


def test_clients_that_are_declared_as_external():
    data = {"externals": [external("office", networks=["198.51.100.0/24"])], "flows": [{"source": "office", "role": "redis", "port": 6379}]}
    here = make_topology({**HOSTS, "data1": (["redis"], data)}).hosts["data1"]
    assert "198.51.100.0/24" in [n for o in here.openings() if o.port == 6379 for n in o.networks(4)]


def test_a_service_that_is_declared_as_external():
    data = {"externals": [external("mongodb", host="db.example.org", port=27017, tls=True)], "app_source": "examples/app"}
    assert make_topology({"app1": (["app"], data)}).hosts["app1"].address("mongodb") == "db.example.org"


def test_memory_is_shared_by_weight_and_keeps_a_reserve():
    here = make_topology({"one": (["mongodb", "redis", "app", "nginx", "chromadb"], {"app_source": "x", "hardware_memory": 4096})}).hosts["one"]
    shares = {role: here.memory_share(role) for role in here.roles if here.topology.roles[role].memory_weight}
    assert sum(shares.values()) <= 4096 * 0.8
    assert shares["mongodb"] > shares["redis"]


def test_mongodb_alone_fits_into_one_gibibyte():
    topology = make_topology({"small": (["mongodb"], {"hardware_memory": 1024})})
    assert list(setting_errors(topology)) == []


def test_settings_of_a_host_do_not_leak_to_another():
    topology = make_topology({"a": (["redis"], {"redis_port": 7000}), "b": (["redis"], {})})
    ports = [host.settings(topology.roles["redis"]).port for host in topology.hosts.values()]
    assert ports == [7000, 6379]


