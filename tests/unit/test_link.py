"""Sites and the private link between them: who finds whom where, what is opened, and what is refused."""

from __future__ import annotations

import configparser

import pytest
from tests.unit.conftest import machine, make_topology

from dataclasses import replace

from groundwork.preflight import _combined
from groundwork.rows import File
from groundwork.templates import render
from groundwork.wireguard import private_key, public_key
from tasks.base import rules
from tasks.link import CONFIGURATION, Settings

CLOUD = {"link_address": "10.77.0.1", "link_endpoint": "203.0.113.5"}
OFFICE = {"site": "office", "link_address": "10.77.0.2", "app_source": "examples/app"}
USERS = {"mongodb_users": [{"name": "grid_user", "database": "urban_grid_ai"}]}


def hybrid(cloud: dict = CLOUD, office: dict = OFFICE, **more):
    """Data in the cloud (10.0.0.1), an application at the office (10.0.0.2) and one in the cloud (10.0.0.3)."""
    return make_topology(
        {
            "data1": (["mongodb", "redis", "link"], {**USERS, **cloud}),
            "box": (["app", "link", *more.get("box", [])], office),
            "app1": (["app"], {"app_source": "examples/app", **more.get("app1", {})}),
        }
    )


def errors(topology) -> list[str]:
    """What the roles say; `preflight` adds where a value is set."""
    return [error for here in topology.hosts.values() for error in _combined(here) if "app_source" not in error]


def test_a_host_is_found_by_what_leads_to_it():
    hosts = hybrid().hosts
    assert hosts["box"].address("mongodb") == "10.77.0.1"
    assert hosts["app1"].address("mongodb") == "10.0.0.1"
    assert hosts["data1"].address_of(hosts["box"]) == "10.77.0.2"
    assert hosts["app1"].address_of(hosts["box"]) is None


def test_the_nearest_of_two_is_used_and_opened():
    topology = hybrid(box=["redis"])
    assert topology.hosts["box"].address("redis") == "127.0.0.1"
    assert topology.hosts["app1"].address("redis") == "10.0.0.1"
    redis = {o.port: o for o in topology.hosts["data1"].openings()}[6379]
    assert redis.networks(4) == ["10.0.0.3"]
    assert topology.hosts["box"].binds(6379) == []


def test_mongodb_listens_where_its_clients_come_in():
    assert hybrid().hosts["data1"].binds(27017) == ["10.77.0.1", "10.0.0.1"]
    topology = make_topology({"data1": (["mongodb", "link"], {**USERS, **CLOUD}), "box": (["app", "link"], OFFICE)})
    assert topology.hosts["data1"].binds(27017) == ["10.77.0.1"]


def test_an_address_of_the_link_counts_on_its_interface_alone():
    here = hybrid().hosts["data1"]
    opening = next(opening for opening in here.openings() if opening.port == 27017)
    assert [rule.split(" tcp ")[0] for rule in rules(opening, "tcp dport", here)] == [
        "ip saddr { 10.0.0.3 }", 'iifname "wg-groundwork" ip saddr { 10.77.0.2 }',
    ]  # fmt: skip


def test_an_address_follows_from_the_name_alone():
    def addresses(*names: str) -> dict[str, str]:
        data = {"link_endpoint": "203.0.113.5"}
        return {name: here.link_address for name, here in make_topology({name: (["link"], data) for name in names}).hosts.items()}

    before, after = addresses("data1", "box"), addresses("aaa", "data1", "box")
    assert before.items() <= after.items() and len(set(after.values())) == 3
    assert all(address.startswith("10.77.") for address in after.values())


def test_nothing_is_opened_at_the_office():
    hosts = hybrid().hosts
    assert {(o.port, o.protocol) for o in hosts["box"].openings()} == {(22, "tcp")}
    assert (51820, "udp") in {(o.port, o.protocol) for o in hosts["data1"].openings()}
    [opening] = [o for o in hosts["data1"].openings() if o.protocol == "udp"]
    assert rules(opening, "udp dport", hosts["data1"]) == ['udp dport 51820 accept comment "link"']


