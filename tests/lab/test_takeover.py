"""Hosts that are not bare: told before anything is touched, and taken over without losing what they hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.lab.conftest import ROOT, Lab

SECRETS = {
    "GROUNDWORK_SECRET_MONGODB_ADMIN": "admin-A1 '\"$x\\:@/%#&",
    "GROUNDWORK_SECRET_REDIS_ADMIN": "redis-B2 '\"$x\\:@/%#&",
    "GROUNDWORK_SECRET_REDIS_APP": "redis-C3 '\"$x\\:@/%#&",
}

# Two servers that somebody set up by hand. `settings` is what the user adds when the run has told them.
INVENTORY = """
from lab import REPOSITORY, REPOSITORY_KEY, lab_host

_data = {
    "mongodb_repository": f"{REPOSITORY}/mongodb/apt", "mongodb_repository_key": REPOSITORY_KEY, "mongodb_series": "6.0",
    "nginx_frontend": "examples/frontend", "base_first_run_upgrade": False,
}
_one = lab_host("taken1", "10.87.0.81", memory=4096, **_data)
_two = lab_host("taken2", "10.87.0.82", memory=4096, **_data)
__SETTINGS__
nginx = [_one, _two]
mongodb = [_one, _two]
redis = [_one]
docker = [_two]
"""

DECIDED = """
_one[1].update(take_over=["base", "nginx", "mongodb", "redis"], redis_maxmemory_policy="noeviction",
               flows=[{"source": "internet", "role": "base", "port": 9000}])
