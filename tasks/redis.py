"""Redis: a cache with passwords by ACL, a memory limit, and an append-only file."""

from __future__ import annotations

from typing import Annotated, Iterable, Literal

from groundwork.roles import role
from groundwork.rows import Absent, Directory, File, Row
from groundwork.secrets import KEPT, Secret
from groundwork.settings import Port, RoleSettings, Size, matching
from groundwork import takeover
from groundwork.takeover import BEFORE, Found, Met, asked, refused
from groundwork.topology import PROGRAMS, Flow, Here
from operations import files, redis as database, service, sysctl, takeover as before
from tasks.packages import install

UNIT = "redis-server.service"
CONFIGURATION = "/etc/redis/redis.conf"
ACL = "/etc/redis/users.acl"
CHECK = "/usr/local/lib/groundwork/redis-check"
KEPT_PASSWORD = f"{KEPT}/redis-admin"
USERS = ("app", "admin")
"""Their passwords are the secrets redis/app and redis/admin."""

MAXMEMORY_SHARE = 0.6
"""Of the role's memory for data; templates/redis/redis.conf.j2 says what the rest is for."""

MIB = {"K": 1 / 1024, "M": 1, "G": 1024}


class Settings(RoleSettings):
    """Redis."""

    role = "redis"
    mark = "/etc/systemd/system/redis-server.service.d/groundwork.conf"
    units = ("redis-server.service",)
    random_secrets = True
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
    app_rules: list[
        Annotated[str, matching(r"[+-]@?[a-z][a-z0-9|_.-]*", "+ or - and a command or @category, such as +keys or -@slow")]
    ] = []
    """More ACL rules for the user app, in order, such as "+keys". It has every command but those of
    the categories admin and dangerous, and INFO."""

    def listens_on(self, here: Here) -> list[str]:
        """Addresses for `bind`: besides loopback those by which another host has a flow to Redis."""
        return ["127.0.0.1", *here.binds(self.port)]

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
        return [Flow(source, self.role, self.port, nearest=True) for source in PROGRAMS]

    def errors(self, here: Here) -> Iterable[str]:
        share = here.memory_share(self.role)
        if self.maxmemory_for(here) > share:
            yield (
                f"redis_maxmemory: {self.maxmemory} is more than Redis's share of the memory, {share} MiB: "
                "set less, or move a role to another host"
            )

    def meets(self, found: Found, here: Here) -> Iterable[Met]:
        yield from self.taken_ports(found)
        there = found.redis
        if there.ours or not (there.databases or there.files and not there.info):
            return
        unfit = list(self._unfit(there, here))
        yield from unfit
        if not unfit:
            yield asked(
                f"Redis holds data ({', '.join(there.databases)}), which stays. Its clients must log in as app or admin from "
                f"then on. redis.conf is kept as {CONFIGURATION}{BEFORE}, and Redis is restarted once"
            )

    def _unfit(self, there: takeover.Redis, here: Here) -> Iterable[Met]:
        """Why data that is there can't be taken over as it is."""
        if not there.info:
            yield refused(
                f"there is data ({', '.join(there.files)}), and Redis does not answer INFO: `systemctl start redis-server`; or, "
                f"if only a user of an ACL may ask, give the default user +info and +config, with requirepass in {CONFIGURATION}"
            )
            return
        if (path := there.options.get("dir", "/var/lib/redis")) != "/var/lib/redis":
            yield refused(
                f"its data is in {path}: stop Redis, move what is in it to /var/lib/redis (owner redis), set dir /var/lib/redis "
                f"in {CONFIGURATION}, start Redis"
            )
        for name, usual in (("appendfilename", "appendonly.aof"), ("appenddirname", "appendonlydir")):
            if there.options.get(name, usual) != usual:
                yield refused(f"its {name} is {there.options[name]}: take that line out of {CONFIGURATION}, and restart Redis")
        if any(name in there.options for name in ("replicaof", "slaveof")) or there.info.get("connected_slaves", "0") != "0":
            yield refused("it is one of several servers (replicas), and Groundwork runs single ones: take this host out of the group redis")
        if there.info.get("cluster_enabled", "0") != "0":
            yield refused("it is part of a cluster, and Groundwork runs single servers: take this host out of the group redis")
        if too_high := [name for name in there.databases if int(name[2:]) > 15]:
            yield refused(f"it has data in {', '.join(too_high)}, and Groundwork's Redis has db0 to db15: MOVE the keys")
        used = int(there.info.get("used_memory", "0")) >> 20
        if used > self.maxmemory_for(here) * 0.9:
            yield refused(
                f"it uses {used} MiB, and has room for {self.maxmemory_for(here)} here, so keys would go: set redis_maxmemory, "
                "or move a role to another host"
            )
        policy = there.info.get("maxmemory_policy", "noeviction")
        if policy != self.maxmemory_policy and "maxmemory_policy" not in self.model_fields_set:
            yield refused(
                f"its maxmemory-policy is {policy}, and Groundwork's {self.maxmemory_policy}: set redis_maxmemory_policy to the "
                "one that you want (noeviction where it holds what can't be made again)"
            )

    def installs(self, here: Here) -> dict[str, str | None]:
        return dict.fromkeys(["redis-server", "redis-tools"])

    def files(self, here: Here) -> list[Row]:
        return [
            # The package gives it to redis, which could then rewrite what we declare (CONFIG REWRITE).
            Directory("/etc/redis", group="redis", mode="750"),
            Directory("/usr/local/lib/groundwork"),
            Directory(KEPT, mode="700"),
            File(CHECK, source="redis/check", mode="755"),
            # The server may read what it is told, and change neither (CONFIG REWRITE, ACL SAVE).
            File(
                ACL,
                template="redis/users.acl.j2",
                group="redis",
                mode="640",
                check=f"{CHECK} --acl {{}}",
                secret=True,
                keep=True,
            ),
            File(
                CONFIGURATION,
                template="redis/redis.conf.j2",
                variables={"acl": ACL},
                group="redis",
                mode="640",
                check=f"{files.ports_free(UNIT, {self.port: 'redis_port'}, self.listens_on(here))} && {CHECK} {{}}",
                keep=True,
            ),
            Directory(f"/etc/systemd/system/{UNIT}.d"),
            File(f"/etc/systemd/system/{UNIT}.d/groundwork.conf", template="redis/redis-server.service.j2"),
        ]

    def services(self, here: Here) -> list[service.Service]:
        return [service.Service(UNIT, reads=(CONFIGURATION, "/usr/bin/redis-server"), ports={self.port: "redis_port"})]

    def reads(self, here: Here) -> dict[str, list[str]]:
        # A change of the ACL is no reason for a restart: operations.redis has it loaded.
        return {UNIT: [*super().reads(here)[UNIT], ACL]}

    def kept(self) -> list[Row]:
        """The administrator's login, once it is seen to work."""
        return [
            File(
                KEPT_PASSWORD,
                template="redis/kept.j2",
                variables={"login": database.login},
                mode="600",
                secret=True,
            ),
            Absent(f"{KEPT_PASSWORD}.new"),
        ]


@role(Settings, "Redis")
def redis(settings: Settings, here: Here) -> None:
    """Install, configure, run; then see both users log in."""
    install(settings, here)
    # A rewrite of the append-only file forks: without overcommit the kernel may refuse the fork though
    # nearly all of its pages stay shared (Redis's administration manual).
    sysctl.settings(name="Kernel", role="redis", values={"vm.overcommit_memory": 1})
    before.redis(name="Data that was here before", found=here.found)
    configured = files.table(name="Configuration", rows=settings.files(here), settings=settings)
    service.services(
        name="Service",
        services=settings.services(here),
        after=[configured],
    )
    database.access(
        name="Users", port=settings.port, unit=UNIT, acl=ACL, users=USERS, kept=KEPT_PASSWORD, after=[configured]
    )
    files.table(name="Kept password", rows=settings.kept(), settings=settings)
