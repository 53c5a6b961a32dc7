"""The role mongodb: its configuration read back by a YAML parser, its table, its memory."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

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


# The script itself, against a pymongo that only pretends: it knows this much. (tests/lab/test_rotation.py has the real one.)

PYMONGO = """
import json, pymongo.errors

class MongoClient:
    def __init__(self, username=None, password=None, authSource=None, **options):
        assert options["directConnection"] and ("tls" in options) == KNOWN["tls"], options
        self.refused = KNOWN["logins"].get(f"{authSource}.{username}") != password

    def __getitem__(self, name):
        return Database(name, self.refused)

class Database:
    def __init__(self, name, refused):
        self.name, self.refused = name, refused

    def command(self, command, value=1, **given):
        if self.refused:  # as in pymongo: at the first command, not before
            raise pymongo.errors.OperationFailure("Authentication failed.", 18)
        if command == "rolesInfo":
            return {"roles": [role for role in KNOWN["roles"] if role == value]}
        if command == "usersInfo":
            return {"users": KNOWN["users"]}
        if command == "listCollections":
            return {"cursor": {"firstBatch": [item for item in KNOWN["collections"] if item["name"] == given["filter"]["name"]]}}
        if command == "listIndexes":
            return {"cursor": {"firstBatch": KNOWN["indexes"]}}
        if command != "ping":
            with open(KNOWN["done"], "a") as file:
                print(self.name, command, value, json.dumps(given), file=file)
        return {}
"""
ERRORS = """
class PyMongoError(Exception):
    pass

class OperationFailure(PyMongoError):
    def __init__(self, said, code):
        super().__init__(said)
        self.code, self.details = code, {"errmsg": said}
