"""Link: a private network between sites by WireGuard. Who has no endpoint dials out, so that nothing is opened there."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from typing import Iterable

from pydantic import Field

from groundwork import wireguard
from groundwork.roles import role
from groundwork.rows import Directory, File, Row
from groundwork.secrets import Secret
from groundwork.settings import Address, Domain, Network, Port, RoleSettings, bracketed
from groundwork.stages import together
from groundwork.topology import INTERNET, LINK_INTERFACE, Flow, Here
from operations import files, service, sysctl, wait
from tasks.packages import install

CONFIGURATION = f"/etc/wireguard/{LINK_INTERFACE}.conf"
UNIT = f"wg-quick@{LINK_INTERFACE}.service"

SYSCTLS = {
    # A service that listens on the link's address starts while there is no link, and is there when it comes.
    "net.ipv4.ip_nonlocal_bind": 1,
    "net.ipv6.ip_nonlocal_bind": 1,
}


# It takes a name from the file's, which must be an interface's.
_STRIP = "(d=$(mktemp -d) && trap 'rm -rf $d' EXIT && cp {} $d/candidate.conf && wg-quick strip $d/candidate.conf >/dev/null)"

_UNCUT = """sessions=$(ss -Htn state established src {address} "( {ports} )") || exit 1
interface() {{ sed '/^\\[Peer\\]/,$d' "$1" | grep =; }}
cuts() {{ [ "$(interface {live})" != "$(interface {candidate})" ] || grep -vxFf {candidate} {live} | grep -q =; }}
if [ "$sessions" ] && [ -e {live} ] && cuts; then
  echo "somebody is connected by ssh over the link, perhaps this run, and a change of keys, peers or addresses would cut it: connect \
another way (ssh_hostname: at the office its own address), or end that connection" >&2
  false