def configuration(here) -> list[configparser.ConfigParser]:
    """Each section of the host's wg-quick configuration."""
    settings = here.settings(Settings)
    row = next(row for row in settings.files(here) if row.path == CONFIGURATION)
    assert isinstance(row, File) and row.secret and row.mode == "600"
    text = render(row, settings, here, secret=lambda name: f"value of {name}").decode()
    found = []
    for part in text.split("\n\n"):
        parser = configparser.ConfigParser()
        parser.read_string(part)
        found.append(parser)
    return found


def test_the_office_dials_and_the_cloud_listens():
    hosts = hybrid().hosts
    interface, peer = configuration(hosts["box"])
    assert "ListenPort" not in interface["Interface"] and interface["Interface"]["Address"] == "10.77.0.2/16"
    assert dict(peer["Peer"]) == {
        "publickey": public_key("value of link/data1"), "allowedips": "10.77.0.1",
        "endpoint": "203.0.113.5:51820", "persistentkeepalive": "25",
    }  # fmt: skip
    interface, peer = configuration(hosts["data1"])
    assert interface["Interface"]["ListenPort"] == "51820" and "endpoint" not in peer["Peer"]
    assert interface["Interface"]["PrivateKey"] == private_key("value of link/data1")


def test_a_key_is_what_wg_makes_of_it():
    """RFC 7748, 6.1: Alice's keys."""
    alice = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo="
    assert private_key(f"{alice}\n") == alice
    assert public_key(alice) == "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="
    assert public_key("any text") != public_key("another") and len(private_key("any text")) == 44


@pytest.mark.parametrize(
    "cloud, office, said",
    [
        ({**CLOUD, "link_network": "10.77.0.0/31"}, {**OFFICE, "link_network": "10.77.0.0/31"}, "has no room for two hosts"),
        ({"link_address": "10.78.0.1", "link_endpoint": "203.0.113.5"}, OFFICE, "is no host's address in link_network"),
        ({**CLOUD, "link_address": "10.77.0.0"}, OFFICE, "is no host's address in link_network"),
        ({**CLOUD, "link_address": "10.77.0.2"}, OFFICE, "link_address = 10.77.0.2: data1 and box cannot both have it: set it on one of them, 10.77.0.1 is free"),
        ({"link_address": "10.77.0.1"}, OFFICE, "link_endpoint: no host of the group link has one"),
        (CLOUD, {**OFFICE, "link_network": "10.78.0.0/24"}, "link_network: must be one for all"),
        (
            {**CLOUD, "link_network": "10.0.0.0/24", "link_address": "10.0.0.77"},
            {**OFFICE, "link_network": "10.0.0.0/24", "link_address": "10.0.0.78"},
            "overlaps 10.0.0.1, the private_address of data1",
        ),
    ],
)
def test_what_is_refused(cloud, office, said):
    assert any(said in error for error in errors(hybrid(cloud, office))), errors(hybrid(cloud, office))


def test_a_network_that_the_host_is_in_already():
    topology = hybrid()
    assert errors(topology) == []
    topology.hosts["box"].machine = replace(machine(), networks=(("10.76.0.0/15", "enp3s0"),))
    [error] = errors(topology)
    assert error.startswith("link_network = 10.77.0.0/16: overlaps 10.76.0.0/15, the network of enp3s0 on box: set another")


def test_no_way_from_one_site_to_another():
    office = {"site": "office", "app_source": "examples/app"}
    topology = make_topology({"data1": (["mongodb"], USERS), "box": (["app"], office)})
    assert any(
        error.startswith("site: box is at 'office' and finds no way to mongodb on data1 (site ''): put both into the group link")
        for error in errors(topology)
    )
    topology = make_topology({"data1": (["mongodb"], {**USERS, "public_address": "203.0.113.5"}), "box": (["app"], office)})
    said = "public_address: box would reach mongodb on data1 across the internet, where all on the way could read it: put both"
    assert any(error.startswith(said) and 'mongodb_tls = "provided"' in error for error in errors(topology))
    topology.hosts["data1"]._settings.clear()
    topology.hosts["data1"].data["mongodb_tls"] = "provided"
    assert not any(error.startswith(("site:", "public_address:")) for error in errors(topology))
    assert topology.hosts["box"].address("mongodb") == "203.0.113.5"