"""

ROLE = operation.CERTIFICATES_ROLE
OWNER = {"name": "owner", "database": "d", "roles": ["readWrite"], "state": "present"}
THERE = {"user": "owner", "db": "d", "roles": [{"role": "readWrite", "db": "d"}]}
ITEMS = {"database": "d", "name": "items", "timeseries": None, "indexes": []}
SERIES = {"timeField": "t", "metaField": None, "granularity": "minutes"}
BY_DATE = {"keys": {"at": -1}, "unique": False, "expire_after": None}


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """`asked(known, users, collections, apply)`: what content.py says, and the commands that change which it gave."""
    monkeypatch.setattr(operation, "secret_value", lambda name: f"'{name}' \\\\ \"$x")

    def ask(known: dict, users: list = [], collections: list = [], apply: bool = False, tls: bool = False):  # noqa: B006
        admin, owner = operation.secret_value("mongodb/admin"), operation.secret_value("mongodb/owner")
        done = tmp_path / "done"
        done.write_text("")
        known = {
            "tls": tls, "logins": {"admin.admin": admin, "d.owner": owner}, "roles": [], "users": [], "collections": [],
            "indexes": [], "done": str(done), **known,
        }  # fmt: skip
        (tmp_path / "pymongo").mkdir(exist_ok=True)
        (tmp_path / "pymongo" / "__init__.py").write_text(f"KNOWN = {known!r}\n{PYMONGO}")
        (tmp_path / "pymongo" / "errors.py").write_text(ERRORS)
        with socket.create_server(("127.0.0.1", 0)) as server:
            given = {"port": server.getsockname()[1], "tls": tls, "kept": str(tmp_path / "kept"), "users": users, "collections": collections}
            read = operation._content(**given, apply=True) if apply else operation.Content.stdin(**given)
            # Without -I, which would keep what pretends away.
            ended = subprocess.run(
                [sys.executable, "-"], input=read, capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)}
            )
        assert ended.returncode == 0, ended.stderr
        return operation.answer(ended.stdout.splitlines()), done.read_text().splitlines()

    return ask


@pytest.mark.parametrize("tls", [True, False])
@pytest.mark.parametrize("role, apply, changed, dropped", [(True, True, True, True), (True, False, True, False), (False, True, False, False)])
def test_a_role_that_was_left_by_a_run_that_was_cut_off_is_taken_away(asked, tls, role, apply, changed, dropped):
    said, done = asked({"roles": [ROLE] if role else []}, apply=apply, tls=tls)
    assert [ROLE in change for change in said["changes"]] == [True] * changed
    assert done == [f"admin dropRole {ROLE} {{}}"] * dropped


@pytest.mark.parametrize(
    "known, users, said",
    [
        ({"users": [THERE]}, [OWNER], []),
        ({}, [OWNER], ["user owner of d: new, readWrite"]),
        ({"users": [THERE]}, [{**OWNER, "roles": ["read", "dbAdmin"]}], ["user owner of d: roles read, dbAdmin"]),
        ({"users": [THERE]}, [{**OWNER, "state": "absent"}], ["user owner of d: removed"]),
        ({}, [{**OWNER, "state": "absent"}], []),
        ({"users": [{**THERE, "db": "e"}], "logins": {}}, [], "refused"),
    ],
)
def test_what_is_said_is_what_is_then_done(asked, known, users, said):
    found, done = asked(known, users)
    assert found.get("problem", found.get("changes")) == said and done == []
    if said != "refused":
        found, done = asked(known, users, apply=True)
        assert found["changes"] == said and len(done) == len(said)


def test_a_user_whose_password_is_another_gets_it(asked):
    admin = {"admin.admin": operation.secret_value("mongodb/admin")}
    found, done = asked({"users": [THERE], "logins": {**admin, "d.owner": "before"}}, [OWNER], [ITEMS], apply=True)
    # Whose collections can't be looked at yet: this pretender does not take the new one.
    assert found["changes"] == ["user owner of d: password", "collection d.items: with its user"]
    assert done == [f"d updateUser owner {json.dumps({'pwd': operation.secret_value('mongodb/owner')})}"]


def test_a_user_of_the_same_name_elsewhere_is_told_and_left(asked):
    found, done = asked({"users": [THERE, {**THERE, "db": "e"}]}, [OWNER], apply=True)
    assert found["changes"] == done == [] and "there is a user owner of e too" in found["notes"][0]


def test_the_administrators_new_password_is_announced_before_it_is_set(asked, tmp_path):
    (tmp_path / "kept").write_text("older")
    (tmp_path / "kept.new").write_text("known")
    found, done = asked({"logins": {"admin.admin": "known"}})
    assert found["changes"] == ["administrator admin: password"] and (tmp_path / "kept").read_text() == "older"
    found, done = asked({"logins": {"admin.admin": "known"}}, apply=True)
    assert (tmp_path / "kept").read_text() == "known" and len(done) == 1
    assert (tmp_path / "kept.new").read_text() == operation.secret_value("mongodb/admin")
    assert (tmp_path / "kept.new").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "item, there, indexes, changes",
    [
        ({}, None, [], ["collection d.items: new"]),
        ({"timeseries": SERIES}, None, [], ["collection d.items: new, a time series"]),
        ({}, {}, [], []),
        ({"timeseries": SERIES}, {"type": "timeseries", "options": {"timeseries": {"timeField": "t", "granularity": "minutes"}}}, [], []),
        ({"timeseries": SERIES}, {"type": "timeseries", "options": {"timeseries": {"timeField": "other"}}}, [], "exists with other options"),
        ({"timeseries": SERIES}, {}, [], "exists with other options"),
        ({"indexes": [BY_DATE]}, {}, [{"name": "at_-1"}], []),
        ({"indexes": [BY_DATE]}, {}, [{"name": "_id_"}], ['index {"at":-1} of d.items']),
        ({"indexes": [{**BY_DATE, "unique": True}]}, {}, [{"name": "at_-1"}], ['index {"at":-1} of d.items']),
        ({"indexes": [{**BY_DATE, "expire_after": 60}]}, {}, [{"name": "at_-1", "expireAfterSeconds": 60.0}], []),
    ],
)
def test_collections_and_indexes(asked, item, there, indexes, changes):
    known = {"users": [THERE], "collections": [] if there is None else [{"name": "items", "type": "collection", "options": {}, **there}]}
    found, done = asked({**known, "indexes": indexes}, [OWNER], [{**ITEMS, **item}], apply=True)
    if isinstance(changes, str):
        assert changes in found["problem"] and done == []
    else:
        assert found["changes"] == changes and len(done) == len(changes)


def test_where_nobody_listens_it_is_said_at_once(tmp_path, monkeypatch):
    """Asked for real: with no pymongo, and with no server."""
    monkeypatch.setattr(operation, "secret_value", lambda name: "x")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    (tmp_path / "pymongo").mkdir()
    (tmp_path / "pymongo" / "__init__.py").write_text("KNOWN = {}\n" + PYMONGO)
    (tmp_path / "pymongo" / "errors.py").write_text(ERRORS)
    wanted = operation.Content.stdin(port=port, tls=False, kept=str(tmp_path / "kept"), users=[], collections=[])
    given = dict(input=wanted, capture_output=True, text=True)
    done = subprocess.run([sys.executable, "-"], env={"PYTHONPATH": str(tmp_path)}, **given)
    assert "refused" in operation.answer(done.stdout.splitlines())["problem"] and done.returncode == 0
    done = subprocess.run([sys.executable, "-I", "-S", "-"], **given)
    if done.returncode:  # no pymongo of a distribution's on this machine
        assert done.stderr.startswith("python3-pymongo can't be used") and "password" not in done.stderr
    assert operation.answer([])["problem"] == "MongoDB could not be asked: "


def test_a_certificate_is_not_a_random_value():
    topology = make_topology({"one": (["mongodb"], {"mongodb_tls": "provided"})})
    assert "mongodb/tls_key" in topology.secret_names()
    assert topology.random_secrets() == ["mongodb/admin"]
