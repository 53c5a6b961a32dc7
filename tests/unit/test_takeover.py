"""What a run says of a host that is not bare: from recorded answers, with no host."""

from __future__ import annotations

import json
import os
import re
import subprocess
from types import SimpleNamespace

import pytest
from paramiko import SSHException

from facts import found as facts
from facts.found import Found as Fact
from facts.found import read
from groundwork import preflight
from groundwork.takeover import new_roles, sentences
from operations import takeover as operations
from tests.unit.conftest import machine, make_topology
from tests.unit.pyinfra_fake import group_data, inventory, run

BARE = 'S|tcp LISTEN 0 128 0.0.0.0:22 0.0.0.0:* users:(("sshd",pid=38,fd=3))\nU|38|ssh.service\n'
FRONT = {"nginx_frontend": "examples/frontend"}
DATA = "MV|6.0.5\nMD|/var/lib/mongodb\nMO|dbPath|/var/lib/mongodb\n" + (
    'S|tcp LISTEN 0 4096 127.0.0.1:27017 0.0.0.0:* users:(("mongod",pid=9,fd=3))\nU|9|mongod.service\n'
)
KEYS = (
    "RO|dir|/var/lib/redis\nRI|used_memory|1048576\nRI|role|master\nRI|connected_slaves|0\nRI|cluster_enabled|0\n"
    "RI|maxmemory_policy|allkeys-lru\nRI|db0|keys=500,expires=0,avg_ttl=0\nRF|/var/lib/redis/dump.rdb\n"
)
NFT = """N|table inet filter {
N|\tchain input {
N|\t\ttype filter hook input priority filter; policy drop;
N|\t\ttcp dport 22 accept
N|\t}
N|}
"""
DOCKERS = """N|table ip filter {
N|\tchain DOCKER {
N|\t\tiifname != "docker0" oifname "docker0" counter drop
N|\t}
N|\tchain FORWARD {
N|\t\ttype filter hook forward priority filter; policy drop;
N|\t}
N|}
N|table inet f2b-table {
N|\tchain f2b-chain {
N|\t\ttype filter hook input priority filter - 1; policy accept;
N|\t\ttcp dport 22 ip saddr @addr-set-sshd reject with icmp port-unreachable
N|\t}
N|}
"""


_MONGODBS = "http://repo.mongodb.org/apt/debian bookworm/mongodb-org/6.0 main"
_CORP = "Q|mongodb|/etc/apt/sources.list.d/corp"
SOURCES = {
    "alone": f"Q|mongodb|/etc/apt/sources.list.d/old.list|2|deb {_MONGODBS}\nQ|mongodb|/etc/apt/sources.list.d/old.list|3|deb-src {_MONGODBS}\n",
    "shared": f"{_CORP}.list|1|deb http://mirror.example/debian bookworm main\n{_CORP}.list|3|deb [arch=amd64 signed-by=/k.asc] {_MONGODBS} # ours\n",
    "a comment": f"{_CORP}.list|1|deb http://mirror.example/debian bookworm main # no mongodb-org here\n",
    "a keyring": f"{_CORP}.list|1|deb [signed-by=/usr/share/keyrings/mongodb-org.gpg] http://mirror.example/debian bookworm main\n",
    "stanzas": (
        f"{_CORP}.sources|1|Types: deb\n{_CORP}.sources|2|URIs: http://mirror.example/debian\n{_CORP}.sources|3|Suites: bookworm\n{_CORP}.sources|5|\n"
        f"{_CORP}.sources|6|Types: deb\n{_CORP}.sources|7|URIs:\n{_CORP}.sources|8|  http://repo.mongodb.org/apt/debian\n"
        f"{_CORP}.sources|9|Suites: bookworm/mongodb-org/6.0\n"
    ),
    "two URIs": f"{_CORP}.sources|1|URIs: http://a.example http://repo.mongodb.org/mongodb-org\n{_CORP}.sources|2|Suites: bookworm\n",
    "switched off": f"{_CORP}.sources|1|Enabled: no\n{_CORP}.sources|2|URIs: http://a.example\n{_CORP}.sources|3|Suites: bookworm/mongodb-org/6.0\n",
}
"""What the script prints of apt's files that have the vendor's name anywhere: it leaves comment lines out."""
DOCKERS_SOURCE = "Q|docker|/etc/apt/sources.list.d/d.list|1|deb https://download.docker.com/linux/debian bookworm stable\n"