fi"""


class Settings(RoleSettings):
    """The private link between sites."""

    role = "link"
    mark = CONFIGURATION
    units = (UNIT, "init.scope")
    random_secrets = True

    network: Network = "10.77.0.0/16"
    """The link's own network: one for all its hosts, and nowhere else in use."""
    address: Address | None = None
    """The host's address in it; by default one that follows from the host's name, whatever other hosts there are."""
    endpoint: Address | Domain | None = None
    """Address or name by which hosts of other sites dial this one; ec2.hosts() sets it to the instance's public
    address. None where it dials out only, as from behind an office's router; one host of the link at least has it.
    With a name, the address is the one that it had when the link last came up."""
    port: Port = 51820
    """UDP port of a host that has an endpoint."""
    sources: list[str] = Field(default=[INTERNET], min_length=1)
    """Who may send packets there: networks, names of externals, or "internet". WireGuard answers nobody whose key
    it does not know."""
    keepalive_seconds: int = Field(default=25, ge=1, le=65535)
    """How often a host that dials out shows itself, so that NAT lets the answers in (WireGuard's quick start: 25)."""
    mtu: int | None = Field(default=None, ge=1280, le=8920)
    """Bytes of a packet in the link; by default 80 less than the way out has."""
    userspace: bool = False
    """Install wireguard-go, for a kernel that has no WireGuard."""

    def peers(self, here: Here) -> list[Here]:
        """Hosts of other sites that this one talks with."""
        return [other for other in here.topology.with_role(self.role) if other.site != here.site and here.is_linked(other)]

    def endpoint_of(self, other: Here) -> str | None:
        """Where another host is dialed: ADDRESS:PORT; None where it dials out itself."""
        there = other.settings(Settings)
        if there.endpoint is None:
            return None
        return f"{bracketed(there.endpoint)}:{there.port}"

    def address_for(self, here: Here) -> str:
        """The host's address in the link."""
        if self.address:
            return self.address
        network = ipaddress.ip_network(self.network)
        number = int.from_bytes(hashlib.sha256(here.name.encode()).digest(), "big")
        # Neither the first, which is the network's name, nor the last, by which IPv4 means everybody.
        return str(network[1 + number % (network.num_addresses - 2)])

    def interface(self, here: Here) -> str:
        """The host's address with the length of the network's prefix."""
        return f"{self.address_for(here)}/{ipaddress.ip_network(self.network).prefixlen}"

    def secrets(self, here: Here) -> list[Secret]:
        return [self.secret_of(host) for host in [here, *self.peers(here)]]

    def secret_of(self, host: Here) -> Secret:
        """A host's private key."""
        return Secret(f"link/{re.sub('[^a-z0-9_.-]', '-', host.name.lower()).strip('-')}")

    def flows(self) -> list[Flow]:
        return [Flow(source, self.role, self.port, "udp") for source in self.sources if self.endpoint]

    def services(self, here: Here) -> list[service.Service]:
        return [service.Service(UNIT, reads=(CONFIGURATION,), reload=True)]

    def installs(self, here: Here) -> dict[str, str | None]:
        return dict.fromkeys(["wireguard-tools", *(["wireguard-go"] if self.userspace else [])])

    def files(self, here: Here) -> list[Row]:
        drop_in = f"/etc/systemd/system/{UNIT}.d"
        return [
            Directory("/etc/wireguard", mode="700"),
            File(
                CONFIGURATION,
                template="link/wireguard.conf.j2",
                variables={"private_key": wireguard.private_key, "public_key": wireguard.public_key},
                mode="600",
                secret=True,
                check=f"{_STRIP} && {self._uncut(here)}",
            ),
            Directory(drop_in),
            File(f"{drop_in}/groundwork.conf", template="link/wg-quick.service.j2"),
        ]

    def _uncut(self, here: Here) -> str:
        """Of a candidate: it does not cut off somebody who is connected by the link, to here or onwards. It may add a peer."""
        hosts = here.topology.with_role(self.role)
        ports = {host.settings(host.topology.roles["base"]).ssh_port for host in hosts} | {host.data.get("ssh_port") or 22 for host in hosts}
        sessions = " or ".join(f"{side} = :{port}" for port in sorted(ports) for side in ("sport", "dport"))
        return _UNCUT.format(live=CONFIGURATION, address=bracketed(self.address_for(here)), ports=sessions, candidate="{}")

    def errors(self, here: Here) -> Iterable[str]:
        hosts = here.topology.with_role(self.role)
        networks = {host.name: host.settings(Settings).network for host in hosts}
        if len(set(networks.values())) > 1:
            said = ", ".join(f"{network} on {name}" for name, network in networks.items())
            yield f"link_network: must be one for all hosts of the link, and is {said}"
            return
        if ipaddress.ip_network(self.network).num_addresses < 4:
            yield f"link_network = {self.network}: has no room for two hosts"
            return
        if not any(host.is_dialed for host in hosts):
            yield "link_endpoint: no host of the group link has one, so that nobody can be dialed: set it where UDP comes in (the EC2 instance)"
        if len(hosts) > 1 and len({host.site for host in hosts}) == 1:
            yield (
                f"link: all hosts of the group link are at the site {here.site!r}, where they reach each other without it: set site on those "
                'that stand elsewhere (site = "office")'
            )
        for other in hosts:
            if other is not here and self.secret_of(other) == self.secret_of(here):
                yield f"link: {here.name} and {other.name} would have one key, {self.secret_of(here)!r}: give one of them another name"
        yield from self._address_errors(here, hosts)
        yield from self._overlaps(here)

    def _address_errors(self, here: Here, hosts: list[Here]) -> Iterable[str]:
        network = ipaddress.ip_network(self.network)
        taken = {host.link_address: host.name for host in hosts if host is not here}
        own = self.address_for(here)
        if ipaddress.ip_address(own) not in network or own in map(str, (network[0], network[-1])):
            yield f"link_address = {own}: is no host's address in link_network = {self.network}"
        elif own in taken:
            free = next((str(item) for item in network.hosts() if str(item) not in {own, *taken}), "none")
            yield f"link_address = {own}: {here.name} and {taken[own]} cannot both have it: set it on one of them, {free} is free"

    def _overlaps(self, here: Here) -> Iterable[str]:
        """A network that the host has another way to: its packets would go into the link, or the link's to it."""
        own = ipaddress.ip_network(self.network)
        known = [(network, f"the network of {interface} on {here.name}") for network, interface in here.machine.networks] if here.machine else []
        known += [(other.private_address, f"the private_address of {other.name}") for other in here.topology.hosts.values()]
        for network, what in known:
            try:
                there = ipaddress.ip_network(network)
            except ValueError:
                continue  # told by preflight
            if there.version == own.version and own.overlaps(there):
                yield f"link_network = {self.network}: overlaps {network}, {what}: set another, such as 10.213.0.0/16"
                return


@role(Settings, "Private link")
def link(settings: Settings, here: Here) -> None:
    """WireGuard's tools, keys and peers; then the link, and who has been heard on it."""
    install(settings, here)
    sysctl.settings(name="Kernel settings", role="link", values=SYSCTLS)
    configured = files.table(name="Configuration", rows=settings.files(here), settings=settings)
    service.services(
        name="Service",
        services=settings.services(here),
        after=[configured],
    )
    # All have brought theirs up by then.
    together(
        wait.handshakes(
            name="Handshakes",
            interface=LINK_INTERFACE,
            peers={str(peer.link_address): f"{peer.name} ({where})" for peer in settings.peers(here) if (where := settings.endpoint_of(peer))},
        )
    )