_two[1].update(take_over=["docker"])
"""

PACKAGES = """set -e; . /etc/os-release
curl -fsS {repository}/mongodb/key.asc -o /etc/apt/keyrings/old.asc 2>/dev/null || cp /tmp/key.asc /etc/apt/keyrings/old.asc
echo "deb [signed-by=/etc/apt/keyrings/old.asc] {repository}/mongodb/apt/$ID $VERSION_CODENAME/mongodb-org/6.0 main" >/etc/apt/sources.list.d/old.list
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update; apt-get -qq -y install --no-install-recommends {packages} >/dev/null 2>&1
systemctl start mongod; for n in $(seq 60); do mongosh --quiet --eval 1 >/dev/null 2>&1 && break; sleep 0.5; done
"""

ONE = """set -e
echo 'server { listen 80 default_server; location / { return 200 "the old shop"; } }' >/etc/nginx/sites-enabled/shop
rm -f /etc/nginx/sites-enabled/default; systemctl restart nginx
echo "requirepass \\"old pass' \\$x\\"" >>/etc/redis/redis.conf
systemctl restart redis-server
sleep 0.5
{ echo "AUTH \\"old pass' \\$x\\""; for n in $(seq 500); do echo "SET key:$n value-$n"; done; } | redis-cli | sort | uniq -c
mongosh --quiet shop --eval 'db.items.insertMany([{n: 1}, {n: 2}, {n: 3}]); db.createUser({user: "legacy", pwd: "legacy", roles: ["read"]})' >/dev/null
mkdir -p /srv/other; systemd-run -q --unit=reports python3 -m http.server -d /srv/other 9000
systemd-run -q --unit=forgotten python3 -m http.server -d /srv/other 9001
mongosh --quiet admin --eval 'db.createUser({user: "admin", pwd: "another", roles: ["root"]})' >/dev/null
DEBIAN_FRONTEND=noninteractive apt-get -qq -y remove mongodb-mongosh >/dev/null 2>&1; ! command -v mongosh
ufw allow 22/tcp >/dev/null; ufw allow 80/tcp >/dev/null; ufw allow 9000/tcp >/dev/null; ufw --force enable >/dev/null
"""

TWO = """set -e
systemctl disable -q --now nginx
mkdir -p /srv/other; echo 'an old site' >/srv/other/index.html; systemd-run -q --unit=oldsite python3 -m http.server -d /srv/other 80
mongosh --quiet admin --eval 'db.createUser({user: "boss", pwd: "boss", roles: ["root"]})' >/dev/null
mongosh --quiet shop --eval 'db.items.insertOne({n: 7}); db.createUser({user: "legacy", pwd: "legacy", roles: ["read"]})' >/dev/null
printf 'security:\\n  authorization: enabled\\n' >>/etc/mongod.conf; systemctl restart mongod
cd $(mktemp -d); mkdir -p root/bin; cp $(command -v busybox) root/bin/; ln -s busybox root/bin/sh; ln -s busybox root/bin/sleep; tar -C root -c bin | docker import - small:latest >/dev/null
docker run -d --name keeps --restart unless-stopped -p 8080:80 small sleep 3600 >/dev/null
echo '{"log-level": "warn"}' >/etc/docker/daemon.json; usermod -aG docker games
mkdir /srv/corp; touch /srv/corp/Packages
{ echo '# our mirror'; echo 'deb [trusted=yes] file:/srv/corp ./'; cat /etc/apt/sources.list.d/old.list; } >/etc/apt/sources.list.d/corp.list
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("takeover")


def _inventory(directory, name: str, settings: str = "") -> Lab:
    path = directory / f"{name}.py"
    path.write_text(INVENTORY.replace("__SETTINGS__", settings))
    return Lab(str(path))


@pytest.fixture(scope="module")
def used(directory) -> Lab:
    """Two fresh hosts, used by somebody."""
    from lab import REPOSITORY, REPOSITORY_KEY

    lab = _inventory(directory, "found_lab")
    lab.fresh()
    key = open(REPOSITORY_KEY).read()
    for host, packages, script in (
        ("taken1", "nginx redis-server mongodb-org ufw", ONE),
        # From Debian 13 on, docker's command is a package of its own.
        ("taken2", "nginx mongodb-org docker.io busybox-static $(apt-cache -q show docker-cli >/dev/null 2>&1 && echo docker-cli)", TWO),
    ):
        _root(lab, host, f"cat >/tmp/key.asc <<'E'\n{key}\nE\n" + PACKAGES.replace("{repository}", REPOSITORY).replace("{packages}", packages))
        _root(lab, host, script)
    return lab


def _root(lab: Lab, host: str, script: str, check: bool = True) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "lab", "ssh", host, "sudo bash"],
        cwd=ROOT, input=script, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0 or not check, f"{script}\n{done.stdout}{done.stderr}"
    return done.stdout


def _run(inventory: Lab, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "pyinfra", "-y", inventory.inventory, "deploy.py", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=900, stdin=subprocess.DEVNULL,
        env={**os.environ, **SECRETS, "PYINFRA_PROGRESS": "off"},
    )  # fmt: skip


