"""The role mongodb: its configuration read back by a YAML parser, its table, its memory."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
import yaml

from groundwork import uris
from groundwork.rows import Absent, File
from groundwork.secrets import KEPT
from groundwork.templates import render
from groundwork.topology import SettingsError
from operations import mongodb as operation
from tasks.app import Settings as Application
from tasks.mongodb import Settings
from tests.certificates import Authority
from tests.unit.conftest import make_topology


def configuration(here) -> dict:
    settings = here.settings(Settings)
    row = next(row for row in settings.files(here) if row.path == "/etc/mongod.conf")
    assert isinstance(row, File)
    return yaml.safe_load(render(row, settings, here, secret=str))


def test_it_asks_for_a_login_and_has_no_way_around(make_here):
    found = configuration(make_here(["mongodb"]))
    assert found["security"]["authorization"] == "enabled"
    assert found["setParameter"]["enableLocalhostAuthBypass"] is False


FLOWS = [{"source": "192.0.2.0/24", "role": "mongodb", "port": 27017}]


def test_it_listens_on_loopback_and_where_a_flow_comes_in(make_here):
    assert configuration(make_here(["mongodb"]))["net"]["bindIp"] == "127.0.0.1"
    assert configuration(make_here(["mongodb"], flows=FLOWS))["net"]["bindIp"] == "127.0.0.1,10.0.0.1"
    own = make_here(["mongodb"], mongodb_bind_addresses=["10.9.9.9"], mongodb_port=27018)
    assert configuration(own)["net"] | {"port": 27018} == configuration(own)["net"]
    assert configuration(own)["net"]["bindIp"] == "127.0.0.1,10.9.9.9"


def test_an_ipv6_address_switches_ipv6_on(make_here):
    assert configuration(make_here(["mongodb"]))["net"]["ipv6"] is False
    assert configuration(make_here(["mongodb"], private_address="fd00::5", flows=FLOWS))["net"]["ipv6"] is True


@pytest.mark.parametrize("memory, least, most", [(1024, 0.25, 0.6), (16384, 7, 8)])
def test_the_cache_is_a_part_of_the_share(make_here, memory, least, most):
    size = configuration(make_here(["mongodb"], hardware_memory=memory))["storage"]["wiredTiger"]["engineConfig"]
    assert least <= size["cacheSizeGB"] <= most


@pytest.mark.parametrize(
    "codename, series, pages, component",
    [("jammy", "7.0", "never", "multiverse"), ("noble", "8.0", "always", "multiverse"), ("bookworm", "7.0", "never", "main")],
)
def test_each_system_gets_what_the_vendor_publishes(make_here, codename, series, pages, component):
    here = make_here(["mongodb"], codename)
    settings = here.settings(Settings)
    assert settings.series_for(here) == series
    assert settings.huge_pages(here) == pages
    source = settings.repository_for(here)
    assert source["suites"] == [f"{codename}/mongodb-org/{series}"]
    assert source["components"] == [component]
    assert source["key"].endswith(f"server-{series}.asc") and len(source["fingerprint"]) == 40
    assert list(settings.errors(here)) == []


def test_what_is_not_published_is_refused_with_the_list(make_here):
    here = make_here(["mongodb"], "trixie", mongodb_series="7.0")
    [error] = here.settings(Settings).errors(here)
    assert "publishes no 7.0 for debian trixie" in error and "ubuntu noble: 8.0" in error


def test_a_mirror_of_ones_own_is_not_held_against_the_table(make_here):
    data = {"mongodb_series": "6.0", "mongodb_repository": "http://mirror/apt", "mongodb_repository_key": "/k"}
    here = make_here(["mongodb"], "trixie", **data)
    assert list(here.settings(Settings).errors(here)) == []
    assert here.settings(Settings).repository_for(here)["key"] == "/k"


@pytest.mark.parametrize(
    "data",
    [
        {"mongodb_users": [{"name": "a b", "database": "d"}]},
        {"mongodb_users": [{"name": "a", "database": "d/e"}]},
        {"mongodb_collections": [{"database": "d", "name": "c", "indexes": [{"keys": {"x": 2}}]}]},
        {"mongodb_series": "seven"},
        {"mongodb_bind_addresses": ["everywhere"]},
    ],
)
def test_values_that_are_refused(make_here, data):
    with pytest.raises(SettingsError):
        make_here(["mongodb"], **data).settings(Settings)


READER = {"name": "reader", "database": "d", "roles": ["read"]}
GONE = {"name": "gone", "database": "d", "state": "absent"}


def test_who_is_absent_needs_no_secret_and_is_not_the_applications_user(make_here):
    here = make_here(["mongodb", "app"], mongodb_users=[GONE, READER], app_source="examples/app")
    assert {secret.name for secret in here.settings(Settings).secrets(here)} == {"mongodb/admin", "mongodb/reader"}
    assert here.settings(Application).mongodb_login(here) == ("reader", "d")


@pytest.mark.parametrize(
    "users, message",
    [
        ([READER, {**READER, "database": "e"}], "mongodb_users: 'reader' is there twice"),
        ([READER, {**READER, "state": "absent"}], "mongodb_users: 'reader' is there twice"),
        ([GONE, GONE], "mongodb_users: 'gone' is there twice"),
        ([{**GONE, "name": "admin", "database": "admin"}], "mongodb_users: 'admin' is the administrator's name"),
        ([READER, {**READER, "database": "e", "state": "absent"}], None),
    ],
)
def test_one_user_of_a_name_and_never_the_administrator(make_here, users, message):
    here = make_here(["mongodb"], mongodb_users=users)
    found = list(here.settings(Settings).errors(here))
    assert [error.startswith(message or "") for error in found] == ([True] if message else [])


def test_nobody_who_is_absent_makes_a_collection(make_here):
    writer = {"name": "writer", "database": "d", "state": "absent"}
    here = make_here(["mongodb"], mongodb_users=[writer], mongodb_collections=[{"database": "d", "name": "c"}])
    [error] = here.settings(Settings).errors(here)
    assert "no user of mongodb_users has readWrite on that database" in error


def test_the_password_is_kept_as_it_is_and_for_root_alone(make_here):
    here = make_here(["mongodb"])
    settings = here.settings(Settings)
    directory = next(row for row in settings.files(here) if row.path == KEPT)
    assert (directory.owner, directory.mode) == ("root", "700")
    password, new = settings.kept()
    assert (password.path, password.owner, password.mode, password.secret) == (f"{KEPT}/mongodb-admin", "root", "600", True)
    assert render(password, settings, here, secret=lambda name: f" {name} ").decode() == " mongodb/admin "
    assert new == Absent(f"{KEPT}/mongodb-admin.new")


# TLS

AUTHORITY = Authority()


@pytest.fixture
def tls(tmp_path):
    """Two hosts: `data` with MongoDB, which speaks TLS, and `web` with the application."""
    (tmp_path / "authority.pem").write_text(AUTHORITY.pem)

    def make(**data):
        given = {"mongodb_tls": "provided", "mongodb_tls_authority": str(tmp_path / "authority.pem"), "mongodb_users": [READER], **data}
        hosts = {"data": (["mongodb"], given), "web": (["app"], {"app_source": "examples/app"})}
        return make_topology(hosts).hosts

    return make


def test_with_tls_nobody_comes_in_without(tls):
    found = configuration(tls()["data"])["net"]["tls"]
    assert (found["mode"], found["disabledProtocols"], found["allowConnectionsWithoutCertificates"]) == ("requireTLS", "TLS1_0,TLS1_1", True)
    assert found["CAFile"] == "/etc/mongodb/authority.pem"
    assert configuration(tls(mongodb_tls_authority=None)["data"])["net"]["tls"]["CAFile"].startswith("/etc/ssl/certs/")


def test_the_certificate_lands_before_what_names_it_and_goes_after(tls, make_here):
    here = tls()["data"]
    rows = here.settings(Settings).files(here)
    paths = [row.path for row in rows]
    certificate = rows[paths.index("/etc/mongodb/tls.pem")]
    assert (certificate.owner, certificate.mode, certificate.secret) == ("mongodb", "600", True)
    assert paths.index("/etc/mongodb") < paths.index("/etc/mongodb/tls.pem") < paths.index("/etc/mongod.conf")
    here = make_here(["mongodb"])
    off = here.settings(Settings).files(here)
    paths = [row.path for row in off]
    assert "tls" not in configuration(here)["net"]
    for path in ("/etc/mongodb/tls.pem", "/etc/mongodb/authority.pem"):
        assert paths.index("/etc/mongod.conf") < off.index(Absent(path))


def test_its_secrets_are_needed_with_tls_only(tls, make_here):
    names = {secret.name for secret in tls()["data"].settings(Settings).secrets(tls()["data"])}
    assert {"mongodb/tls_certificate", "mongodb/tls_key"} < names
    assert "mongodb/tls_key" not in {secret.name for secret in make_here(["mongodb"]).settings(Settings).secrets(make_here(["mongodb"]))}


def test_clients_are_told_and_get_the_authority(tls):
    web = tls()["web"]
    uri = uris.mongodb(web, "reader", "d", secret=lambda name: "p@ss")["MONGO_URI"]
    assert uri == f"mongodb://reader:p%40ss@10.0.0.1:27017/d?authSource=d&tls=true&tlsCAFile={uris.AUTHORITY}"
    assert File(uris.AUTHORITY, content=AUTHORITY.pem) in web.settings(Application).files(web)
    named = tls(mongodb_tls_name="db.example.org", mongodb_tls_authority=None)["web"]
    assert "@db.example.org:27017/d?authSource=d&tls=true" in uris.mongodb(named, "reader", "d", secret=str)["MONGO_URI"]
    assert "tlsCAFile" not in uris.mongodb(named, "reader", "d", secret=str)["MONGO_URI"]
    assert Absent(uris.AUTHORITY) in named.settings(Application).files(named)


def test_on_its_own_host_it_is_asked_by_loopback_for_which_no_certificate_is(make_here):
    here = make_here(["mongodb", "app"], mongodb_tls="provided", mongodb_tls_name="db.example.org", mongodb_users=[READER], app_source="examples/app")
    uri = uris.mongodb(here, "reader", "d", secret=str)["MONGO_URI"]
    assert uri.endswith("@127.0.0.1:27017/d?authSource=d&tls=true&tlsAllowInvalidHostnames=true")
    assert make_here(["mongodb"], mongodb_tls="provided").settings(Settings).tls_names(make_here(["mongodb"])) == []


def _told(here, certificate: str, key: str) -> list[str]:
    values = {"mongodb/tls_certificate": certificate, "mongodb/tls_key": key}
    return list(here.settings(Settings).secret_errors(here, values.__getitem__))


def test_a_certificate_that_fits_is_taken(tls):
    assert _told(tls()["data"], *AUTHORITY.issue("10.0.0.1")) == []
    assert _told(tls(mongodb_tls_name="db.example.org")["data"], *AUTHORITY.issue("*.example.org")) == []


def test_a_certificate_is_for_the_addresses_that_clients_connect_to(tls, make_here):
    def names(here) -> list[str]:
        return here.settings(Settings).tls_names(here)

    flows, public = [{"source": "203.0.113.8", "role": "mongodb", "port": 27017}], {"public_address": "198.51.100.7"}
    # Behind EC2's NAT who is let in as a network knows the public address only, and the application the private one.
    assert names(tls(flows=flows, **public)["data"]) == ["10.0.0.1", "198.51.100.7"]
    assert names(tls(flows=flows)["data"]) == names(tls(**public)["data"]) == ["10.0.0.1"]
    assert names(make_here(["mongodb"], mongodb_tls="provided", flows=flows, **public)) == ["198.51.100.7"]
    assert names(tls(mongodb_tls_name="db.example.org", flows=flows, **public)["data"]) == ["db.example.org"]


@pytest.mark.parametrize(
    "pair, said",
    [
        (lambda: ("no PEM", AUTHORITY.issue("10.0.0.1")[1]), "secret mongodb/tls_certificate: is not a certificate in PEM form"),
        (lambda: (AUTHORITY.issue("10.0.0.1")[0], "no PEM"), "secret mongodb/tls_key: is not a private key in PEM form"),
        (lambda: (AUTHORITY.issue("10.0.0.1")[0], AUTHORITY.issue("10.0.0.1")[1]), "secret mongodb/tls_key: is not the key of"),
        (lambda: AUTHORITY.issue("10.0.0.1", days=-2), "secret mongodb/tls_certificate: has ended on"),
        (lambda: AUTHORITY.issue("10.0.0.9"), "secret mongodb/tls_certificate: is for 10.0.0.9, and clients ask for 10.0.0.1"),
        (lambda: Authority().issue("10.0.0.1"), "secret mongodb/tls_certificate: the authority that clients are given did not issue it"),
    ],
)
def test_a_certificate_that_does_not_is_told_before_a_host_is_touched(tls, pair, said):
    [error] = _told(tls()["data"], *pair())
    assert error.startswith(said) and "BEGIN" not in error


@pytest.mark.parametrize("source", ["internet", "0.0.0.0/0", "::/0"])
def test_everybody_is_never_let_in(tls, make_here, source):
    flows = [{"source": source, "role": "mongodb", "port": 27017}]
    for here in (make_here(["mongodb"], flows=flows), tls(flows=flows)["data"]):
        if source == "internet":
            [error] = here.settings(Settings).errors(here)
            assert error.startswith('flows: "internet" to mongodb is refused')
        else:
            with pytest.raises(SettingsError, match="is everybody"):
                list(here.settings(Settings).errors(here))


@pytest.mark.parametrize("source, refused", [("203.0.113.0/24", True), ("2001:db8::/32", True), ("10.3.0.0/16", False), ("fd00::/8", False)])
def test_public_networks_come_in_with_tls_only(tls, make_here, source, refused):
    flows = [{"source": source, "role": "mongodb", "port": 27017}]
    here = make_here(["mongodb"], flows=flows)
    assert ['mongodb_tls = "provided"' in error for error in here.settings(Settings).errors(here)] == [True] * refused
    here = tls(flows=flows)["data"]
    assert list(here.settings(Settings).errors(here)) == []


# What the administrator has no business to keep

CUT_OFF = """
const dropped = [];
let roles = ROLES;
const database = {
  getRole: name => roles.includes(name) ? {role: name} : null,
  dropRole: name => { dropped.push(name); roles = roles.filter(other => other !== name); },
  runCommand: () => ({users: []}),
};
globalThis.Mongo = function () { this.getDB = () => database; };
globalThis.print = text => console.log(JSON.stringify({...JSON.parse(text), dropped}));
"""


@pytest.mark.skipif(not shutil.which("node"), reason="there is no node here")
@pytest.mark.parametrize("role, apply, changed, dropped", [(True, True, True, True), (True, False, True, False), (False, True, False, False)])
def test_a_role_that_was_left_by_a_run_that_was_cut_off_is_taken_away(tmp_path, role, apply, changed, dropped):
    """content.js itself, against a MongoDB that knows this much."""
    name = "groundworkCertificates"
    wanted = {"port": 27017, "tls": True, "password": "x", "kept": str(tmp_path / "kept"), "users": [], "collections": [], "apply": apply}
    (tmp_path / "script.js").write_text(
        CUT_OFF.replace("ROLES", json.dumps([name] if role else [])) + operation.script(["connect.js", "kept.js", "content.js"], wanted)
    )
    said = json.loads(subprocess.run(["node", tmp_path / "script.js"], capture_output=True, text=True, check=True).stdout)
    assert [name in change for change in said["changes"]] == [True] * changed
    assert said["dropped"] == [name] * dropped


def test_a_certificate_is_not_a_random_value():
    topology = make_topology({"one": (["mongodb"], {"mongodb_tls": "provided"})})
    assert "mongodb/tls_key" in topology.secret_names()
    assert topology.random_secrets() == ["mongodb/admin"]
