"""Who is where and who may reach whom, from inventory data alone.

The same topology configures the services (addresses, URIs), opens the firewall (flows), and tells
the tests what must be open and what closed. It never asks another host for a fact, so `--limit` works.
"""

from __future__ import annotations

import difflib
import ipaddress
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Iterable, Iterator, Literal, Mapping, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pyinfra.api.exceptions import PyinfraError

from groundwork.settings import External, HostSettings, KeyedSettings, RoleSettings, key, network
from groundwork.takeover import Found

S = TypeVar("S", bound=KeyedSettings)

INTERNET = "internet"
PROGRAMS = ("app", "inference", "training")
"""Roles that are somebody's own programs."""
LINK = "link"
"""The role of the private link."""
LINK_INTERFACE = "wg-groundwork"
MEMORY_RESERVE = 0.20
"""Share of a host's memory that no role plans with: kernel, page cache, sshd, a login in need."""


Protocol = Literal["tcp", "udp"]


@dataclass(frozen=True)
class Flow:
    """`source` may reach `role` on `port`.

    `source` is a role, an external's name, a network in CIDR form, or "internet".
    """

    source: str
    role: str
    port: int
    protocol: Protocol = "tcp"
    nearest: bool = False
    """Hosts of another site reach it only where they have none nearer."""


def external(
    name: str,
    host: str | None = None,
    port: int | None = None,
    tls: bool = False,
    networks: tuple[str, ...] | list[str] = (),
) -> External:
    """Declare what is not provisioned by us: an RDS, the office's addresses, a box elsewhere.

    Args:
        name: a role's name ("postgresql") for a service, any name for a set of clients ("office").
        host, port, tls: where a service is.
        networks: where clients come from, in CIDR form.
    Raises:
        PyinfraError: for a network that is none.
    """
    try:
        return External(name, host, port, tls, tuple(map(network, networks)))
    except ValueError as error:
        raise PyinfraError(f"external({name!r}): networks: {error}") from None


@dataclass(frozen=True)
class Machine:
    """What a host is: facts that do not change during a run."""

    distribution: str
    """`ID` of /etc/os-release: ubuntu, debian."""
    codename: str
    """`VERSION_CODENAME`: jammy, noble, bookworm, trixie."""
    architecture: str
    """dpkg's word: amd64, arm64."""
    memory: int
    """MiB."""
    cores: int
    container: bool = False
    """Shares its kernel: what is global to the kernel is written for boot and not applied."""
    disk_free: int = 1 << 20
    """MiB free on /."""
    known: bool = False
    """Groundwork has been here before."""
    marks: frozenset[str] = frozenset()
    """Marks of the roles that have been here before."""
    networks: tuple[tuple[str, str], ...] = ()
    """Networks that it has routes to, each with its interface, without the private link's."""
    ssh_socket: bool = False
    """systemd listens for sshd (ssh.socket), as Ubuntu 24.04 has it."""
    cards: tuple[str, ...] = ()
    """PCI device ids of NVIDIA's cards, such as 2684."""
    secure_boot: bool = False
    """The firmware lets the kernel load signed modules only."""
    booting: bool = False
    """cloud-init still works; or, when Groundwork has never been here, it has ended with errors."""


class SettingsError(Exception):
    """What is wrong with the settings, one sentence a line."""

    def __init__(self, errors: list[str]):
        super().__init__("\n".join(errors))
        self.errors = errors


class UnknownSource(SettingsError):
    """A flow comes from what nobody knows."""

    def __init__(self, source: str):
        super().__init__([f'source {source!r} is no role, no external, no network, and not "{INTERNET}"'])


class SourceIsEverybody(UnknownSource):
    """A flow comes from a network that is all there are: what refuses "internet" would let it pass."""

    def __init__(self, source: str):
        SettingsError.__init__(self, [f'source {source!r} is everybody: say "{INTERNET}"'])