def told(make_here, roles: list[str], text: str, login: str = "", **data: object) -> tuple[list[str], list[str]]:
    """Notes and errors for a host on which the script found this."""
    found = read((BARE + text).splitlines())
    found.mongodb.login = login
    return sentences(make_here(roles, **data), found)


def test_a_bare_host_is_told_nothing(make_here):
    roles = ["docker", "mongodb", "redis", "chromadb", "app", "nginx"]
    assert told(make_here, roles, DOCKERS + "P|nginx|installed\n", **FRONT) == ([], [])


SITUATIONS = {
    # name: (roles, what the script found, answer, words, more data)
    "another program": (
        ["nginx"], 'S|tcp LISTEN 0 5 *:80 *:* users:(("apache2",pid=7,fd=4))\nU|7|apache2.service\n',
        "refused", "nginx: port 80 is taken by apache2 (apache2.service): give it another port, or `systemctl disable --now apache2.service`", FRONT,
    ),
    "a container at the port": (
        ["nginx"], 'S|tcp LISTEN 0 5 *:80 *:* users:(("docker-proxy",pid=7,fd=4))\nU|7|docker.service\n', "refused", "stop the container (`docker ps`", FRONT,
    ),
    "an nginx started by hand": (
        ["nginx"], 'S|tcp LISTEN 0 5 *:80 *:* users:(("nginx",pid=7,fd=4))\nU|7|session-3.scope\n', "refused", "taken by nginx (session-3.scope)", FRONT,
    ),
    "the default site": (
        ["nginx"], 'S|tcp LISTEN 0 5 *:80 *:* users:(("nginx",pid=7,fd=4))\nU|7|nginx.service\n', "told", "default site alone", FRONT,
    ),
    "sites": (["nginx"], "X|/etc/nginx/sites-enabled/shop\n", "asked", "/etc/nginx/sites-enabled/shop", FRONT),
    "ufw": (["base"], "W|\nW|ufw allow 9000/tcp\n" + NFT.replace("inet filter", "ip filter"), "asked", "ufw allow 9000/tcp", {}),
    "firewalld": (["base"], "F|\n", "refused", "systemctl disable --now firewalld", {}),
    "nftables": (["base"], NFT + "B|nftables.service\n", "refused", "(inet filter)", {}),
    "iptables": (["base"], "I|*filter\nI|:INPUT ACCEPT [0:0]\nI|-A INPUT -p tcp --dport 25 -j REJECT\n", "refused", "(iptables filter)", {}),
    "a port that gets closed": (
        ["base"], 'S|tcp LISTEN 0 5 *:9000 *:* users:(("java",pid=7,fd=4))\nU|7|shop.service\n', "asked", "port 9000 of java (shop.service)", {},
    ),
    "an UDP port that gets closed": (
        ["base"], 'S|udp UNCONN 0 0 0.0.0.0:53 0.0.0.0:* users:(("dnsmasq",pid=7,fd=4))\nU|7|-\n', "asked", "port 53/udp of dnsmasq", {},
    ),
    "people with passwords": (["base"], "A|anna\nA|bob\n", "asked", "anna, bob can log in with a password", {}),
    "MongoDB in order": (["mongodb"], DATA + "MO|authorization|enabled\n", "told", "its data and users stay", {"login": "good"}),
    "MongoDB without passwords": (["mongodb"], DATA, "asked", "asks nobody for a password", {"login": "open"}),
    "MongoDB on another port": (["mongodb"], DATA + "MO|authorization|enabled\nMO|port|27018\n", "asked", "from port 27018 to 27017", {"login": "good"}),
    "MongoDB without our admin": (["mongodb"], DATA + "MO|authorization|enabled\n", "refused", "mongosh --port 27017 -u NAME", {"login": "refused"}),
    "MongoDB with a poor admin": (["mongodb"], DATA + "MO|authorization|enabled\n", "refused", "grantRolesToUser", {"login": "poor"}),
    "MongoDB that can't be asked": (["mongodb"], DATA + "MO|authorization|enabled\n", "refused", "apt-get install mongodb-mongosh", {"login": "unknown"}),
    "MongoDB elsewhere": (
        ["mongodb"], DATA.replace("/var/lib/mongodb", "/srv/db"), "refused", "mv /srv/db /var/lib/mongodb", {"login": "good"},
    ),
    "MongoDB started with a path": (
        ["mongodb"], DATA.replace("MD|/var/lib/mongodb", "MD|/data/db").replace("MO|dbPath|/var/lib/mongodb\n", "")
        + "MA|/usr/bin/mongod --dbpath=/data/db --port 27017\n", "refused", "its data is in /data/db", {"login": "good"},
    ),
    "MongoDB of another series": (["mongodb"], DATA.replace("6.0.5", "5.0.9"), "refused", 'set mongodb_series = "5.0"', {"login": "open"}),
    "MongoDB that nobody can ask, without passwords": (["mongodb"], DATA, "refused", "does not answer on 127.0.0.1", {"login": "silent"}),
    "MongoDB that does not listen on loopback": (
        ["mongodb"], DATA.replace("127.0.0.1:27017", "127.0.0.2:27017"), "refused", "add 127.0.0.1 to net.bindIp", {"login": "unknown"},
    ),
    "MongoDB with TLS alone": (["mongodb"], DATA + "MO|mode|requireTLS\nMO|mode|off\n", "refused", "set mode: preferTLS", {"login": "unknown"}),
    "MongoDB without passwords, and no mongosh yet": (["mongodb"], DATA, "asked", "asks nobody for a password", {"login": "unknown"}),
    "MongoDB's source": (["mongodb"], SOURCES["alone"], "told", "old.list.before-groundwork", {}),
    "MongoDB's source among others": (
        ["mongodb"], SOURCES["shared"], "refused",
        "corp.list, line 3: deb [arch=amd64 signed-by=/k.asc] http://repo.mongodb.org/apt/debian bookworm/mongodb-org/6.0 main. Take that out", {},
    ),
    "MongoDB's stanza among others": (["mongodb"], SOURCES["stanzas"], "refused", "corp.sources, line 6: URIs: http://repo.mongodb.org/apt/debian,", {}),
    "a stanza of MongoDB's URI and another": (["mongodb"], SOURCES["two URIs"], "refused", "corp.sources, line 1: URIs: http://a.example", {}),
    "Docker's source": (["docker"], DOCKERS_SOURCE, "told", "d.list is kept", {"docker_repository": "vendor"}),
    "Docker's source among others": (
        ["docker"], DOCKERS_SOURCE + "Q|docker|/etc/apt/sources.list.d/d.list|2|deb http://mirror.example/debian bookworm main\n",
        "refused", "d.list, line 1: deb", {"docker_repository": "vendor"},
    ),
    "a replica set": (["mongodb"], DATA + "MO|replSetName|rs0\n", "refused", "replSetName = rs0", {"login": "good"}),
    "MongoDB's directories": (["mongodb"], DATA + "MO|directoryPerDB|true\n", "refused", "directoryPerDB", {"login": "good"}),
    "MongoDB stopped": (["mongodb"], "MV|6.0.5\nMD|/var/lib/mongodb\n", "refused", "systemctl start mongod", {}),
    "Redis with data": (["redis"], KEYS, "asked", "Redis holds data (db0), which stays", {}),
    "Redis with another policy": (["redis"], KEYS.replace("allkeys-lru", "noeviction"), "refused", "set redis_maxmemory_policy", {}),
    "Redis with too much": (["redis"], KEYS.replace("1048576", "9000000000"), "refused", "it uses 8583 MiB", {}),
    "Redis elsewhere": (["redis"], KEYS.replace("RO|dir|/var/lib/redis", "RO|dir|/srv/redis"), "refused", "its data is in /srv/redis", {}),
    "Redis with replicas": (["redis"], KEYS.replace("connected_slaves|0", "connected_slaves|2"), "refused", "one of several servers", {}),
    "Redis in a cluster": (["redis"], KEYS.replace("cluster_enabled|0", "cluster_enabled|1"), "refused", "part of a cluster", {}),
    "Redis with another file": (["redis"], KEYS + 'RO|appendfilename|"a.aof"\n', "refused", "its appendfilename is a.aof", {}),
    "Redis with db16": (["redis"], KEYS + "RI|db16|keys=1\n", "refused", "has data in db16", {}),
    "Redis that does not answer": (["redis"], "RF|/var/lib/redis/dump.rdb\n", "refused", "systemctl start redis-server", {}),
    "NVIDIA's driver": (["gpu"], "P|nvidia-driver-570|installed\nP|nvidia-dkms-570|config-files\n", "asked", "is there (nvidia-driver-570)", {}),
    "NVIDIA's own program": (["gpu"], "GR|\n", "refused", "`nvidia-uninstall`, reboot", {}),
    "containers": (["docker"], "DI|/var/lib/docker|inactive|false\nDC|/web|no|0.0.0.0:8080 \n", "asked", "docker update --restart unless-stopped web", {}),
    "a swarm": (["docker"], "DI|/var/lib/docker|active|false\n", "refused", "docker swarm leave", {}),
    "Docker elsewhere": (["docker"], "DI|/srv/docker|inactive|false\nDK|data-root\n", "refused", "images and containers are in /srv/docker", {}),
    "Docker's other packages": (["docker"], "P|docker-ce|installed\n", "refused", 'docker_repository = "vendor"', {}),
    "words of daemon.json": (["docker"], "DK|registry-mirrors\nDK|log-driver\n", "asked", "daemon.json has registry-mirrors,", {}),
    "Docker's users": (["docker"], "DU|anna\n", "asked", "anna will not be in the group docker", {}),
}  # fmt: skip


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_situation_has_its_answer(make_here, situation):
    roles, text, answer, words, more = SITUATIONS[situation]
    data = {"mongodb_series": "6.0", "mongodb_repository": "http://mirror.example/apt", **more}
    login = str(data.pop("login", ""))
    notes, errors = told(make_here, roles, text, login, **data)
    said = notes if answer == "told" else errors
    assert len(said) == 1 and not (errors if answer == "told" else notes), (notes, errors)
    assert words in said[0]
    assert ("take_over = " in said[0]) == (answer == "asked")
    # Knowingly: what was asked becomes a note, what is refused stays refused.
    notes, errors = told(make_here, roles, text, login, take_over=["base", *roles], **data)
    assert bool(errors) == (answer == "refused")


