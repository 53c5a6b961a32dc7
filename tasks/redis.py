"""Redis: a cache with passwords by ACL, a memory limit, and an append-only file."""

from __future__ import annotations

from typing import Annotated, Iterable, Literal

from pydantic import Field, StringConstraints

from groundwork.roles import role
from groundwork.rows import Directory, File, Row
from groundwork.secrets import Secret
from groundwork.settings import Port, RoleSettings, Size
from groundwork.topology import Flow, Here
from operations import apt, files, redis as database, service, sysctl

UNIT = "redis-server.service"
CONFIGURATION = "/etc/redis/redis.conf"
ACL = "/etc/redis/users.acl"
CHECK = "/usr/local/lib/groundwork/redis-check"
USERS = ("app", "admin")
"""Their passwords are the secrets redis/app and redis/admin."""

MAXMEMORY_SHARE = 0.6
"""Of the role's memory for data; templates/redis/redis.conf.j2 says what the rest is for."""

MIB = {"K": 1 / 1024, "M": 1, "G": 1024}


class Settings(RoleSettings):
    """Redis."""

    role = "redis"
    memory_weight = 1
    memory_minimum = 64

    port: Port = 6379
    """TCP port."""
    maxmemory: Size | None = None
    """Memory for data, such as "512M"; by default 60 % of the role's share of the host's memory."""
    maxmemory_policy: Literal[
        "allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-lfu",
        "volatile-random", "volatile-ttl", "noeviction",
    ] = "allkeys-lru"  # fmt: skip
    """What goes when the memory is full: the least recently used, which suits a cache. Where Redis
    holds what can't be made again (a task queue, sessions), set "noeviction": writes then fail."""
    app_rules: list[Annotated[str, StringConstraints(pattern=r"^[+-]@?[a-z][a-z0-9|_.-]*$")]] = Field(
        default=[]
    )
    """More ACL rules for the user app, in order, such as "+keys". It has every command but those of
    the categories admin and dangerous, and INFO."""

    def listens_on(self, here: Here) -> list[str]:
        """Addresses for `bind`: the private one only if another host has a flow to Redis."""
        others = any(opening.port == self.port for opening in here.openings())
        return ["127.0.0.1", here.private_address] if others else ["127.0.0.1"]

    def maxmemory_for(self, here: Here) -> int:
        """MiB for `maxmemory`."""
        if self.maxmemory:
            return max(1, int(int(self.maxmemory[:-1]) * MIB[self.maxmemory[-1]]))
        return int(here.memory_share(self.role) * MAXMEMORY_SHARE)

    def before_channels(self, here: Here) -> bool:
        """Redis 6.0, whose ACL knows no channels (jammy)."""
        return here.machine is not None and here.machine.codename == "jammy"

    def secrets(self, here: Here) -> list[Secret]:
        return [Secret(f"redis/{user}") for user in USERS]

    def flows(self) -> list[Flow]:
        return [Flow("app", self.role, self.port)]

    def errors(self, here: Here) -> Iterable[str]:
        share = here.memory_share(self.role)
        if self.maxmemory_for(here) > share:
            yield (
                f"redis_maxmemory: {self.maxmemory} is more than Redis's share of the memory, {share} MiB: "
                "set less, or move a role to another host"
            )

    def files(self, here: Here) -> list[Row]:
        return [
            # The package gives it to redis, which could then rewrite what we declare (CONFIG REWRITE).
            Directory("/etc/redis", group="redis", mode="750"),
            Directory("/usr/local/lib/groundwork"),
            File(CHECK, source="redis/check", mode="755"),
            # The server may read what it is told, and change neither (CONFIG REWRITE, ACL SAVE).
            File(
                ACL,
                template="redis/users.acl.j2",
                group="redis",
                mode="640",
                check=f"{CHECK} --acl {{}}",
                secret=True,
            ),
            File(
                CONFIGURATION,
                template="redis/redis.conf.j2",
                variables={"acl": ACL},
                group="redis",
                mode="640",
                check=f"{files.ports_free(UNIT, {self.port: 'redis_port'}, self.listens_on(here))} && {CHECK} {{}}",
            ),
            Directory(f"/etc/systemd/system/{UNIT}.d"),
            File(f"/etc/systemd/system/{UNIT}.d/groundwork.conf", template="redis/redis-server.service.j2"),
        ]


@role(Settings, "Redis")
def redis(settings: Settings, here: Here) -> None:
    """Install, configure, run; then see both users log in."""
    apt.packages(name="Packages", present=["redis-server", "redis-tools"])
    # A rewrite of the append-only file forks: without overcommit the kernel may refuse the fork though
    # nearly all of its pages stay shared (Redis's administration manual).
    sysctl.settings(name="Kernel", role="redis", values={"vm.overcommit_memory": 1})
    configured = files.table(name="Configuration", rows=settings.files(here), settings=settings)
    service.services(
        name="Service",
        services=[
            service.Service(
                UNIT, reads=(CONFIGURATION, "/usr/bin/redis-server"), ports={settings.port: "redis_port"}
            )
        ],
        after=[configured],
    )
    database.access(
        name="Users", port=settings.port, unit=UNIT, acl=ACL, users=USERS, after=[configured]
    )
