"""Hosts that are not bare: what is there already, and what becomes of it. See docs/taking-over.md.

Each role's `Settings.meets` says what it would meet, from what one question found. It is asked only
of hosts that lack the mark of one of their roles, so a run that changes nothing does not ask.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Iterable, Literal

if TYPE_CHECKING:
    from groundwork.topology import Here

BEFORE = ".before-groundwork"
"""Ending of the copy of a configuration file that was there first."""


@dataclass(frozen=True)
class Met:
    """Something that is there, in one sentence, and what a run does about it."""

    what: str
    then: Literal["told", "asked", "refused"]
    """told: the run goes on. asked: it goes on where `take_over` names the role. refused: it stops."""


def told(what: str) -> Met:
    """Nothing is lost, nothing is cut off."""
    return Met(what, "told")


def asked(what: str) -> Met:
    """Somebody would notice: it needs `take_over`."""
    return Met(what, "asked")


def refused(what: str) -> Met:
    """Groundwork can't do it without harm; the sentence says the way out."""
    return Met(what, "refused")


@dataclass(frozen=True)
class Listener:
    """A program that waits for connections."""

    protocol: str
    """tcp or udp."""
    address: str
    port: int
    program: str = ""
    unit: str = ""

    @property
    def local(self) -> bool:
        """Only this host itself gets there."""
        try:
            address = ipaddress.ip_address(self.address.split("%")[0])
        except ValueError:
            return False
        return address.is_loopback or address.is_link_local

    @property
    def name(self) -> str:
        """Whose it is: apache2 (apache2.service)."""
        program = self.program or "another program"
        return f"{program} ({self.unit})" if self.unit else program

    @property
    def stop(self) -> str:
        """How to take it away."""
        if self.program == "docker-proxy":
            return "stop the container (`docker ps` shows its port)"
        return f"`systemctl disable --now {self.unit}`" if self.unit.endswith(".service") else "stop it"


@dataclass
class MongoDB:
    """A MongoDB that is not Groundwork's."""

    version: str = ""
    """Of the installed server, empty where there is none."""
    options: dict[str, str] = field(default_factory=dict)
    """Words of /etc/mongod.conf, and of mongod's command line, that matter here."""
    data: set[str] = field(default_factory=set)
    """Directories that hold data."""
    login: str = ""
    """What became of logging in as admin with the secret: good, refused, poor (it may not manage users),
    open (there is no authorization, and no admin), unknown (there is no mongosh), silent (it gives no answer)."""
    ours: bool = False
    """Its configuration is Groundwork's: a run was cut off, after the administrator was seen to be there."""

    @property
    def path(self) -> str:
        return self.options.get("dbPath", "/var/lib/mongodb")

    @property
    def port(self) -> int:
        return int(self.options.get("port", "27017"))

    @property
    def guarded(self) -> bool:
        """Whether it asks for passwords."""
        return self.options.get("authorization") == "enabled" or "keyFile" in self.options


@dataclass
class Redis:
    """A Redis that is not Groundwork's."""

    options: dict[str, str] = field(default_factory=dict)
    """Words of /etc/redis/redis.conf that matter here; no password."""
    info: dict[str, str] = field(default_factory=dict)
    """What it answers to INFO; empty where it does not let root's redis-cli in, or does not run."""
    files: list[str] = field(default_factory=list)
    """Data on disk."""
    ours: bool = False
    """Its configuration is Groundwork's: a run was cut off."""

    @property
    def databases(self) -> list[str]:
        """Those that hold keys: db0."""
        return [name for name in self.info if name[:2] == "db" and name[2:].isdigit()]


@dataclass
class Docker:
    """A Docker that is not Groundwork's."""

    containers: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Running ones: name -> restart policy, published ports."""
    keys: set[str] = field(default_factory=set)
    """Words in /etc/docker/daemon.json."""
    root: str = ""
    swarm: bool = False
    live_restore: bool = False
    users: set[str] = field(default_factory=set)
    """Members of the group docker."""


@dataclass
class Found:
    """What is on a host, as far as a role could get in its way."""

    listeners: list[Listener] = field(default_factory=list)
    packages: set[str] = field(default_factory=set)
    """Installed, of those asked about."""
    sources: dict[str, list[str]] = field(default_factory=dict)
    """Role -> apt's files with a vendor's repository and nothing else: apt refuses the same one with two keys."""
    shared_sources: dict[str, list[str]] = field(default_factory=dict)
    """Role -> what names its vendor in files that name others, too: FILE, line 3: TEXT."""
    ufw: list[str] | None = None
    """Rules of an active ufw, as its own commands; None where it is not active."""
    firewalld: bool = False
    firewall_loaded: bool = False
    """Our own firewall is loaded: a run was cut off."""
    firewall_written: bool = False
    """Our own firewall is on disk: a run was cut off, or it is from before the role base had a mark."""
    tables: list[str] = field(default_factory=list)
    """nftables' tables (`inet filter`) that keep something out, and are nobody's we know."""
    rules_at_boot: list[str] = field(default_factory=list)
    """Units that load such rules at boot."""
    passwords: list[str] = field(default_factory=list)
    """People who log in with a password, and have no key."""
    sites: list[str] = field(default_factory=list)
    """nginx's files with sites, but for the distribution's own."""
    nginx_ours: bool = False
    """Its configuration is Groundwork's, and knows no such sites: a run was cut off."""
    mongodb: MongoDB = field(default_factory=MongoDB)
    redis: Redis = field(default_factory=Redis)
    docker: Docker = field(default_factory=Docker)
    nvidia_program: bool = False
    """NVIDIA's driver was installed by its own program, which no package knows of."""

    def others_at(self, port: int, units: Iterable[str], protocol: str = "tcp") -> list[Listener]:
        """Programs at a port, but for those of these units."""
        found = {
            item.name: item
            for item in self.listeners
            if (item.protocol, item.port) == (protocol, port) and item.unit not in units
        }
        return list(found.values())

    def vendor(self, role: str) -> list[Met]:
        """What becomes of apt's sources of a vendor whose repository the role declares itself."""
        return [
            *(told(f"{path} is kept as {path}{BEFORE}: the source that the run declares takes its place") for path in self.sources.get(role, [])),
            *(
                refused(f"apt refuses one repository with two keys, and this file has other repositories, too: {place}. Take that out, the run declares it itself")
                for place in self.shared_sources.get(role, [])
            ),
        ]

    def runs(self, unit: str, port: int | None = None, addresses: Iterable[str] = ()) -> bool:
        """Whether a unit waits for connections; at a port, at one of these addresses."""
        return any(
            item.unit == unit and (port is None or item.port == port and item.address in addresses) for item in self.listeners
        )


def sentences(here: Here, found: Found) -> tuple[list[str], list[str]]:
    """What is told of a host, and what stops the run, from all roles that are new to it."""
    from groundwork.settings import HostSettings

    notes: list[str] = []
    errors: list[str] = []
    taken = here.settings(HostSettings).take_over
    for role in new_roles(here):
        for met in here.settings(here.topology.roles[role]).meets(found, here):
            sentence = f"{here.name}: {role}: {met.what}"
            if met.then == "told" or met.then == "asked" and role in taken:
                notes.append(sentence)
            elif met.then == "asked":
                errors.append(f'{sentence}. If that is what you want: take_over = ["{role}"] for this host')
            else:
                errors.append(sentence)
    return notes, errors


def new_roles(here: Here) -> list[str]:
    """Roles of a host that have never been there."""
    marks = here.machine.marks if here.machine else frozenset()
    return [role for role in here.roles if here.topology.roles[role].mark not in marks]