def test_two_of_which_none_is_dialed_find_no_way():
    """A third host has the endpoint that the link needs."""
    topology = make_topology(
        {
            "data1": (["mongodb", "link"], USERS),
            "box": (["app", "link"], OFFICE),
            "hub": (["link"], {"link_endpoint": "203.0.113.5"}),
        }
    )
    [error] = [error for error in errors(topology) if error.startswith("site:")]
    assert error.endswith("one of the two needs link_endpoint")
    topology.hosts["data1"].data["public_address"] = "203.0.113.7"
    topology.hosts["data1"]._settings.clear()
    [error] = [error for error in errors(topology) if error.startswith("public_address:")]
    assert "one of the two needs link_endpoint" in error


def test_a_cache_of_another_site_may_be_out_of_reach():
    topology = make_topology({"app1": (["app"], {"app_source": "examples/app"}), "box": (["redis"], {"site": "office"})})
    assert errors(topology) == [] and topology.hosts["app1"].address("redis") is None


def test_a_link_within_one_site_joins_nobody():
    found = errors(make_topology({"data1": (["mongodb", "link"], {**USERS, **CLOUD}), "box": (["link"], {"link_address": "10.77.0.2"})}))
    assert any(error.startswith("link: all hosts of the group link are at the site ''") for error in found)


def test_two_names_that_would_share_a_key():
    found = errors(make_topology({"Data1": (["link"], CLOUD), "data1": (["link"], {"site": "office", "link_address": "10.77.0.2"})}))
    assert 'link: Data1 and data1 would have one key, Secret("link/data1"): give one of them another name' in found


def test_a_flow_from_the_links_network_comes_by_the_link():
    flows = [{"source": "10.77.3.0/24", "role": "mongodb", "port": 27017}]
    here = make_topology({"data1": (["mongodb", "link"], {**USERS, **CLOUD, "flows": flows}), "box": (["link"], {"site": "office"})}).hosts["data1"]
    [opening] = [opening for opening in here.openings() if opening.port == 27017]
    assert opening.addresses == ["10.77.0.1"]
    assert rules(opening, "tcp dport", here) == ['iifname "wg-groundwork" ip saddr { 10.77.3.0/24 } tcp dport 27017 accept comment "mongodb"']


def test_everybody_is_called_the_internet():
    flows = [{"source": "0.0.0.0/0", "role": "redis", "port": 6379}]
    found = errors(make_topology({"data1": (["redis"], {"flows": flows})}))
    assert found == ["flows: source '0.0.0.0/0' is everybody: say \"internet\""]


def test_nginx_asks_no_application_across_the_internet():
    topology = make_topology(
        {
            "edge": (["nginx"], {"nginx_frontend": "examples/frontend"}),
            "near": (["app"], {"app_source": "examples/app"}),
            "far": (["app"], {"app_source": "examples/app", "site": "office", "public_address": "203.0.113.9"}),
        }
    )
    edge = topology.hosts["edge"]
    assert edge.settings(topology.roles["nginx"]).upstreams(edge) == ["10.0.0.2:8080"]


def test_whoever_is_connected_by_any_hosts_ssh_port_is_looked_for():
    topology = hybrid({**CLOUD, "link_address": "fd77::1", "link_network": "fd77::/64"},
                      {**OFFICE, "link_address": "fd77::2", "link_network": "fd77::/64", "base_ssh_port": 2222, "ssh_port": 2222})  # fmt: skip
    here = topology.hosts["data1"]
    row = next(row for row in here.settings(Settings).files(here) if row.path == CONFIGURATION)
    assert 'src [fd77::1] "( sport = :22 or dport = :22 or sport = :2222 or dport = :2222 )"' in row.check


def test_a_store_that_is_stopped_is_not_left_out_in_silence():
    topology = make_topology({"app1": (["app"], {"app_source": "examples/app", "stopped": {"mongodb": ["10.0.0.9"]}})})
    assert errors(topology) == ["mongodb: its host is stopped, and app1 would be deployed without it: start it, or take mongodb off its tag role"]
