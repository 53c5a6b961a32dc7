"""The role docker: daemon.json by Docker's own names, two repositories, and what is refused."""

from __future__ import annotations

import json

import pytest

from groundwork.rows import Absent
from groundwork.templates import render
from groundwork.topology import SettingsError, external
from tasks.docker import CONFIGURATION, FINGERPRINT, STOP_UNIT, Settings
from tests.unit.conftest import SYSTEMS, make_topology


def daemon(here) -> dict:
    settings = here.settings(Settings)
    row = next(row for row in settings.files(here) if row.path == CONFIGURATION)
    return json.loads(render(row, settings, here, str))


def errors(here) -> str:
    return " ".join(here.settings(Settings).errors(here))


def test_defaults(make_here):
    assert daemon(make_here(["docker"])) == {
        "log-driver": "local",
        "log-opts": {"max-size": "20m", "max-file": "5"},
        "live-restore": True,
        "no-new-privileges": True,
        "userland-proxy": False,
        "ip": "127.0.0.1",
        "default-address-pools": [{"base": "172.20.0.0/14", "size": 24}],
    }


@pytest.mark.parametrize(
    "codename, repository, known",
    [
        ("bookworm", "distribution", False),
        ("bookworm", "vendor", True),
        ("jammy", "distribution", True),
        ("trixie", "distribution", True),
    ],
)
def test_networks_that_users_make_publish_on_the_same_address(make_here, codename, repository, known):
    """An option that the engine does not know keeps it from starting."""
    here = make_here(["docker"], codename, docker_repository=repository, docker_publish_address="10.0.0.1")
    binding = {"bridge": {"com.docker.network.bridge.host_binding_ipv4": "10.0.0.1"}}
    assert daemon(here).get("default-network-opts") == (binding if known else None)


def test_journald_takes_no_sizes(make_here):
    assert "log-opts" not in daemon(make_here(["docker"], docker_log_driver="journald"))


@pytest.mark.parametrize("distribution, codename", SYSTEMS)
def test_the_vendors_repository(make_here, distribution, codename):
    here = make_here(["docker"], codename, docker_repository="vendor")
    settings = here.settings(Settings)
    assert settings.repository_for(here) == {
        "uris": [f"https://download.docker.com/linux/{distribution}"],
        "suites": [codename],
        "components": ["stable"],
        "key": f"https://download.docker.com/linux/{distribution}/gpg",
        "fingerprint": FINGERPRINT,
    }
    assert "docker-ce" in settings.packages(here)
    assert not any(isinstance(row, Absent) for row in settings.files(here))


def test_a_mirror_with_a_key_of_its_own(make_here):
    here = make_here(
        ["docker"],
        docker_repository="vendor",
        docker_repository_url="https://mirror.example.org/docker",
        docker_repository_key="/etc/keys/mirror.asc",
    )
    found = here.settings(Settings).repository_for(here)
    assert found["uris"] == ["https://mirror.example.org/docker/debian"]
    assert (found["key"], found["fingerprint"]) == ("/etc/keys/mirror.asc", None)


@pytest.mark.parametrize("distribution, codename", SYSTEMS)
def test_the_distributions_packages(make_here, distribution, codename):
    here = make_here(["docker"], codename)
    settings = here.settings(Settings)
    assert settings.packages(here)[0] == "docker.io"
    assert Absent("/etc/apt/sources.list.d/docker.sources") in settings.files(here)


def test_a_pool_that_holds_a_hosts_address_is_refused():
    hosts = {"one": (["docker"], {}), "two": (["redis"], {"private_address": "172.21.0.9"})}
    assert "172.21.0.9/32 of two" in errors(make_topology(hosts).hosts["one"])


def test_a_pool_that_holds_an_externals_network_is_refused():
    office = {"externals": [external("office", networks=["172.16.0.0/12"])]}
    assert "of office" in errors(make_topology({"one": (["docker"], office)}).hosts["one"])
    assert not errors(make_topology({"one": (["docker"], {})}).hosts["one"])


@pytest.mark.parametrize(
    "data",
    [
        {"docker_address_pool": "8.8.8.0/24"},
        {"docker_address_pool": "10.0.0.0/25"},
        {"docker_address_pool": "fd00::/64"},
        {"docker_log_driver": "syslog"},
        {"docker_log_max_size": "20"},
        {"docker_log_max_files": 0},
        {"docker_publish_address": "everywhere"},
        {"docker_repository": "snap"},
        {"docker_repository_url": "https://mirror.example.org/docker/"},
        {"docker_users": ["Anna Smith"]},
    ],
)
def test_refused(make_here, data):
    with pytest.raises(SettingsError, match=next(iter(data))):
        make_here(["docker"], **data).settings(Settings)


def test_containers_are_stopped_after_the_engine(make_here):
    here = make_here(["docker"])
    settings = here.settings(Settings)
    row = next(row for row in settings.files(here) if row.path.endswith(STOP_UNIT))
    assert "Before=containerd.service docker.service" in render(row, settings, here, str).decode()
