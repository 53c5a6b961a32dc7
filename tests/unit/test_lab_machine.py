"""What the lab derives from the machine it runs on: sources, certificates, names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lab import cgroups, repository, roots, settings
from lab.settings import LabError

DEB822 = """\
Types: deb
# a comment
URIs: http://mirror.example/debian/
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
"""


@pytest.fixture
def apt(tmp_path, monkeypatch):
    """A controller of Debian bookworm with sources of its own and a third party's."""
    monkeypatch.setattr(roots, "SOURCES", tmp_path)
    monkeypatch.setattr(settings, "distribution", lambda: ("debian", "bookworm"))
    monkeypatch.setattr(settings, "MIRROR", None)
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d/vendor.list").write_text("deb https://vendor.example/apt bookworm main\n")
    return tmp_path


def test_the_controllers_own_sources_are_used_and_no_third_partys(apt):
    (apt / "sources.list.d/debian.sources").write_text(DEB822)
    assert roots.archives("trixie") == ("http://mirror.example/debian", "http://mirror.example/debian-security")
    assert "vendor.example" not in roots.sources("trixie")
    assert "Suites: trixie trixie-updates\n" in roots.sources("trixie")
    assert "Suites: trixie-security\n" in roots.sources("trixie")


def test_one_line_sources_are_read_too(apt):
    (apt / "sources.list").write_text(
        "# comment\ndeb [arch=amd64] http://m.example/debian bookworm main\n"
        "deb http://m.example/debian-security bookworm-security main\ndeb-src http://other.example/debian bookworm main\n"
    )
    assert roots.archives("bookworm") == ("http://m.example/debian", "http://m.example/debian-security")


def test_another_distributions_suite_needs_a_mirror(apt, monkeypatch):
    (apt / "sources.list.d/debian.sources").write_text(DEB822)
    with pytest.raises(LabError, match="GROUNDWORK_LAB_MIRROR"):
        roots.archives("jammy")
    monkeypatch.setattr(settings, "MIRROR", "http://ubuntu.example/ubuntu/")
    assert roots.archives("jammy") == ("http://ubuntu.example/ubuntu", "http://ubuntu.example/ubuntu")
    assert roots.archives("bookworm")[0] == "http://mirror.example/debian"
    assert "ubuntu-archive-keyring" in roots.sources("jammy")
    assert "Components: main universe " in roots.sources("noble")
    assert "Suites: noble-security\n" in roots.sources("noble")


def test_only_the_archive_goes_through_the_cache(apt, monkeypatch):
    (apt / "sources.list.d/debian.sources").write_text(DEB822)
    monkeypatch.setattr(roots, "apt_settings", lambda: "")
    assert roots.apt_proxy() == f'Acquire::http::Proxy::mirror.example "{settings.REPOSITORY}";\n'
    monkeypatch.setattr(roots, "apt_settings", lambda: 'Acquire::http::Proxy "http://proxy.example";\n')
    assert roots.apt_proxy() == ""


def test_certificates_beyond_the_distributions_are_found(tmp_path, monkeypatch):
    def pem(text):
        return f"-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n"

    known = [pem("known")]
    monkeypatch.setattr(roots, "BUNDLE", tmp_path / "bundle")
    (tmp_path / "bundle").write_text(pem("known") + pem("proxy"))
    certificates = roots._certificates
    monkeypatch.setattr(roots, "_certificates", lambda file: certificates(file) if file == roots.BUNDLE else known)
    monkeypatch.setattr(Path, "rglob", lambda path, pattern: [Path("/any.crt")])
    assert roots.extra_authorities() == [pem("proxy")]


def test_names_that_the_kernel_sees_fit():
    assert len(settings.bridge("255.255.255.0")) <= 15
    assert settings.bridge("10.87.128.61") == "gw-10-87-128"


def test_an_address_tells_its_network():
    assert settings.gateway("10.87.128.61") == "10.87.128.1"
    assert settings.address6("10.87.128.61") == "fd87:10:87:128::61"


@pytest.mark.parametrize(
    "network, office", [("10.87.0.0/24", "10.87.128.0/24"), ("172.16.200.0/24", "172.16.72.0/24"), ("nonsense", "")]
)
def test_the_office_is_half_a_network_away(network, office):
    """In a process of its own: the settings are read when they are imported. What is no network is refused later."""
    told = subprocess.run(
        [sys.executable, "-c", "from lab import settings; print(settings.OFFICE); settings.check()"],
        env={**os.environ, "GROUNDWORK_LAB_NETWORK": network}, capture_output=True, text=True,
    )  # fmt: skip
    assert told.stdout.splitlines()[0] == (office or ".0/24")
    assert ("GROUNDWORK_LAB_NETWORK is no network" in told.stderr) == (office == "")


def test_a_group_that_is_not_there_is_empty(tmp_path):
    assert not cgroups.populated(tmp_path / "nothing")
    cgroups.end(tmp_path / "nothing")


def test_the_stand_ins_packages_are_complete():
    folder = repository.HERE / "packages"
    names = {tree.name for tree in folder.iterdir()}
    assert names == {"mongodb-org", "mongodb-org-database", "mongodb-org-server", "mongodb-mongosh"}
    for name in names:
        assert (folder / name / "DEBIAN/control").read_text().startswith(f"Package: {name}\n")


def test_no_registrys_address_is_in_the_lock_file():
    assert '"resolved"' not in (repository.HERE / "npm/package-lock.json").read_text()


@pytest.mark.parametrize("name, suite", [("bookworm", "bookworm"), ("noble", "noble"), ("jammy", "jammy"), ("trixie", "bookworm")])
def test_hosts_are_of_the_controllers_own_suite_where_its_sources_lead_to_no_other(tmp_path, name, suite):
    (tmp_path / "os-release").write_text(f'ID=x\nVERSION_CODENAME="{name}"\n')
    assert settings.distribution(tmp_path / "os-release") == ("x", name)
    assert settings.own_suite(settings.distribution(tmp_path / "os-release")[1]) == suite
    assert settings.own_suite(settings.distribution(tmp_path / "none")[1]) == "bookworm"