def test_a_flow_keeps_a_port_open(make_here):
    text = 'S|tcp LISTEN 0 5 *:9000 *:* users:(("java",pid=7,fd=4))\nU|7|shop.service\n'
    flows = [{"source": "internet", "role": "base", "port": 9000}]
    assert told(make_here, ["base"], text, flows=flows) == ([], [])


def test_what_only_the_host_reaches_is_not_closed(make_here):
    text = 'S|udp UNCONN 0 0 [fe80::1]%eth0:546 [::]:* users:(("systemd-network",pid=7,fd=4))\n' + (
        'S|tcp LISTEN 0 5 127.0.0.53%lo:53 *:* users:(("systemd-resolve",pid=8,fd=4))\n'
    )
    assert told(make_here, ["base"], text) == ([], [])


def test_a_run_that_was_cut_off_is_not_asked_about_its_own(make_here):
    text = 'S|tcp LISTEN 0 5 *:9000 *:* users:(("java",pid=7,fd=4))\nN|table inet groundwork {\nRG|\nRF|/var/lib/redis/dump.rdb\n'
    assert told(make_here, ["redis"], text) == ([], [])


@pytest.mark.parametrize("name", ["a comment", "a keyring", "switched off"])
def test_a_source_that_only_mentions_a_vendor_stays(make_here, name):
    assert told(make_here, ["mongodb"], SOURCES[name], mongodb_series="6.0", mongodb_repository="http://mirror.example/apt") == ([], [])


