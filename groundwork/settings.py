"""What can be set: the base of every role's Settings, and the settings that belong to no role.

Group data is flat and prefixed (`mongodb_port = 27018`), as pyinfra's precedence wants it. Each
role declares one `RoleSettings` class; its fields without the prefix are the keys with it.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Callable, ClassVar, Iterable, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from groundwork.secrets import Secret
from groundwork.takeover import Found, Met, refused

if TYPE_CHECKING:
    from groundwork.cuda import Build
    from groundwork.rows import Row
    from groundwork.topology import Flow, Here
    from operations.service import Service

Port = Annotated[int, Field(ge=1, le=65535, strict=True)]


def is_address(value: str) -> bool:
    """Whether a text is an IP address."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def matching(pattern: str, allowed: str) -> AfterValidator:
    """Refuse other texts in words, where pydantic would say the pattern.

    Args:
        pattern: of the whole text.
        allowed: what it must be, such as "a user name (lower-case letters, digits, - and _)".
    """

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"must be {allowed}")
        return value

    return AfterValidator(check)


def _address(value: str) -> str:
    if not is_address(value):
        raise ValueError("must be an IP address such as 10.0.0.5")
    return value


def network(value: str) -> str:
    """The text, if it is a network in CIDR form or an address. Raises ValueError, in words."""
    try:
        found = ipaddress.ip_network(value)
    except ValueError:
        raise ValueError(f"{value!r} is not a network such as 10.0.0.0/24 or an address") from None
    if not found.prefixlen:
        raise ValueError(f"{value!r} is everybody: name the networks (a flow's source may be \"internet\")")
    return value


def bracketed(address: str) -> str:
    """An address as a URL has it before its port: IPv6 in brackets."""
    return f"[{address}]" if ":" in address else address


_PRIVATE = tuple(
    ipaddress.ip_network(network)
    for network in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
                    "fc00::/7", "fe80::/10", "::1/128")
)  # fmt: skip
"""RFC 1918, 6598, 3927, 4193 and 4291. (ipaddress calls more private: 0.0.0.0/0, and networks for examples.)"""


def is_public(value: str) -> bool:
    """Whether a network, or an address, lies where the Internet leads; False for what is none of both."""
    try:
        given = ipaddress.ip_network(value)
    except ValueError:
        return False
    return not any(given.version == private.version and given.subnet_of(private) for private in _PRIVATE)


_LABEL = r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"

Address = Annotated[str, AfterValidator(_address)]
Network = Annotated[str, AfterValidator(network)]
UserName = Annotated[
    str, matching(r"[a-z_][a-z0-9_-]{0,30}", "a user name (lower-case letters, digits, - and _; 31 at most, the first no digit or -)")
]
Domain = Annotated[str, matching(rf"(?=.{{1,253}}$)({_LABEL}\.)*{_LABEL}", "a host name such as app.example.org")]
Size = Annotated[str, matching(r"[1-9][0-9]*[KMG]", "a size such as 100M (K, M or G)")]


class Part(BaseModel):
    """A nested value of a setting, written as a dict in group data: a user, a collection."""

    # (The docstrings of fields are read by groundwork.reference: with use_attribute_docstrings each run would.)
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class KeyedSettings(Part):
    """Settings whose fields are keys of group data."""

    role: ClassVar[str]
    """The prefix of the keys; empty for none."""


