"""Redis: passwords, commands, memory, and what runs is what is installed."""

from __future__ import annotations

import hashlib

import pytest
import redis as client
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError

from groundwork.secrets import KEPT
from operations.redis import login
from tasks.redis import KEPT_PASSWORD


@pytest.fixture(scope="module")
def connect(redis):
    """A client of that host's Redis with the login asked for."""
    with redis.tunnel(redis.settings("redis").port) as port:
        yield lambda **login: client.Redis("127.0.0.1", port, protocol=2, retry=None, socket_timeout=5, **login)


@pytest.fixture
def application(redis, connect):
    return connect(username="app", password=redis.secrets.value("redis/app"))


@pytest.fixture
def administrator(redis, connect):
    return connect(username="admin", password=redis.secrets.value("redis/admin"))


def test_without_a_password_nothing_is_done(connect):
    with pytest.raises(AuthenticationError, match="Authentication required"):
        connect().ping()


def test_a_wrong_password_is_refused(connect):
    for user in ("app", "admin", "default"):
        with pytest.raises(AuthenticationError, match="invalid username-password pair"):
            connect(username=user, password="wrong").ping()


def test_the_application_works_with_its_keys(application):
    assert application.set("groundwork:test", "1", ex=10)
    assert application.get("groundwork:test") == b"1"
    assert application.delete("groundwork:test") == 1


@pytest.mark.parametrize(
    "command", ["FLUSHALL", "CONFIG GET *", "SHUTDOWN NOSAVE", "CONFIG SET maxmemory 0", "KEYS *", "ACL LIST", "MODULE LIST"]
)
def test_the_application_may_not_use_dangerous_commands(application, command):
    with pytest.raises((NoPermissionError, ResponseError), match="(?i)no permissions"):
        application.execute_command(*command.split())


def test_memory_policy_and_persistence_are_in_effect(redis, administrator):
    settings = redis.settings("redis")
    effective = administrator.config_get("*")
    share = redis.here.memory_share("redis") * 1024 * 1024
    assert 0 < int(effective["maxmemory"]) <= share
    assert effective["maxmemory-policy"] == settings.maxmemory_policy
    assert effective["appendonly"] == "yes"
    assert effective["protected-mode"] == "yes"


def test_what_runs_is_what_is_installed(redis, administrator):
    running = administrator.info("server")["redis_version"]
    assert f":{running}-" in redis.check("dpkg-query -W -f '${Version}' redis-server")


def test_passwords_are_not_in_the_configuration(redis):
    for name in ("redis/app", "redis/admin"):
        found = redis.run("grep -rlF -f /dev/stdin /etc/redis", stdin=redis.secrets.value(name) + "\n")
        assert found.stdout == ""


def test_the_administrators_password_is_kept_for_root_alone(redis):
    found = redis.check(f"stat -c '%U:%G %a' {KEPT} {KEPT_PASSWORD}; sha256sum <{KEPT_PASSWORD}").split()
    digest = hashlib.sha256(login("admin", redis.secrets.value("redis/admin")).encode()).hexdigest()
    assert found == ["root:root", "700", "root:root", "600", digest, "-"]
    assert redis.run(f"runuser -u redis -- cat {KEPT_PASSWORD}").returncode == 1


def test_files_are_closed_to_others(redis):
    assert redis.check("find /etc/redis/ /var/lib/redis/ -type f -perm /o+rwx") == ""