class Topology:
    """All hosts of an inventory.

    Args:
        hosts: name -> (groups, data), in inventory order.
        roles: role name -> its Settings class.
    """

    def __init__(
        self,
        hosts: Mapping[str, tuple[list[str], dict[str, Any]]],
        roles: Mapping[str, type[RoleSettings]],
    ):
        self.roles = dict(roles)
        self.hosts = {name: Here(self, name, groups, data) for name, (groups, data) in hosts.items()}

    def with_role(self, role: str) -> list[Here]:
        """Hosts that carry a role, in inventory order."""
        return [host for host in self.hosts.values() if role in host.roles]

    def external(self, name: str) -> External | None:
        """The external of that name, whichever host declares it."""
        for host in self.hosts.values():
            for item in host.settings(HostSettings).externals:
                if item.name == name:
                    return item
        return None

    def secret_names(self) -> list[str]:
        """Names of the secrets that the hosts' roles need."""
        wanted: dict[str, None] = {}
        for host in self.hosts.values():
            for settings in (HostSettings, *(self.roles[role] for role in host.roles)):
                wanted.update((secret.name, None) for secret in host.settings(settings).secrets(host))
        return list(wanted)

    def random_secrets(self) -> list[str]:
        """Those of them for which a random value does."""
        roles = [(host, host.settings(self.roles[role])) for host in self.hosts.values() for role in host.roles]
        return [
            secret.name
            for host, settings in roles
            if settings.random_secrets
            for secret in settings.secrets(host)
            if secret not in settings.given_secrets()
        ]

    @property
    def is_lab(self) -> bool:
        """Whether every host is a lab's."""
        return all(host.data.get("lab_suite") for host in self.hosts.values())


_network = cache(ipaddress.ip_network)
"""A network of its text: those of all hosts are asked for on each."""


@dataclass
class Opening:
    """A port that this host's firewall opens, and to whom."""

    port: int
    role: str
    protocol: Protocol = "tcp"
    sources: dict[str, list[str] | None] = field(default_factory=dict)
    """Flow source -> its networks; None stands for everybody."""
    addresses: list[str] = field(default_factory=list)
    """Addresses of this host by which they come."""

    @property
    def everybody(self) -> bool:
        return any(networks is None for networks in self.sources.values())

    def networks(self, version: int) -> list[str]:
        """Networks of one IP version that may reach the port."""
        every = {
            network
            for networks in self.sources.values()
            for network in networks or []
            if _network(network).version == version
        }
        return sorted(every)


