"""A version that does not exist is found during the run: one error, nothing half done, and a way on."""

from __future__ import annotations

import json

import pytest
from tests.lab.conftest import Lab

INVENTORY = """
from lab import lab_host
from tests.lab.stack import STACK

_host = lab_host("versions", "10.87.0.25", **{**STACK, "app_source": None})
mongodb = [_host]
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory) -> Lab:
    return Lab.made(tmp_path_factory.mktemp("versions") / "versions_lab.py", INVENTORY)


def _refused(host: Lab) -> None:
    """A run with a version that nobody has: which setting, which value, and what there is."""
    done = host.deploy("--data", "mongodb_version=6.0.99", check=False)
    assert done.returncode != 0
    assert "mongodb_version = 6.0.99: no repository of this host has mongodb-org in that version; there is 6.0.5." in done.stderr
    assert "Nothing was installed" in done.stderr and "Traceback" not in done.stderr
    assert "MongoDB | Configuration" not in done.stderr


def test_on_a_bare_host_nothing_is_half_installed(host):
    _refused(host)
    packages = host.ssh("versions", "dpkg -l | grep -c mongo; ls /etc/mongod.conf; dpkg --audit", check=False)
    assert packages.stdout.split() == ["0"], packages.stdout


def test_the_right_version_converges(host):
    host.deploy("--data", "mongodb_version=6.0.5")
    done = host.pyinfra("-y", "--json", host.inventory, "deploy.py", "--data", "mongodb_version=6.0.5")
    assert [item["name"] for item in json.loads(done.stdout)["results"]["operations"] if item["success"]] == []


def test_where_it_runs_it_goes_on_as_it_was(host):
    before = _server(host)
    _refused(host)
    assert _server(host) == before
    assert host.changes() == []


def _server(host: Lab) -> str:
    """Version, hold, start and configuration of the server."""
    ask = (
        "dpkg-query -W mongodb-org-server; apt-mark showhold; systemctl show -P ActiveEnterTimestampMonotonic mongod; "
        "sha256sum /etc/mongod.conf; systemctl is-active mongod"
    )
    return host.ssh("versions", ask).stdout