def _page(address: str, port: int = 80) -> str:
    done = subprocess.run(["curl", "-skL", "-m", "5", f"http://{address}:{port}/"], capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else ""


def _untouched(lab: Lab) -> None:
    for host in ("taken1", "taken2"):
        assert _root(lab, host, "ls -d /var/lib/groundwork /etc/groundwork /etc/*/*.before-groundwork", check=False) == ""
    assert _page("10.87.0.81") == "the old shop"
    assert "an old site" in _page("10.87.0.82")
    assert _root(lab, "taken1", "ufw status | head -n 1").strip() == "Status: active"
    assert _root(lab, "taken2", "docker ps --format '{{.Names}}'").strip() == "keeps"


def test_all_is_told_at_once_and_nothing_is_touched(used):
    done = _run(used)
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr, done.stderr
    assert "Starting operation" not in done.stderr and "nothing was changed" in done.stderr
    for host, words in {
        "taken1: base: ufw is active": ["ufw allow 22/tcp; ufw allow 80/tcp; ufw allow 9000/tcp", "`ufw disable`", 'take_over = ["base"]'],
        "taken1: base: the firewall will close": ["port 9000 of python3 (reports.service)", "port 9001 of python3 (forgotten.service)", "flows ="],
        "taken1: nginx: nginx has sites of its own": ["/etc/nginx/sites-enabled/shop", "nginx.conf.before-groundwork", 'take_over = ["nginx"]'],
        "taken1: mongodb: MongoDB 6.0.5 has data in /var/lib/mongodb": ["asks nobody for a password", "its data and users stay", 'take_over = ["mongodb"]'],
        "taken1: redis: its maxmemory-policy is noeviction": ["set redis_maxmemory_policy"],
        "taken2: nginx: port 80 is taken by python3 (oldsite.service)": ["systemctl disable --now oldsite.service"],
        "taken2: mongodb: it refuses the administrator admin": ["createUser", "passwordPrompt()", "mongodb/admin --no-generate"],
        "taken2: mongodb: apt refuses one repository with two keys": ["/etc/apt/sources.list.d/corp.list, line 3: deb [signed-by=/etc/apt/keyrings/old.asc]"],
        "taken2: docker: containers run (keeps)": ["8080", 'take_over = ["docker"]'],
        "taken2: docker: /etc/docker/daemon.json has log-level": ["daemon.json.before-groundwork"],
        "taken2: docker: games will not be in the group docker": ["docker_users"],
    }.items():
        line = [line for line in done.stderr.splitlines() if host in line]
        assert len(line) == 1, f"{host}\n{done.stderr}"
        for word in words:
            assert word in line[0], line[0]
    assert len([line for line in done.stderr.splitlines() if line.strip().startswith("- ")]) == 11, done.stderr
    assert "old pass" not in done.stderr + done.stdout
    _untouched(used)


def test_one_host_is_taken_over_with_all_that_it_holds(used, directory):
    decided = _inventory(directory, "found_lab", DECIDED)
    _an_administrator_comes_before_passwords(used, decided)
    done = _run(decided, "--limit", "taken1")
    assert done.returncode == 0, done.stderr[-4000:]
    assert "kept as /etc/nginx/nginx.conf.before-groundwork" in done.stderr

    assert _login("taken1", used, "admin", SECRETS["GROUNDWORK_SECRET_MONGODB_ADMIN"], "admin") == "true"
    assert _count("taken1", used) == "3"
    assert "requires authentication" in _root(used, "taken1", "mongosh --quiet shop --eval 'db.items.countDocuments()' 2>&1", check=False)
    redis = "AUTH admin \"" + SECRETS["GROUNDWORK_SECRET_REDIS_ADMIN"].replace("\\", "\\\\").replace('"', '\\"') + '"\nDBSIZE\nGET key:321\n'
    assert _root(used, "taken1", f"redis-cli <<'E'\n{redis}E\n").split() == ["OK", "500", "value-321"]
    assert "NOAUTH" in _root(used, "taken1", "redis-cli DBSIZE 2>&1") or "NOPERM" in _root(used, "taken1", "redis-cli DBSIZE 2>&1")

    assert "the old shop" not in _page("10.87.0.81") and "<html" in _page("10.87.0.81")
    assert "old shop" in _root(used, "taken1", "cat /etc/nginx/sites-enabled/shop")
    assert "sites-enabled" in _root(used, "taken1", "cat /etc/nginx/nginx.conf.before-groundwork")
    kept = _root(used, "taken1", "stat -c %a /etc/redis/redis.conf.before-groundwork; grep -c requirepass /etc/redis/redis.conf.before-groundwork")
    assert kept.split()[0] == "640"

    # What was declared stays open, what was not is closed, ufw has gone.
    assert _root(used, "taken1", "ufw status | head -n 1").strip() == "Status: inactive"
    assert "Directory listing" in _page("10.87.0.81", 9000)
    assert _page("10.87.0.81", 9001) == ""
    assert _page("10.87.0.82") != "", "the other host was not in this run"
    _nothing_more(decided, "taken1")


def _an_administrator_comes_before_passwords(used: Lab, decided: Lab) -> None:
    """With no mongosh nobody could ask whether there is an admin: there is, with another password."""
    done = _run(decided, "--limit", "taken1")
    assert done.returncode == 1 and "no administrator admin with the secret mongodb/admin" in done.stderr, done.stderr[-4000:]
    assert _root(used, "taken1", "ls /etc/mongod.conf.before-groundwork /etc/systemd/system/mongod.service.d; grep authorization: /etc/mongod.conf", check=False) == ""
    assert _root(used, "taken1", "mongosh --quiet shop --eval 'db.items.countDocuments()'").strip() == "3"
    done = _run(decided, "--limit", "taken1")
    assert done.returncode == 1 and "taken1: mongodb: it refuses the administrator admin" in done.stderr, done.stderr[-4000:]
    assert "nothing was changed" in done.stderr and "taken1: base" not in done.stderr
    _root(used, "taken1", "mongosh --quiet admin --eval 'db.dropUser(\"admin\")'")


def _nothing_more(inventory: Lab, host: str) -> None:
    """Once the roles have been there nothing is asked or changed any more, with no `take_over` either."""
    plain = inventory.inventory.replace("found_lab", "plain_lab")
    text = open(inventory.inventory).read()
    with open(plain, "w") as file:
        file.write(text.replace('take_over=["base", "nginx", "mongodb", "redis"], ', "").replace('take_over=["docker"]', ""))
    done = _run(Lab(plain), "--limit", host, "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    assert [item["name"] for item in json.loads(done.stdout)["results"]["operations"] if item["success"]] == []
    assert "Found:" not in done.stderr


def _login(host: str, lab: Lab, user: str, password: str, database: str) -> str:
    script = (
        f"new Mongo(`mongodb://{user}:${{encodeURIComponent({json.dumps(password)})}}@127.0.0.1/?authSource={database}`); print(true)"
    )
    return _root(lab, host, f"mongosh --quiet --norc --nodb --file /dev/stdin <<'E'\n{script}\nE\n").strip()


def _count(host: str, lab: Lab) -> str:
    """Documents that the user from before sees, with the password from before."""
    return _root(lab, host, "mongosh --quiet 'mongodb://legacy:legacy@127.0.0.1/shop' --eval 'db.items.countDocuments()'").strip()


def test_the_way_out_is_one(used, directory):
    """The other host: do what the messages say, and it is taken over."""
    decided = _inventory(directory, "found_lab", DECIDED)
    done = _run(decided)
    assert done.returncode == 1 and "taken1" not in done.stderr.split("put right")[1]
    assert "an old site" in _page("10.87.0.82")

    _root(used, "taken2", "systemctl stop oldsite.service; sed -i 3d /etc/apt/sources.list.d/corp.list")
    create = f"db.getSiblingDB('admin').createUser({{user: 'admin', pwd: {json.dumps(SECRETS['GROUNDWORK_SECRET_MONGODB_ADMIN'])}, roles: ['userAdminAnyDatabase']}})"
    _root(used, "taken2", f"mongosh --quiet 'mongodb://boss:boss@127.0.0.1/admin' --file /dev/stdin <<'E'\n{create}\nE\n")
    done = _run(decided)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Found: taken2: mongodb: MongoDB 6.0.5 has data" in done.stderr

    assert _count("taken2", used) == "1"
    assert _login("taken2", used, "boss", "boss", "admin") == "true"
    assert _root(used, "taken2", "docker ps --format '{{.Names}}'").strip() == "keeps"
    sources = _root(used, "taken2", "cd /etc/apt/sources.list.d; ls; cat corp.list")
    assert "old.list.before-groundwork" in sources and "deb [trusted=yes] file:/srv/corp ./" in sources
    assert "log-level" in _root(used, "taken2", "cat /etc/docker/daemon.json.before-groundwork")
    assert "<html" in _page("10.87.0.82")
    _nothing_more(decided, "taken2")