class Here:
    """The topology as one host sees it: what settings, templates and roles ask."""

    def __init__(self, topology: Topology, name: str, groups: list[str], data: dict[str, Any]):
        self.topology = topology
        self.name = name
        self.groups = list(groups)
        self.data = data
        self.machine: Machine | None = None
        self.found: Found | None = None
        """What was on the host before; None where all of its roles were, too."""
        self.equipped = False
        """This run has installed what all of its roles need (tasks/packages.py)."""
        self._settings: dict[type[KeyedSettings], KeyedSettings] = {}

    @cached_property
    def roles(self) -> list[str]:
        """Roles of this host: `base`, and every group that is a role, in the order of deploy.py."""
        return [role for role in self.topology.roles if role == "base" or role in self.groups]

    def settings(self, cls: type[S]) -> S:
        """The checked settings of a role on this host.

        Raises:
            SettingsError: with one sentence for each value that is refused.
        """
        if cls not in self._settings:
            self._settings[cls] = self._checked(cls)
        return self._settings[cls]  # type: ignore[return-value]

    def _checked(self, cls: type[S]) -> S:
        given = {
            name: self.data[key(cls, name)] for name in cls.model_fields if key(cls, name) in self.data
        }
        try:
            return cls(**given)
        except ValidationError as error:
            raise SettingsError(_sentences(cls, error.errors())) from None

    # Addresses

    @cached_property
    def site(self) -> str:
        """Where the host stands."""
        return self.settings(HostSettings).site

    @cached_property
    def private_address(self) -> str:
        """Address that the other hosts of its site use."""
        given = self.settings(HostSettings).private_address
        return given or str(self.data.get("ssh_hostname") or self.name)

    @cached_property
    def link_address(self) -> str | None:
        """Its address on the private link, where it is on it."""
        return self.settings(self.topology.roles[LINK]).address_for(self) if LINK in self.roles else None

    @property
    def is_dialed(self) -> bool:
        """Whether the others on the private link can begin to talk with it."""
        return bool(self.link_address and self.settings(self.topology.roles[LINK]).endpoint)

    def is_linked(self, other: Here) -> bool:
        """Whether the private link joins this host and another: one of them must take the other's first packet."""
        return bool(self.link_address and other.link_address) and (self.is_dialed or other.is_dialed)

    def is_of_link(self, network: str) -> bool:
        """Whether a network lies in that of the private link, which this host is on."""
        if not (self.link_address and network):
            return False
        link = _network(self.settings(self.topology.roles[LINK]).network)
        part = _network(network)
        return part.version == link.version and part.subnet_of(link)

    def is_private_to(self, other: Here) -> bool:
        """Whether what goes between this host and another crosses no public network unprotected."""
        return other.site == self.site or self.is_linked(other)

    def address_of(self, other: Here) -> str | None:
        """Where this host finds another: loopback for itself; None where nothing leads there."""
        if other is self:
            return "127.0.0.1"
        if other.site == self.site:
            return other.private_address
        return other.link_address if self.is_linked(other) else other.settings(HostSettings).public_address

    def peers(self, role: str) -> list[Here]:
        """Hosts that carry a role and can be reached from here: this one first if it does, then those of its site."""
        there = [host for host in self.topology.with_role(role) if self.address_of(host)]
        return sorted(there, key=lambda host: (host is not self, host.site != self.site))

    def address(self, role: str) -> str | None:
        """Where this host finds a role: the nearest peer, or the external of that name."""
        for peer in self.peers(role):
            return self.address_of(peer)
        found = self.topology.external(role)
        return found.host if found else None

    def settings_of(self, role: str) -> Any:
        """Settings of a role on the peer that `address` names."""
        return self.peers(role)[0].settings(self.topology.roles[role])

    # Ports

    def networks_of(self, source: str) -> list[str] | None:
        """Networks that a flow's source has when it comes to this host; None stands for everybody.

        Raises:
            UnknownSource: for a source that is no role, no external and no network.
        """
        if source == INTERNET:
            return None
        if source in self.topology.roles:
            return self._addresses_in(Flow(source, "", 0))
        if found := self.topology.external(source):
            return list(found.networks)
        try:
            found = ipaddress.ip_network(source)
        except ValueError:
            raise UnknownSource(source) from None
        if not found.prefixlen:
            raise SourceIsEverybody(source)
        return [str(found)]

    def openings(self) -> list[Opening]:
        """What this host's firewall opens, by port."""
        return self._openings

    @cached_property
    def _openings(self) -> list[Opening]:
        """It goes through all hosts of the inventory, and a run asks for it a dozen times for each."""
        found: dict[tuple[int, str], Opening] = {}
        for flow in self._flows_in():
            if flow.role in self.roles:
                opening = found.setdefault((flow.port, flow.protocol), Opening(flow.port, flow.role, flow.protocol))
                opening.sources[flow.source] = self._others(flow)
                opening.addresses = list(dict.fromkeys([*opening.addresses, *self._ways_in(flow)]))
        return [found[key] for key in sorted(found) if any(v != [] for v in found[key].sources.values())]

    def binds(self, port: int) -> list[str]:
        """Addresses of this host by which others come to a TCP port: what the service listens on besides loopback."""
        return next((item.addresses for item in self.openings() if (item.port, item.protocol) == (port, "tcp")), [])

    def _flows_in(self) -> list[Flow]:
        """Flows that can end here: a role's own ports are those that *this* host sets, and not a
        peer's, which may listen elsewhere or be open to others."""
        found: dict[Flow, None] = {}
        for host in self.topology.hosts.values():
            for role in host.roles:
                brought = host.settings(self.topology.roles[role]).flows()
                found.update((flow, None) for flow in brought if host is self or flow.role != role)
            found.update((Flow(item.source, item.role, item.port), None) for item in host.settings(HostSettings).flows)
        return list(found)

    def _others(self, flow: Flow) -> list[str] | None:
        """Networks of a flow's source without this host itself, which comes in by loopback."""
        networks = self._addresses_in(flow) if flow.source in self.topology.roles else self.networks_of(flow.source)
        return networks and [network for network in networks if network != self.private_address]

    def _comers(self, flow: Flow) -> list[Here]:
        """Hosts of a flow's source, which is a role, that come to this one by an address that we know."""
        return [
            host
            for host in self.topology.with_role(flow.source)
            if host.site == self.site
            or host.is_linked(self) and (not flow.nearest or host.peers(flow.role)[:1] == [self])
        ]

    def _addresses_in(self, flow: Flow) -> list[str]:
        """Addresses by which the hosts of a flow's source come, those that are stopped among them."""
        found = [host.private_address if host.site == self.site else host.link_address or "" for host in self._comers(flow)]
        return list(dict.fromkeys([*found, *self._stopped(flow.source)]))

    def _stopped(self, role: str) -> list[str]:
        stopped = (host.settings(HostSettings).stopped for host in self.topology.hosts.values() if host.site == self.site)
        return [address for roles in stopped for address in roles.get(role, ())]

    def _ways_in(self, flow: Flow) -> list[str]:
        """Addresses of this host by which a flow comes."""
        if self._others(flow) == []:
            return []
        if flow.source not in self.topology.roles:
            by_link = [self.is_of_link(network) for network in self.networks_of(flow.source) or [""]]
            ways = [self.private_address] * (not all(by_link)) + [self.link_address or ""] * any(by_link)
            return list(dict.fromkeys(ways))
        sites = [host.site for host in self._comers(flow) if host is not self] + [self.site for _ in self._stopped(flow.source)]
        return list(dict.fromkeys(self.private_address if site == self.site else self.link_address or "" for site in sites))

    # Memory and cores

    @property
    def memory(self) -> int:
        """MiB to plan with; plenty while nobody knows, so that nothing is refused for want of it."""
        planned = self.settings(HostSettings).hardware_memory
        return planned or (self.machine.memory if self.machine else 1 << 20)

    @property
    def cores(self) -> int:
        """Cores to plan with."""
        planned = self.settings(HostSettings).hardware_cores
        return planned or (self.machine.cores if self.machine else 2)

    def memory_share(self, role: str) -> int:
        """MiB for a role: the memory less the reserve, divided by the weights of the roles here."""
        weights = {name: self.topology.roles[name].memory_weight for name in self.roles}
        usable = self.memory * (1 - MEMORY_RESERVE)
        return int(usable * weights[role] / sum(weights.values()))