def test_apts_files_are_read_without_their_passwords(tmp_path):
    """Run for real, on files of both styles."""
    (tmp_path / "corp.list").write_text(f"# mongodb-org\n\n  # deb {_MONGODBS}\ndeb http://me:secret@mirror.example/debian bookworm main\n")
    (tmp_path / "old.sources").write_text("Types: deb\n# a comment\nURIs: http://x:y@repo.example/apt\nSuites: bookworm/mongodb-org/6.0\n")
    (tmp_path / "mongodb-org.sources").write_text("Suites: bookworm/mongodb-org/6.0\n")
    script = facts._sources("mongodb", "mongodb-org.sources").replace("/etc/apt/sources.list.d", str(tmp_path)).replace("/etc/apt/sources.list ", "")
    said = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False).stdout
    assert "secret" not in said and "x:y" not in said and "http://mirror.example" in said
    found = read(said.splitlines())
    assert found.sources == {"mongodb": [str(tmp_path / "old.sources")]} and found.shared_sources == {}


def test_a_first_run_that_was_cut_off_in_mongodb_goes_on(make_here):
    """Written: port 27018, which the running mongod does not have yet."""
    text = DATA + "MO|authorization|enabled\nMO|port|27018\nMG|\n"
    data = {"mongodb_series": "6.0", "mongodb_repository": "http://mirror.example/apt", "mongodb_port": 27018}
    assert told(make_here, ["mongodb"], text, "silent", **data) == ([], [])


