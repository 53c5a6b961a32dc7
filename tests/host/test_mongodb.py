"""MongoDB: authorization, users, what is reachable, and what runs is what is installed."""

from __future__ import annotations

import hashlib
import socket
import ssl

import pymongo
import pytest
from pymongo.errors import OperationFailure, ServerSelectionTimeoutError

from groundwork.certificates import fingerprints
from groundwork.secrets import KEPT
from groundwork import ROOT
from tasks.mongodb import KEPT_PASSWORD


@pytest.fixture(scope="module")
def port(mongodb):
    """That host's MongoDB, through a tunnel."""
    with mongodb.tunnel(mongodb.settings("mongodb").port) as port:
        yield port


@pytest.fixture
def client(mongodb, port):
    """A client of that host's MongoDB with the credentials asked for."""
    settings = mongodb.settings("mongodb")
    # A tunnel's end is no name that a certificate has.
    tls = {"tls": True, "tlsAllowInvalidHostnames": True} if settings.tls != "off" else {}
    authority = {"tlsCAFile": str(ROOT / settings.tls_authority)} if tls and settings.tls_authority else {}
    clients = []

    def make(**login) -> pymongo.MongoClient:
        options = {"directConnection": True, "serverSelectionTimeoutMS": 5000, **tls, **authority, **login}
        clients.append(pymongo.MongoClient("127.0.0.1", port, **options))
        return clients[-1]

    yield make
    for made in clients:
        made.close()


def _login(mongodb, user) -> dict:
    return {
        "username": user.name,
        "password": mongodb.secrets.value(f"mongodb/{user.name}"),
        "authSource": user.database,
    }


def test_without_a_password_nothing_is_told(mongodb, client):
    with pytest.raises(OperationFailure, match="requires authentication"):
        client().list_database_names()


def test_with_tls_it_serves_its_certificate_for_its_names_and_nobody_comes_in_without(mongodb, port):
    settings = mongodb.settings("mongodb")
    if settings.tls == "off":
        pytest.skip("mongodb_tls is off")
    with pytest.raises(ServerSelectionTimeoutError):
        pymongo.MongoClient("127.0.0.1", port, directConnection=True, serverSelectionTimeoutMS=1000).admin.command("ping")
    context = ssl.create_default_context(cafile=settings.tls_authority and ROOT / settings.tls_authority)
    wanted = fingerprints(mongodb.secrets.value(settings.tls_certificate))[0]
    names = settings.tls_names(mongodb.here)
    context.check_hostname = bool(names)
    for name in names or ["localhost"]:
        with socket.create_connection(("127.0.0.1", port), 10) as raw, context.wrap_socket(raw, server_hostname=name) as secured:
            assert hashlib.sha256(secured.getpeercert(binary_form=True)).hexdigest() == wanted, "it serves another"
            assert secured.version() in ("TLSv1.2", "TLSv1.3")
    key = mongodb.check(f"stat -c '%U %a' {settings.certificate_file}")
    assert key.split() == ["mongodb", "600"]


def test_a_user_can_not_be_made_without_a_login(mongodb, client):
    with pytest.raises(OperationFailure, match="requires authentication"):
        client().admin.command("createUser", "intruder", pwd="x", roles=[])


def test_a_wrong_password_is_refused(mongodb, client):
    for user, source in [("admin", "admin"), *((u.name, u.database) for u in mongodb.settings("mongodb").present)]:
        with pytest.raises(OperationFailure, match="Authentication failed"):
            client(username=user, password="wrong", authSource=source).admin.command("connectionStatus")


def test_the_administrator_administers_users_and_reads_no_data(mongodb, client):
    admin = client(username="admin", password=mongodb.secrets.value("mongodb/admin"), authSource="admin")
    status = admin.admin.command("connectionStatus")["authInfo"]
    assert status["authenticatedUserRoles"] == [{"role": "userAdminAnyDatabase", "db": "admin"}]
    for user in mongodb.settings("mongodb").present:
        with pytest.raises(OperationFailure, match="not authorized"):
            admin[user.database].items.find_one()


def test_each_user_has_its_roles_in_its_own_database_and_no_more(mongodb, client):
    for user in mongodb.settings("mongodb").present:
        theirs = client(**_login(mongodb, user))
        status = theirs[user.database].command("connectionStatus")["authInfo"]
        wanted = [{"role": role, "db": user.database} for role in user.roles]
        assert sorted(status["authenticatedUserRoles"], key=str) == sorted(wanted, key=str)
        with pytest.raises(OperationFailure, match="not authorized"):
            theirs["somebody_elses"].items.find_one()