def _sentences(cls: type[KeyedSettings], errors: list[Any]) -> list[str]:
    """Refused values in words, one sentence each: key, value, what is allowed.

    A value that may be of several types has an error for each of them: they become one.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    for error in errors:
        where, *deeper = error["loc"] or ("",)
        # pydantic marks a key of a dict that is wrong itself, and adds which of several types it tried.
        marks = [part for part in deeper if part == "[key]" or str(part).startswith("function-")]
        deeper = [part for part in deeper if part not in marks]
        if error["type"] in _TYPES and deeper and deeper[-1] in _TRIED:
            deeper.pop()
        name = key(cls, str(where)) + "".join(f"[{part!r}]" for part in deeper)
        value = "" if error["type"] == "missing" or _may_be_secret(cls, where) else f" = {_short(error['input'])}"
        found.setdefault(name, (value, []))[1].append(_message(cls, error))
    return [f"{name}{value}: {_either(messages)}" for name, (value, messages) in found.items()]


def _either(messages: list[str]) -> str:
    first, *others = dict.fromkeys(messages)
    return " or ".join([first, *(other.removeprefix("must be ") for other in others)])


_TRIED = ("str", "int", "bool", "Secret")
"""pydantic's words for the types of a union."""

_TYPES = {
    "string_type": "must be a text",
    "int_type": "must be a whole number",
    "bool_type": "must be True or False",
    "dataclass_type": 'must be a Secret("…")',
}
_WORDS = {
    **_TYPES,
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "bool_parsing": "must be True or False",
    "list_type": "must be a list",
    "dict_type": "must be a dict",
    "missing": "must be set",
}
"""pydantic's kinds of errors, where its own message speaks to a programmer."""


def _message(cls: type[KeyedSettings], error: Any) -> str:
    part = _part_at(cls, error["loc"][:-1])
    if error["type"] == "extra_forbidden":
        name = str(error["loc"][-1])
        close = difflib.get_close_matches(name, part.model_fields, n=1)
        meant = f"did you mean {close[0]}? " if close else ""
        return f"unknown key; {meant}Allowed are {', '.join(part.model_fields)}"
    if error["type"] == "model_type":
        return f"must be a dict with {', '.join(_part_at(cls, error['loc']).model_fields)}"
    if error["type"] == "dataclass_type" and error["ctx"]["class_name"] == "External":
        return 'must be external("NAME", …), of groundwork.topology'
    message = error["msg"].removeprefix("Value error, ")
    message = message.replace("Input should be", "must be", 1)
    return _WORDS.get(error["type"]) or message[0].lower() + message[1:]


def _part_at(cls: type[BaseModel], path: Iterable[Any]) -> type[BaseModel]:
    """The model of a nested value; numbers and keys on the way there stay within their list or dict."""
    for step in path:
        if step in cls.model_fields:
            cls = next(_parts(cls.model_fields[step].annotation), cls)
    return cls


def _parts(annotation: Any) -> Iterator[type[BaseModel]]:
    """Models in a type: Index of list[Index] | None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _parts(inner)


def _may_be_secret(cls: type[KeyedSettings], field: Any) -> bool:
    """Whether a value was perhaps written where a Secret's name belongs."""
    return field in cls.model_fields and "Secret" in str(cls.model_fields[field].annotation)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
