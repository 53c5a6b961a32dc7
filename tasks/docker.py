"""Docker: the engine, whose published ports reach nobody but this host unless a flow says so."""

from __future__ import annotations

import ipaddress
import shlex
from typing import Annotated, Any, Iterable, Literal

from pydantic import AfterValidator, Field

from groundwork.roles import role
from groundwork.rows import Absent, Directory, File, Row
from groundwork.settings import Address, HostSettings, Network, RoleSettings, Size, UserName, is_address, matching
from groundwork import takeover
from groundwork.takeover import BEFORE, Found, Met, asked, refused
from groundwork.topology import Here
from operations import accounts, files, service, wait
from tasks.packages import install

VENDOR = "https://download.docker.com/linux"
FINGERPRINT = "9DC858229FC7DD38854AE2D88D81803C0EBFCD88"
"""Of the vendor's release signing key, as its installation pages for Ubuntu and Debian name it."""

VENDOR_PACKAGES = (
    "docker-ce",
    "docker-ce-cli",
    "containerd.io",
    "docker-buildx-plugin",
    "docker-compose-plugin",
)
DISTRIBUTION_PACKAGES = {
    "jammy": ("docker.io", "docker-buildx", "docker-compose-v2"),
    "noble": ("docker.io", "docker-buildx", "docker-compose-v2"),
    "bookworm": ("docker.io",),
    "trixie": ("docker.io", "docker-cli", "docker-buildx", "docker-compose"),
}
"""The engine with its two plugins, where the distribution has them (bookworm has neither)."""
RECOMMENDED = (
    "apparmor",  # confines containers
    "git",  # `docker build` of a repository
    "xz-utils",  # images that are packed with it
)
"""What the engine recommends, and we do, too."""

CONFIGURATION = "/etc/docker/daemon.json"
STOP = "/usr/local/lib/groundwork/stop-containers"
STOP_UNIT = "groundwork-containers.service"

# Before 23.0 there is no --validate; but the daemon reads and validates its file before it finds
# that it is not root.
CHECK = """(
candidate={}
if dockerd --help | grep -q -- --validate; then exec dockerd --validate --config-file $candidate; fi
said=$(setpriv --reuid=nobody --regid=nogroup --clear-groups dockerd --config-file $candidate 2>&1)
case $said in *"needs to be started with root"*) ;; *) echo "$said" >&2; exit 1 ;; esac
)"""

POOL_SIZE = 24
"""Prefix length of each container network: 254 addresses."""


def _pool(value: str) -> str:
    network = ipaddress.ip_network(value)
    if network.version != 4 or not network.is_private or network.prefixlen > POOL_SIZE:
        raise ValueError(f"{value!r} is not a private IPv4 network of /{POOL_SIZE} or larger")
    return value


_KNOWN_KEYS = {"max-size", "max-file", "base", "size", "bridge", "path", "args", "data-root"}
"""Words inside our own keys of daemon.json; and data-root, of which there is more to say."""