def test_users_who_shall_be_absent_are(mongodb, client):
    absent = {(user.name, user.database) for user in mongodb.settings("mongodb").users if user.state == "absent"}
    admin = client(username="admin", password=mongodb.secrets.value("mongodb/admin"), authSource="admin")
    there = admin.admin.command("usersInfo", {"forAllDBs": True})["users"]
    assert absent & {(user["user"], user["db"]) for user in there} == set()


def test_the_administrators_password_is_kept_for_root_alone(mongodb):
    found = mongodb.check(f"stat -c '%U:%G %a' {KEPT} {KEPT_PASSWORD}; sha256sum <{KEPT_PASSWORD}").split()
    digest = hashlib.sha256(mongodb.secrets.value("mongodb/admin").encode()).hexdigest()
    assert found == ["root:root", "700", "root:root", "600", digest, "-"]
    assert mongodb.run(f"runuser -u mongodb -- cat {KEPT_PASSWORD}").returncode == 1


def test_collections_and_indexes_are_there(mongodb, client):
    settings = mongodb.settings("mongodb")
    for collection in settings.collections:
        owner = next(user for user in settings.present if user.database == collection.database)
        database = client(**_login(mongodb, owner))[collection.database]
        found = list(database.list_collections(filter={"name": collection.name}))
        assert found, f"{collection.name} is missing"
        assert found[0]["type"] == ("timeseries" if collection.timeseries else "collection")
        names = database[collection.name].index_information()
        for index in collection.indexes:
            assert "_".join(str(part) for item in index.keys.items() for part in item) in names


def test_it_listens_where_it_was_told_and_nowhere_else(mongodb):
    settings = mongodb.settings("mongodb")
    listening = mongodb.check(f"ss -Hltn 'sport = :{settings.port}'")
    addresses = {line.split()[3].rsplit(":", 1)[0].strip("[]") for line in listening.splitlines()}
    assert addresses == set(settings.listens_on(mongodb.here))


def test_what_runs_is_what_is_installed(mongodb):
    version = mongodb.check("dpkg-query -W -f '${Version}' mongodb-org-server")
    assert version.startswith(mongodb.settings("mongodb").series_for(mongodb.here) + ".")
    running = mongodb.check("/proc/$(pidof mongod)/exe --version")
    assert f"db version v{version}" in running


def test_packages_are_held(mongodb):
    held = mongodb.check("apt-mark showhold").split()
    assert {"mongodb-org", "mongodb-org-server"} <= set(held)


def test_data_and_log_are_closed_to_others(mongodb):
    assert mongodb.check("stat -c '%U:%G' /var/lib/mongodb").strip() == "mongodb:mongodb"
    assert mongodb.check("find /var/lib/mongodb/ /var/log/mongodb/ -type f -perm /o+rwx") == ""


def test_limits_of_the_running_server(mongodb):
    set_to = mongodb.check("systemctl show -p LimitNOFILE -p LimitNPROC mongod.service").split()
    assert set_to == ["LimitNOFILE=64000", "LimitNPROC=64000"]
    # A container's own hard limit may be lower (the lab's is 20000): nobody in it can raise that.
    ceiling = _limit(mongodb, "1", "Max open files")
    assert _limit(mongodb, "$(pidof mongod)", "Max open files") == min(64000, ceiling)
    assert _limit(mongodb, "$(pidof mongod)", "Max processes") == 64000


def _limit(mongodb, process: str, name: str) -> int:
    line = mongodb.check(f"grep '^{name}' /proc/{process}/limits")
    return int(line.removeprefix(name).split()[1])


def test_kernel_settings_are_written_for_boot(mongodb):
    text = mongodb.check("cat /etc/sysctl.d/60-groundwork-mongodb.conf")
    assert "vm.swappiness = 1" in text
    if not mongodb.here.machine.container:
        assert mongodb.check("sysctl -n vm.swappiness").strip() == "1"
        wanted = mongodb.settings("mongodb").huge_pages(mongodb.here)
        assert f"[{wanted}]" in mongodb.check("cat /sys/kernel/mm/transparent_hugepage/enabled")
