"""What a run says of a host that is not bare: from recorded answers, with no host."""

from __future__ import annotations

import subprocess

import pytest

from facts.found import Found as Fact
from facts.found import read
from groundwork.takeover import new_roles, sentences
from tests.unit.conftest import machine
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
    "MongoDB's source": (["mongodb"], "Q|mongodb|/etc/apt/sources.list.d/old.list\n", "told", "old.list.before-groundwork", {}),
    "Docker's source": (["docker"], "Q|docker|/etc/apt/sources.list.d/d.list\n", "told", "d.list is kept", {"docker_repository": "vendor"}),
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
    assert done.returncode == 1 and "take_over: 'ngnix' is none of base, docker" in done.stderr
