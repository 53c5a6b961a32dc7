"""The role redis: its configuration, its users, and what is refused."""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess

import pytest

from groundwork.rows import Absent, File
from groundwork.secrets import KEPT
from groundwork.templates import render
from groundwork.topology import SettingsError
from operations.redis import WAY_IN, quoted
from tasks.redis import ACL, CONFIGURATION, Settings
from tests.unit.conftest import make_topology


def rendered(here, path: str) -> str:
    settings = here.settings(Settings)
    row = next(row for row in settings.files(here) if row.path == path)
    assert isinstance(row, File)
    return render(row, settings, here, lambda name: f"value of {name}").decode()


def directives(here) -> dict[str, str]:
    lines = [line for line in rendered(here, CONFIGURATION).splitlines() if line and not line.startswith("#")]
    found = dict(line.split(" ", 1) for line in lines)
    assert len(found) == len(lines)
    return found


def acl(here) -> dict[str, list[str]]:
    """User -> rules, read as Redis reads the file: every line that is not empty is a user."""
    users = {}
    for line in rendered(here, ACL).splitlines():
        if line:
            word, name, *rules = line.split()
            assert word == "user"
            users[name] = rules
    return users


def test_defaults(make_here):
    here = make_here(["redis"])
    found = directives(here)
    assert found["bind"] == "127.0.0.1"
    assert found["protected-mode"] == "yes"
    assert found["appendonly"] == "yes" and found["appendfsync"] == "everysec"
    assert found["aclfile"] == ACL
    assert found["maxmemory-policy"] == "allkeys-lru"
    assert found["maxmemory"] == f"{int(here.memory_share('redis') * 0.6)}mb"


def test_the_private_address_is_bound_only_for_another_host():
    alone = make_topology({"one": (["redis", "app"], {})}).hosts["one"]
    assert directives(alone)["bind"] == "127.0.0.1"
    apart = make_topology({"db": (["redis"], {}), "web": (["app"], {})}).hosts["db"]
    assert directives(apart)["bind"] == "127.0.0.1 10.0.0.1"


@pytest.mark.parametrize("size, expected", [("100M", "100mb"), ("1G", "1024mb"), ("512K", "1mb")])
def test_a_size_of_ones_own(make_here, size, expected):
    assert directives(make_here(["redis"], redis_maxmemory=size))["maxmemory"] == expected


def test_more_than_the_share_is_refused(make_here):
    here = make_here(["redis"], redis_maxmemory="8G")
    (error,) = here.settings(Settings).errors(here)
    assert error.startswith("redis_maxmemory: 8G is more than")
    assert not list(make_here(["redis"]).settings(Settings).errors(make_here(["redis"])))


def test_users_hold_hashes_and_nobody_comes_in_without_a_name(make_here):
    users = acl(make_here(["redis"]))
    assert set(users) == {"default", "admin", "app"}
    assert users["default"][0] == "off" and "-@all" in users["default"]
    for name in ("admin", "app"):
        digest = hashlib.sha256(f"value of redis/{name}".encode()).hexdigest()
        assert users[name][:2] == ["on", f"#{digest}"]
        assert not {"nopass", "off"} & set(users[name])
    assert "value of" not in rendered(make_here(["redis"]), ACL)


def test_an_applications_commands(make_here):
    """Order counts in an ACL: what the user adds comes after what is taken away."""
    users = acl(make_here(["redis"], redis_app_rules=["+keys", "-@scripting"]))
    rules = ["~*", "&*", "+@all", "-@admin", "-@dangerous", "+info", "+keys", "-@scripting"]
    assert users["app"][2:] == rules


def test_redis_6_knows_no_channels_and_client_as_one_command(make_here):
    users = acl(make_here(["redis"], codename="jammy"))
    assert not any("&" in rule for rules in users.values() for rule in rules)
    assert "+client|setname" in users["app"]
    assert "+client|setname" not in acl(make_here(["redis"], codename="noble"))["app"]


@pytest.mark.parametrize(
    "data",
    [
        {"redis_port": 0},
        {"redis_port": "6379"},
        {"redis_maxmemory": "lots"},
        {"redis_maxmemory_policy": "lru"},
        {"redis_app_rules": [">a-password"]},
        {"redis_app_rules": ["+get on nopass"]},
        {"redis_app_rules": ["nopass"]},
    ],
)
def test_refused(make_here, data):
    with pytest.raises(SettingsError, match=next(iter(data))):
        make_here(["redis"], **data).settings(Settings)


def test_secret_rows_are_marked(make_here):
    here = make_here(["redis"])
    settings = here.settings(Settings)
    (row,) = [row for row in settings.files(here) if isinstance(row, File) and row.secret]
    assert row.path == ACL and row.mode == "640" and row.check
    assert {secret.name for secret in settings.secrets(here)} == {"redis/app", "redis/admin"}


@pytest.mark.parametrize("value", ["plain", 'a "b\\c" $d', "e\nf", "g\u00e9\U0001f511", ""])
def test_a_value_for_redis_cli(value):
    """redis-cli's quoting within double quotes is \\xHH by byte; undone here by hand."""
    text = quoted(value)
    assert text.isascii() and "\n" not in text and text[0] == text[-1] == '"'
    assert text[1:-1].encode().decode("unicode_escape").encode("latin-1").decode() == value
    assert len(shlex.split(text)) == 1


def test_the_login_is_kept_for_root_alone(make_here):
    here = make_here(["redis"])
    settings = here.settings(Settings)
    directory = next(row for row in settings.files(here) if row.path == KEPT)
    assert (directory.owner, directory.mode) == ("root", "700")
    login, new = settings.kept()
    assert (login.path, login.owner, login.mode, login.secret) == (f"{KEPT}/redis-admin", "root", "600", True)
    assert render(login, settings, here, lambda name: "a\n'b").decode() == "AUTH admin \"a\\x0a'b\""
    assert new == Absent(f"{KEPT}/redis-admin.new")


# What the running server is told, by a redis-cli that only pretends: it takes one login.
REDIS_CLI = """#!/bin/sh
read -r login; read -r command || true
[ "$login" = "AUTH admin $(cat {0}/takes)" ] || {{ echo 'WRONGPASS invalid username-password pair'; exit; }}
echo OK
"""


@pytest.mark.parametrize(
    "takes, kept, new, way",
    [
        ("wanted", "old", None, "wanted"),
        ("old", "old", None, "kept"),
        ("newer", "old", "newer", "kept.new"),
        ("newer", None, "newer", "kept.new"),
        ("lost", "old", "newer", "none"),
        ("lost", None, None, "none"),
    ],
)
def test_the_way_into_a_running_server(tmp_path, takes, kept, new, way):
    (tmp_path / "redis-cli").write_text(REDIS_CLI.format(tmp_path))
    (tmp_path / "redis-cli").chmod(0o755)
    for name, value in (("takes", takes), ("kept", kept and f"AUTH admin {kept}"), ("kept.new", new and f"AUTH admin {new}")):
        if value:
            (tmp_path / name).write_text(value)
    done = subprocess.run(
        ["sh", "-c", WAY_IN.format(port=1, kept=tmp_path / "kept")],
        input="AUTH admin wanted", capture_output=True, text=True, env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip().removeprefix(f"{tmp_path}/")) == (0, way)