class Settings(RoleSettings):
    """Docker."""

    role = "docker"
    mark = "/etc/systemd/system/groundwork-containers.service"

    repository: Literal["distribution", "vendor"] = "distribution"
    """Where the engine comes from: the distribution (docker.io, with its security updates), or
    Docker's own packages (docker-ce), which are newer and the same on every distribution."""
    repository_url: Annotated[str, matching(r"https?://[^ ]+[^/ ]", "a URL without a / at its end")] = VENDOR
    """Docker's repository, or a company mirror of it: what stands before /ubuntu or /debian."""
    repository_key: str | None = None
    """Key of the repository: a URL, or a file on the controller; by default Docker's, which is fetched
    from the repository and known by its fingerprint."""
    log_driver: Literal["local", "json-file", "journald"] = "local"
    """Where containers' output goes; local is the smallest, and `docker logs` reads it."""
    log_max_size: Size = "20M"
    """Size at which a container's log is rotated (not for journald)."""
    log_max_files: int = Field(default=5, ge=1)
    """Files that are kept of a container's log (not for journald)."""
    publish_address: Address = "127.0.0.1"
    """Address at which a port is published that names none (`-p 8080:80`). A port for other hosts names
    the address (`-p 10.0.0.5:8080:80`) and has a flow to the role docker."""
    address_pool: Annotated[Network, AfterValidator(_pool)] = "172.20.0.0/14"
    """Private network that containers' networks are cut from; it must not hold any host's address."""
    no_new_privileges: bool = True
    """Containers' processes can't gain privileges by setuid programs such as sudo."""
    users: list[UserName] = []
    """Users who may speak to Docker without sudo: each is as powerful as root. Others lose it."""

    def daemon(self, here: Here) -> dict[str, Any]:
        """The content of daemon.json, by the names of Docker's documentation."""
        options = {
            "log-driver": self.log_driver,
            "live-restore": True,
            "no-new-privileges": self.no_new_privileges,
            # A published port is then a rule that the firewall's forward chain sees, and no process
            # of its own that passes connections on.
            "userland-proxy": False,
            "ip": self.publish_address,
            "default-address-pools": [{"base": self.address_pool, "size": POOL_SIZE}],
        }
        if self.log_driver != "journald":
            options["log-opts"] = {
                "max-size": self.log_max_size.lower(),
                "max-file": str(self.log_max_files),
            }
        if self.knows_network_options(here):
            # "ip" is for the default network alone; this is for the networks that users make.
            binding = {"com.docker.network.bridge.host_binding_ipv4": self.publish_address}
            options["default-network-opts"] = {"bridge": binding}
        if runtimes := self.runtimes(here):
            options["runtimes"] = {name: {"path": path} for name, path in runtimes.items()}
        return options

    def runtimes(self, here: Here) -> dict[str, str]:
        """Runtimes besides Docker's own that the host's roles bring."""
        found: dict[str, str] = {}
        for role in here.roles:
            found |= here.settings(here.topology.roles[role]).container_runtimes(here)
        return found

    def knows_network_options(self, here: Here) -> bool:
        """Whether the engine knows default-network-opts: from 24.0; bookworm's own is 20.10."""
        return self.repository == "vendor" or self._codename(here) != "bookworm"

    def packages(self, here: Here) -> tuple[str, ...]:
        """Packages of the engine, its client and plugins."""
        if self.repository == "vendor":
            return VENDOR_PACKAGES
        return DISTRIBUTION_PACKAGES[self._codename(here)]

    def repositories(self, here: Here) -> dict[str, dict[str, Any]]:
        return {"docker": self.repository_for(here)} if self.repository == "vendor" else {}

    def installs(self, here: Here) -> dict[str, str | None]:
        return dict.fromkeys(["curl", "procps", *RECOMMENDED, *self.packages(here)])

    def repository_for(self, here: Here) -> dict[str, Any]:
        """Arguments for operations.repository: Docker's repository for this distribution."""
        url = f"{self.repository_url}/{here.machine.distribution if here.machine else 'debian'}"
        return {
            "uris": [url],
            "suites": [self._codename(here)],
            "components": ["stable"],
            "key": self.repository_key or f"{url}/gpg",
            "fingerprint": None if self.repository_key else FINGERPRINT,
        }

    def _codename(self, here: Here) -> str:
        return here.machine.codename if here.machine else "bookworm"

    def meets(self, found: Found, here: Here) -> Iterable[Met]:
        yield from self.taken_ports(found)
        yield from found.vendor("docker") if self.repository == "vendor" else []
        there = found.docker
        other = {"distribution": "docker-ce", "vendor": "docker.io"}[self.repository]
        if other in found.packages:
            wanted = {"docker-ce": "vendor", "docker.io": "distribution"}[other]
            yield refused(f'the package {other} is installed, which the other would remove: set docker_repository = "{wanted}"')
        if there.root not in ("", "/var/lib/docker"):
            yield refused(
                f"its images and containers are in {there.root}: stop Docker, move that to /var/lib/docker (or mount it there), "
                f"take data-root out of {CONFIGURATION}, start Docker"
            )
        if there.swarm:
            yield refused("it is part of a swarm, which can't be with live-restore: `docker swarm leave`, or take this host out of the group docker")
        if lost := sorted(there.users - set(self.users)):
            yield asked(f"{', '.join(lost)} will not be in the group docker any more: docker_users has who is")
        if keys := sorted(there.keys - _KNOWN_KEYS - set(self.daemon(here)) - set(self.runtimes(here))):
            yield asked(f"{CONFIGURATION} has {', '.join(keys)}, which go; it is kept as {CONFIGURATION}{BEFORE}")
        if there.containers:
            yield asked(self._containers(there))

    def _containers(self, there: takeover.Docker) -> str:
        """What becomes of the containers that run."""
        text = f"containers run ({', '.join(sorted(there.containers))}), and Docker is restarted once"
        stay_down = sorted(name for name, (policy, _) in there.containers.items() if policy == "no")
        if stay_down and not there.live_restore:
            text += f"; {', '.join(stay_down)} will stay down then: `docker update --restart unless-stopped {' '.join(stay_down)}`"
        if published := sorted(f"{name} ({ports})" for name, (_, ports) in there.containers.items() if ports):
            text += f". Ports that they publish are closed to other hosts without a flow to the role docker: {', '.join(published)}"
        return text

    def errors(self, here: Here) -> Iterable[str]:
        pool = ipaddress.ip_network(self.address_pool)
        for name, network in _known_networks(here):
            if network.version == 4 and pool.overlaps(network):
                yield (
                    f"docker_address_pool: {self.address_pool} overlaps {network} of {name}, which "
                    "containers could then not reach: choose another private network"
                )

    def _address_check(self) -> str:
        """That the host has the address: the daemon would start, and then publish no port."""
        if self.publish_address in ("0.0.0.0", "::"):
            return ""
        missing = f"docker_publish_address: {self.publish_address} is no address of this host"
        return f'[ -n "$(ip -o addr show to {self.publish_address})" ] || {{ echo {shlex.quote(missing)}; exit 1; }}\n'

    def services(self, here: Here) -> list[service.Service]:
        return [
            service.Service(STOP_UNIT),
            service.Service("containerd.service", reads=("/usr/bin/containerd",)),
            service.Service("docker.service", reads=(CONFIGURATION, "/usr/sbin/dockerd", "/usr/bin/dockerd")),
        ]

    def files(self, here: Here) -> list[Row]:
        rows: list[Row] = [
            Directory("/etc/docker"),
            File(CONFIGURATION, template="docker/daemon.json.j2", check=self._address_check() + CHECK, keep=True),
            Directory("/usr/local/lib/groundwork"),
            File(STOP, source="docker/stop-containers", mode="755"),
            File(
                f"/etc/systemd/system/{STOP_UNIT}",
                template="docker/groundwork-containers.service.j2",
                variables={"program": STOP},
            ),
        ]
        if self.repository == "distribution":
            rows.append(Absent("/etc/apt/sources.list.d/docker.sources"))
        return rows


def _known_networks(here: Here) -> Iterable[tuple[str, Any]]:
    """Addresses and networks of the inventory, and whose they are."""
    for other in here.topology.hosts.values():
        for address in (other.private_address, other.link_address):
            if address and is_address(address):
                yield other.name, ipaddress.ip_network(address)
        for item in other.settings(HostSettings).externals:
            yield from ((item.name, ipaddress.ip_network(network)) for network in item.networks)


@role(Settings, "Docker")
def docker(settings: Settings, here: Here) -> None:
    """The engine from one of two repositories, its configuration, and who may use it."""
    install(settings, here)

    configured = files.table(name="Configuration", rows=settings.files(here), settings=settings)
    accounts.members(name="Users", group="docker", users=settings.users)

    service.services(
        name="Service",
        services=settings.services(here),
        after=[configured],
    )
    wait.http(
        name="Ready", url="http://localhost/_ping", unit="docker.service", unix_socket="/run/docker.sock"
    )