def test_a_first_run_that_was_cut_off_in_docker_goes_on(make_here):
    here = make_here(["docker"])
    settings = here.settings(here.topology.roles["docker"])
    written = json.dumps(settings.daemon(here), indent=2)
    words = "".join(f"DK|{word}\n" for word in re.findall(r'"([a-z0-9-]*)"\s*:', written))
    assert "DK|live-restore" in words and told(make_here, ["docker"], words) == ([], [])


def test_a_first_run_that_was_cut_off_in_nginx_goes_on(make_here, tmp_path):
    """Run for real, with a dpkg that finds the files changed."""
    site, ours = tmp_path / "sites-available" / "default", tmp_path / "nginx.conf"
    site.parent.mkdir()
    site.write_text("server {}\n")
    program = tmp_path / "dpkg"
    program.write_text(f"#!/bin/sh\nprintf '??5?????? c %s\\n' {ours} {site}\n")
    program.chmod(0o755)
    script = facts._NGINX.replace("/etc/nginx", str(tmp_path))
    for text, expected in (("# Managed by Groundwork\n", []), ("http {}\n", [ours, site])):
        ours.write_text(text)
        path = f"{tmp_path}:{os.environ['PATH']}"
        said = subprocess.run(["sh", "-c", script], capture_output=True, text=True, env={"PATH": path}, check=True).stdout
        assert read(said.splitlines()).sites == list(map(str, expected))
        running = said + 'S|tcp LISTEN 0 5 *:80 *:* users:(("nginx",pid=7,fd=4))\nU|7|nginx.service\n'
        assert (told(make_here, ["nginx"], running, **FRONT) == ([], [])) == (not expected)


CROWDSEC = "N|table inet crowdsec {\nN|\tchain in {\nN|\t\ttype filter hook input priority filter; policy accept;\nN|\t\tip saddr @bad drop\n"


def test_a_host_from_before_the_mark_of_base_is_told_and_not_refused(make_here):
    assert told(make_here, ["base"], CROWDSEC)[1]
    notes, errors = told(make_here, ["base"], CROWDSEC + "N|}\nN|}\nN|table inet groundwork {\nW|\nG|\n")
    assert not errors and len(notes) == 2 and "inet crowdsec" in notes[0] and "ufw is active" in notes[1]


def _commands(operation, here, monkeypatch, **arguments):
    """What an operation would have a host do."""
    monkeypatch.setattr(operations, "current", lambda: here)
    monkeypatch.setattr(operations, "report", lambda text: None)
    monkeypatch.setattr(operations, "secret_value", lambda name: "a secret")
    return list(operation._inner(**arguments))


def test_ufw_goes_on_a_host_from_before_only_knowingly(make_here, monkeypatch):
    mark = "/var/lib/groundwork/base"
    for text, data, goes in (
        ("W|\n", {}, True),  # the run would have stopped without take_over
        ("W|\nG|\n", {}, False),
        ("W|\nG|\n", {"take_over": ["base"]}, True),
    ):
        commands = _commands(operations.base, make_here(["base"], **data), monkeypatch, found=read(text.splitlines()), mark=mark)
        assert ("ufw disable >/dev/null" in commands) == goes and f"touch {mark}" in commands[-1]