class RoleSettings(KeyedSettings):
    """One role: what can be set, and what follows from it.

    A subclass sets `role` (the group's name and the prefix of its keys), and overrides what it
    needs of the methods. They are pure: settings and topology in, declarations out; `preflight`
    calls them for every host before one is touched, and the tests call them with no host at all.
    """

    memory_weight: ClassVar[int] = 0
    """Share of the host's memory, against the weights of the other roles; 0 takes no share."""
    memory_minimum: ClassVar[int] = 0
    """MiB below which the role does not run well; a smaller share is refused."""

    mark: ClassVar[str] = ""
    """A path that is there once the role has been on a host, and that nobody else makes."""
    random_secrets: ClassVar[bool] = False
    """Its secrets are passwords that nobody else gives out: a random value does, but for `given_secrets`."""
    holds: ClassVar[tuple[str, ...]] = ()
    """Those of its packages that are upgraded by plan only: `apt-mark hold`."""
    units: ClassVar[tuple[str, ...]] = ()
    """Units that may hold the role's ports."""

    def secrets(self, here: Here) -> list[Secret]:
        """Names of the secrets the role needs on this host."""
        return []

    def secret_errors(self, here: Here, secret: Callable[[str], str]) -> Iterable[str]:
        """What is wrong with the values of its secrets, each a sentence without a value.

        Args:
            secret: gives a secret's value by its name.
        """
        return []

    def given_secrets(self) -> list[Secret]:
        """Secrets that somebody gives out, such as a certificate."""
        return []

    def repositories(self, here: Here) -> dict[str, dict[str, Any]]:
        """Vendors' repositories that its packages come from: name -> arguments for operations.repository."""
        return {}

    def installs(self, here: Here) -> dict[str, str | None]:
        """Packages that the role needs: name -> version, which the setting `<role>_version` names; None for any.

        What packages only recommend is not installed: a role names what it wants of that, too.
        """
        return {}

    def python_environment(self) -> dict[str, Any]:
        """Arguments for operations.uv.environment; empty where the role has none."""
        return {}

    def files(self, here: Here) -> list[Row]:
        """Files, directories and links that the role owns on this host."""
        return []

    def services(self, here: Here) -> list[Service]:
        """Units that the role keeps running on this host, in the order in which they are started."""
        return []

    def reads(self, here: Here) -> dict[str, list[str]]:
        """What the role asks of units: each with the paths that it reads."""
        return {item.unit: list(item.reads) for item in self.services(here)}

    def flows(self) -> list[Flow]:
        """Who may reach the role's ports, besides the host itself."""
        return []

    def further_units(self) -> list[str]:
        """Units that are active besides `units`, each of them: `fab status` looks at them."""
        return []

    def meets(self, found: Found, here: Here) -> Iterable[Met]:
        """What is in its way on a host that it has never been on."""
        return self.taken_ports(found)

    def taken_ports(self, found: Found) -> Iterable[Met]:
        """Programs that hold a port of the role."""
        for port, protocol in dict.fromkeys((flow.port, flow.protocol) for flow in self.flows() if flow.role == self.role):
            for other in found.others_at(port, self.units, protocol):
                yield refused(f"port {port} is taken by {other.name}: give it another port, or {other.stop}")

    def cuda_build(self, here: Here) -> Build | None:
        """The CUDA build that the role's lock has: groundwork.cuda.build_of(lock); the role gpu's driver must run it."""
        return None

    def container_runtimes(self, here: Here) -> dict[str, str]:
        """Runtimes for Docker's containers that the role brings: name -> program."""
        return {}

    def errors(self, here: Here) -> Iterable[str]:
        """What is wrong with this combination on this host, each a sentence that starts with a key."""
        return []


@dataclass(frozen=True)
class External:
    """A service or a set of clients that Groundwork does not provision."""

    name: str
    host: str | None = None
    port: int | None = None
    tls: bool = False
    networks: tuple[str, ...] = ()


class ConnectionSettings(KeyedSettings):
    """pyinfra's own settings of a connection by SSH (3.10.0), which it checks late, without a line, or not at all."""

    model_config = ConfigDict(strict=True)
    role: ClassVar[str] = "ssh"

    hostname: str = ""
    port: Port = 22
    user: str = ""
    key: str = ""
    config_file: str = ""
    known_hosts_file: str = ""
    strict_host_key_checking: Literal["accept-new", "yes", "no", "off", "ask"] = "accept-new"
    file_transfer_protocol: Literal["sftp", "scp"] = "sftp"
    allow_agent: bool = True
    look_for_keys: bool = True
    forward_agent: bool = False
    connect_retries: int = Field(default=0, ge=0)


