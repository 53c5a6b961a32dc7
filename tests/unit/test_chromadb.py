"""The role chromadb: where it listens, who may speak to its unit, and what its lock holds."""

from __future__ import annotations

import configparser
import re

import pytest
import yaml

from groundwork import ROOT
from groundwork.templates import render
from groundwork.topology import SettingsError
from tasks.chromadb import CONFIGURATION, LOCK, UNIT, VERSION, Settings
from tests.unit.conftest import make_topology


def rendered(here, path: str) -> str:
    settings = here.settings(Settings)
    row = next(row for row in settings.files(here) if row.path == path)
    return render(row, settings, here, str).decode()


def configuration(here) -> dict:
    return yaml.safe_load(rendered(here, CONFIGURATION))


def unit(here) -> list[tuple[str, str]]:
    lines = rendered(here, f"/etc/systemd/system/{UNIT}").splitlines()
    return [tuple(line.split("=", 1)) for line in lines if "=" in line and not line.startswith("#")]


def test_alone_it_listens_on_loopback(make_here):
    here = make_here(["chromadb", "app"])
    assert configuration(here) == {
        "listen_address": "127.0.0.1",
        "port": 8000,
        "persist_path": "/var/lib/chromadb",
        "allow_reset": False,
    }
    assert ("IPAddressDeny", "any") in unit(here)
    assert ("IPAddressAllow", "localhost") in unit(here)
    assert ("MemoryMax", f"{here.memory_share('chromadb')}M") in unit(here)


def test_for_other_hosts_it_listens_on_the_private_address():
    here = make_topology({"db": (["chromadb"], {}), "web": (["app"], {})}).hosts["db"]
    assert configuration(here)["listen_address"] == "10.0.0.1"
    assert here.settings(Settings).url(here) == "http://10.0.0.1:8000"
    assert ("IPAddressAllow", "localhost 10.0.0.1 10.0.0.2") in unit(here)


def test_for_clients_here_and_elsewhere_it_listens_everywhere_and_the_unit_limits_who():
    hosts = {"one": (["chromadb", "app"], {}), "two": (["app"], {})}
    here = make_topology(hosts).hosts["one"]
    assert configuration(here)["listen_address"] == "0.0.0.0"
    assert here.settings(Settings).url(here) == "http://127.0.0.1:8000"
    assert ("IPAddressAllow", "localhost 10.0.0.1 10.0.0.2") in unit(here)


def test_ipv6():
    hosts = {
        "db": (["chromadb"], {"private_address": "fd00::1"}),
        "web": (["app"], {"private_address": "fd00::2"}),
    }
    here = make_topology(hosts).hosts["db"]
    assert configuration(here)["listen_address"] == "fd00::1"
    assert here.settings(Settings).url(here) == "http://[fd00::1]:8000"


def test_everybody_is_refused():
    flow = {"source": "internet", "role": "chromadb", "port": 8000}
    here = make_topology({"one": (["chromadb"], {"flows": [flow]})}).hosts["one"]
    assert 'flows: "internet" to chromadb is refused' in " ".join(here.settings(Settings).errors(here))


def test_a_port_in_words_is_refused(make_here):
    with pytest.raises(SettingsError, match="chromadb_port"):
        make_here(["chromadb"], chromadb_port="8000").settings(Settings)


def test_the_unit_is_a_unit(make_here):
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str
    parser.read_string(rendered(make_here(["chromadb"]), f"/etc/systemd/system/{UNIT}"))
    assert parser.sections() == ["Unit", "Service", "Install"]
    assert parser["Service"]["User"] == "chromadb"


def test_the_lock_is_of_the_version_and_every_package_has_hashes():
    text = LOCK.read_text()
    hashes = r"(.*(?:\n    --hash=sha256:[0-9a-f]{64}.*)*)"
    packages = re.findall(rf"^([A-Za-z0-9._-]+)==(\S+){hashes}", text, re.MULTILINE)
    assert dict((name, version) for name, version, _ in packages)["chromadb"] == VERSION
    assert len(packages) > 50 and all("--hash=" in rest for _, _, rest in packages)
    assert "://" not in text, "the lock names no index: that is a setting"


def test_the_example_applications_client_is_of_the_same_release():
    text = (ROOT / "examples/app/requirements.in").read_text()
    assert f"chromadb-client=={VERSION}" in text