@pytest.mark.parametrize(
    ("answer", "good"),
    [
        ('{"login":"good"}', True), ('{"login":"made"}', True), ('{"login":"refused"}', False), ('{"login":"poor"}', False),
        ("", False), ("MongoServerSelectionError: not good", False),
    ],
)  # fmt: skip
def test_no_passwords_are_asked_for_before_an_administrator_is_there(make_here, monkeypatch, tmp_path, answer, good):
    """Run for real, with a mongosh that gives the answer."""
    found = read(DATA.splitlines())
    found.mongodb.login = "unknown"
    (command,) = _commands(operations.mongodb, make_here(["mongodb"]), monkeypatch, found=found)
    (tmp_path / "mongosh").write_text(f"#!/bin/sh\ncat >/dev/null\necho '{answer}'\n")
    (tmp_path / "mongosh").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", command.get_raw_value()], input="", capture_output=True, text=True, env=environment)
    assert (done.returncode == 0) == good
    assert good or "Its configuration was not touched" in done.stderr and (answer or "no answer") in done.stderr
    found.mongodb.login = "good"
    assert _commands(operations.mongodb, make_here(["mongodb"]), monkeypatch, found=found) == []


def test_where_all_roles_were_nothing_is_asked(make_here):
    here = make_here(["redis"])
    assert new_roles(here) == ["base", "redis"]
    roles = here.topology.roles
    here.machine = machine(marks=frozenset({roles["base"].mark, roles["redis"].mark}))
    assert new_roles(here) == []


def test_every_role_has_a_mark_of_its_own(make_here):
    marks = [settings.mark for settings in make_here(["base"]).topology.roles.values()]
    assert all(mark.startswith("/") for mark in marks) and len(set(marks)) == len(marks)


def test_the_script_is_a_shell_script_that_answers_on_any_host():
    script = Fact().command(["base", "nginx", "mongodb", "redis", "docker"])
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "Syntax error" not in done.stderr
    read(done.stdout.splitlines())


def test_a_run_stops_before_a_host_is_touched(tmp_path):
    group_data(tmp_path, "all", 'nginx_frontend = "examples/frontend"\n')
    path = inventory(tmp_path, ["nginx"], fake_responses={
        "os-release": ["distribution=debian", "codename=bookworm", "architecture=amd64", "cores=2", "memory=4194304", "container=none", "disk_free=20971520"],
        "ss -Hltunp": ["X|/etc/nginx/sites-enabled/shop", "W|", "W|ufw allow 25/tcp"],
    })  # fmt: skip
    done = run(path, "deploy.py", "-y")
    assert done.returncode == 1 and "Starting operation" not in done.stderr and "Traceback" not in done.stderr
    assert "2 things to put right, nothing was changed" in done.stderr
    assert '@fake/one: nginx: nginx has sites of its own' in done.stderr and 'take_over = ["base"]' in done.stderr
    group_data(tmp_path, "all", 'nginx_frontend = "examples/frontend"\ntake_over = ["base", "nginx"]\n')
    done = run(path, "deploy.py", "--dry")
    assert done.returncode == 0, done.stderr
    assert "Found: @fake/one: nginx: nginx has sites of its own" in done.stderr


def test_take_over_names_roles(tmp_path):
    group_data(tmp_path, "all", 'take_over = ["ngnix"]\n')
    done = run(inventory(tmp_path, ["base"]), "deploy.py", "-y")
    assert done.returncode == 1 and "take_over: 'ngnix' is none of base, " in done.stderr


def test_a_host_that_can_not_be_asked_what_it_holds_is_refused(monkeypatch):
    """Or it would count as one where nothing is in the way."""

    def lost(roles):
        raise SSHException("Channel closed.")

    item = type("Item", (), {"name": "one"})()  # a host is hashable
    monkeypatch.setattr(preflight, "inventory", SimpleNamespace(get_active_hosts=lambda: [item]))
    monkeypatch.setattr(preflight, "new_roles", lambda here: ["redis"])
    monkeypatch.setattr(preflight.takeover_operations, "ask", lost)
    assert list(preflight._found_errors(make_topology({"one": (["redis"], {})}))) == ["one: Channel closed."]