class FlowSetting(Part):
    """A flow besides those that the roles bring."""

    source: str
    """Who may connect: a role, an external's name, a network such as 192.0.2.0/24, or "internet"."""
    role: str
    """To which role's hosts."""
    port: Port
    """TCP port."""


class HostSettings(KeyedSettings):
    """Settings that belong to the host or to the whole inventory, and to no single role."""

    role: ClassVar[str] = ""

    environment: str = "production"
    """What this is: production, staging, lab; goes into the application's ENVIRONMENT."""
    private_address: Address | None = None
    """Address that the other hosts of the inventory use; by default `ssh_hostname` or the host's name."""
    site: str = ""
    """Where the host stands, such as "office". Hosts of one site reach each other by private_address; hosts of
    two sites by the private link (docs/link.md), or else by public_address. EC2's hosts need none."""
    public_address: Address | Domain | None = None
    """Address or name by which hosts of other sites reach this one where no private link joins them; ec2.hosts()
    sets it to the instance's."""
    hardware_memory: int | None = Field(default=None, ge=256)
    """MiB of memory to plan with, instead of what the host reports."""
    hardware_cores: int | None = Field(default=None, ge=1)
    """Cores to plan with, instead of what the host reports."""
    flows: list[FlowSetting] = []
    """More flows: [{"source": "10.9.0.0/24", "role": "mongodb", "port": 27017}]."""
    externals: list[External] = []
    """Services that Groundwork does not provision: external("postgresql", host=…, port=5432)."""
    stopped: dict[str, list[Address]] = {}
    """Set by ec2.hosts(): addresses of a role's hosts that are stopped; what the firewalls open to them stays."""
    connector: Literal["groundwork", "ssh"] = "groundwork"
    """How the host is asked: "groundwork" asks all that a run wants to know in one round trip; "ssh" is pyinfra's
    own connector, a round trip or more for each question (docs/connections.md)."""
    connection_seconds: int = Field(default=60, ge=10)
    """Seconds without any answer from the host after which the connection counts as lost and the run ends."""
    lock_wait: int = Field(default=0, ge=0)
    """Seconds to wait where another run is at work on a host; 0 stops at once and says whose it is. A nightly
    job may well wait (600); a person wants to know."""
    python_index: str | Secret | None = None
    """Index that Python packages come from, such as a company's mirror; a Secret where its URL holds a
    password. By default uv's own."""
    python_torch_index: str | Secret | None = None
    """Mirror of PyTorch's own indexes, from which a lock's `torch==…+cu128` comes: what stands before /cu128. A
    Secret where its URL holds a password. By default uv's own."""
    take_over: list[str] = []
    """Roles that may take over what they find on a host that is not bare, where somebody would notice: the
    run says what, and stops without this. docs/taking-over.md has the table."""
    sudo_password: Secret | None = None
    """Password that sudo asks the ssh_user for: Secret("sudo/NAME"). By default sudo must not ask."""
    lab_suite: str | None = None
    """Set by lab_host(): the distribution of a lab host. Lab hosts use generated secrets."""
    lab_options: dict[str, str | bool] = {}
    """Set by lab_host(): what else is particular to a lab host."""

    def secrets(self, here: Here) -> list[Secret]:
        values = (self.python_index, self.python_torch_index, self.sudo_password)
        return [value for value in values if isinstance(value, Secret)]


def key(settings: type[KeyedSettings], field: str) -> str:
    """The key in group data of a field: `mongodb_port` of the field `port` of the role mongodb."""
    return f"{settings.role}_{field}" if settings.role else field


def keys(settings: type[KeyedSettings]) -> dict[str, str]:
    """Keys in group data, with the field each belongs to."""
    return {key(settings, field): field for field in settings.model_fields}
