"""Base: what every host has, whatever else it carries. Who gets in, what is open, and how it keeps itself."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import shutil
import struct
import subprocess
import zoneinfo
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Iterable, Literal

from pydantic import AfterValidator, Field

from facts.accounts import SUDOERS
from facts.firewall import RULES
from facts.sshd import CHECK, DROP_IN
from groundwork import logins
from groundwork.roles import role
from groundwork.rows import Absent, Directory, File, Link, Row
from groundwork.settings import Address, Domain, Network, Part, Port, RoleSettings, Size, UserName, is_address, matching
from groundwork.takeover import Found, Met, asked, refused, told
from groundwork.topology import INTERNET, LINK_INTERFACE, Flow, Here, Machine, Opening
from operations import accounts, files, firewall, host, service, sshd, swap, sysctl, takeover, unconfirmed
from tasks.packages import install


SWAP_BELOW = 2048
"""MiB of memory under which a host gets a swap file."""

RSA_MINIMUM = 2048
"""Bits of an RSA key: what EC2 makes, and the least that NIST SP 800-131A allows."""

KEY = re.compile(r"(?:^|\s)((?:sk-)?(?:ssh|ecdsa)-[a-z0-9@.-]+)\s+(AAAA[A-Za-z0-9+/=]*)(?:\s|$)")
"""Type and blob in a line of authorized_keys (sshd(8)); options may stand before, a comment after."""

PACKAGES = (
    "ca-certificates",
    "chrony",
    "curl",
    "fail2ban",
    "logrotate",
    "nftables",
    "python3-systemd",  # fail2ban reads the journal with it
    "sudo",
    "tzdata",
    "unattended-upgrades",
)

DHCP = {68, 546}
"""UDP ports that templates/base/firewall.nft.j2 opens to every host."""

SYSCTLS = {
    # Only routers need these; the names under * cover interfaces that are there already.
    "net.ipv4.conf.*.accept_redirects": 0,
    "net.ipv4.conf.*.secure_redirects": 0,
    "net.ipv4.conf.*.send_redirects": 0,
    "net.ipv4.conf.*.accept_source_route": 0,
    "net.ipv6.conf.*.accept_redirects": 0,
    "net.ipv6.conf.*.accept_source_route": 0,
    "net.ipv4.icmp_echo_ignore_broadcasts": 1,
    "net.ipv4.tcp_syncookies": 1,
    "net.ipv4.tcp_rfc1337": 1,
    # A just-in-time compiled packet filter could carry an attacker's constants.
    "net.core.bpf_jit_harden": 2,
    # No terminal needs a line discipline of a module nobody asked for.
    "dev.tty.ldisc_autoload": 0,
    "kernel.core_uses_pid": 1,
    "kernel.dmesg_restrict": 1,
    "kernel.kptr_restrict": 2,
    "kernel.yama.ptrace_scope": 1,
    "fs.protected_fifos": 2,
    "fs.protected_regular": 2,
    "fs.suid_dumpable": 0,
}


# journald ignores what it does not understand, with a warning. It says so at its start, before it finds
# that it may not do what it is there for: one that reads the candidate as the configuration of a
# namespace, and is nobody, ends there.
JOURNALD = """d=/run/systemd/journald@groundwork-check.conf.d; install -D -m 644 {} $d/candidate.conf; chmod 755 $d
said=$(cd /; SYSTEMD_LOG_TARGET=console setpriv --reuid=nobody --regid=nogroup --clear-groups \\
  timeout 10 /lib/systemd/systemd-journald groundwork-check 2>&1); status=$?
rm -rf $d; echo "$said" | sed "s|$d/candidate.conf|{}|" | grep -F "{}"; [ $? = 1 ] && [ $status -lt 124 ]"""

# What reads it is Python, too: where there is no PyYAML there is no cloud-init.
YAML = "! python3 -c 'import yaml' 2>/dev/null || python3 -c 'import sys, yaml; yaml.safe_load(open(sys.argv[1]))' {}"

MODULES = ("dccp", "rds", "sctp", "tipc", "cramfs", "freevxfs", "hfs", "hfsplus", "jffs2")
"""Protocols and file systems that no server of ours speaks; the kernel would load their modules for anybody."""


def _public_key(value: str) -> str:
    """An authorized_keys line whose key can be read: type, and the same type and a size inside."""
    match = KEY.search(value)
    if "PRIVATE KEY" in value or "\n" in value.strip() or not match:
        raise ValueError("is not one line of a public key, such as ssh-ed25519 AAAA… anna@laptop")
    kind, blob = match.groups()
    try:
        raw = base64.b64decode(blob, validate=True)
        parts = _parts(raw)
    except (binascii.Error, struct.error):
        raise ValueError("its second word is not the whole of a key: was it cut off?") from None
    if len(parts) < 2 or parts[0] != kind.encode():
        raise ValueError(f"says it is {kind}, but holds another kind of key")
    if kind == "ssh-dss":
        raise ValueError("is a DSA key, which sshd does not take any more: make an ssh-ed25519 key")
    if kind == "ssh-rsa" and int.from_bytes(parts[2], "big").bit_length() < RSA_MINIMUM:
        raise ValueError(f"is an RSA key of less than {RSA_MINIMUM} bits: make an ssh-ed25519 key")
    return value.strip()


def _parts(raw: bytes) -> list[bytes]:
    """Length-prefixed strings of a key's blob (RFC 4253, 6.6)."""
    parts = []
    while raw:
        (length,) = struct.unpack(">I", raw[:4])
        if len(raw) < 4 + length:
            raise struct.error("cut off")
        parts.append(raw[4 : 4 + length])
        raw = raw[4 + length :]
    return parts


def _timezone(value: str) -> str:
    known = zoneinfo.available_timezones()
    if not re.fullmatch(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*", value) or (known and value not in known):
        raise ValueError(f"{value!r} is not a time zone such as Etc/UTC or Europe/Berlin")
    return value


PublicKey = Annotated[str, AfterValidator(_public_key)]
TimeZone = Annotated[str, AfterValidator(_timezone)]


class Administrator(Part):
    """A person with sudo, who logs in with a key."""

    name: UserName
    """Login name."""
    keys: list[PublicKey] = []
    """All their public keys, as lines of authorized_keys; others are removed."""
    state: Literal["present", "absent"] = "present"
    """absent removes the account and its keys, and keeps the home."""


class Settings(RoleSettings):
    """What every host has."""

    role = "base"
    mark = "/var/lib/groundwork/base"
    units = ("ssh.service", "sshd.service", "ssh.socket", "init.scope")

    hostname: Domain | None = None
    """The host's name; by default its name in the inventory, unless that is an address."""
    timezone: TimeZone = "Etc/UTC"
    """Time zone, as in the tz database."""
    time_servers: list[Domain | Address] = []
    """NTP servers to prefer to the distribution's own."""
    administrators: list[Administrator] = []
    """People with sudo: [{"name": "anna", "keys": ["ssh-ed25519 AAAA… anna@laptop"]}]. Who was in the
    list and is not any more has no sudo, and still gets in: {"name": "anna", "state": "absent"} removes somebody. Accounts
    that never were in it are left alone."""
    ssh_port: Port = 22
    """Where sshd listens. When it is not 22, ssh_port must be set too: it is where pyinfra connects."""
    ssh_sources: list[str] = Field(default=[INTERNET], min_length=1)
    """Who may connect to sshd: networks, names of externals, roles, or "internet"."""
    ssh_root_login: Literal["no", "prohibit-password"] = "no"
    """Whether root may log in: not at all, or with a key (for the first run on a host that has only root)."""
    ssh_tcp_forwarding: Literal["no", "local", "yes"] = "local"
    """Which tunnels sshd makes: local is enough for `ssh -L` and for jumping on from here."""
    ssh_max_auth_tries: int = Field(default=4, ge=2, le=10)
    """Keys that a client may try in one connection."""
    ssh_login_grace: int = Field(default=30, ge=10, le=600)
    """Seconds to log in."""
    ban_after: int = Field(default=6, ge=2)
    """Failed logins in ten minutes after which fail2ban bans an address."""
    ban_minutes: int = Field(default=10, ge=1)
    """Minutes of the first ban; each further one of an address is longer, up to a week."""
    ban_never: list[Network] = []
    """Networks never banned, besides the inventory's own hosts and those that base_ssh_sources names."""
    confirm_seconds: int = Field(default=60, ge=10, le=600)
    """Seconds in which a new connection must confirm a change of firewall, sshd, keys or sudo. After them the
    host puts back what was there. 10 to 600."""
    firewall_log: bool = True
    """Log refused packets (the kernel's log, at most ten a minute)."""
    first_run_upgrade: bool = True
    """Upgrade all packages once, at the first run."""
    reboot_time: Annotated[str, matching(r"([01][0-9]|2[0-3]):[0-5][0-9]", 'a time such as "04:00"')] | None = None
    """When to reboot, such as "04:00", if a security update asks for it; by default never."""
    journal_size: Size = "500M"
    """The most that the journal takes on disk."""
    journal_days: int = Field(default=30, ge=1)
    """Days that the journal is kept."""
    sysctls: dict[Annotated[str, matching(r"[a-z0-9_]+(\.[A-Za-z0-9_*-]+)+", "a name such as net.core.somaxconn")], str | int] = {}
    """More kernel settings, or other values for ours: {"net.core.somaxconn": 4096}."""
    swap_size: int | None = Field(default=None, ge=0)
    """MiB of a swap file; by default 1024 where memory is under 2 GiB, else none. A file that exists
    keeps its size."""

    @property
    def present(self) -> list[Administrator]:
        """Administrators who shall be there."""
        return [person for person in self.administrators if person.state == "present"]

    @property
    def absent(self) -> list[str]:
        """Names of those who shall not."""
        return [person.name for person in self.administrators if person.state == "absent"]

    def flows(self) -> list[Flow]:
        return [Flow(source, self.role, self.ssh_port) for source in self.ssh_sources]

    def ssh_networks(self, here: Here) -> list[str] | None:
        """Who may connect to sshd, as networks; None for everybody."""
        found = [here.networks_of(source) for source in self.ssh_sources]
        return None if None in found else [network for networks in found for network in networks or []]

    def users(self) -> list[accounts.User]:
        """Accounts of the administrators."""
        return [
            accounts.User(
                person.name,
                home=f"/home/{person.name}",
                shell="/bin/bash",
                groups=("adm", "systemd-journal"),
                keys=tuple(person.keys),
            )
            for person in self.present
        ]

    def hostname_of(self, here: Here) -> str | None:
        """The host's name, or None where the inventory knows only its address."""
        return self.hostname or (None if is_address(here.name) else here.name)

    def addresses(self, here: Here) -> dict[str, list[str]]:
        """Address as seen from here -> names of each host of the inventory that can be reached."""
        found: dict[str, list[str]] = {}
        for other in here.topology.hosts.values():
            address = other.private_address if other is here else here.address_of(other)
            if not address or not is_address(address):
                continue
            name = other.settings(Settings).hostname_of(other)
            names = [name, name.split(".")[0]] if name else []
            if _is_domain(other.name) and not is_address(other.name):
                names.append(other.name)
            if names:
                found[address] = list(dict.fromkeys([*found.get(address, []), *names]))
        return found

    def further_units(self) -> list[str]:
        # Not chrony: its own conditions keep it off in a container.
        return [firewall.UNIT, "fail2ban.service"]

    def swap(self, here: Here) -> int:
        """MiB of swap."""
        return self.swap_size if self.swap_size is not None else 1024 * (here.memory < SWAP_BELOW)

    def openings(self, here: Here) -> dict[str, list[str]]:
        """Firewall rules: `host` for the host's own ports, `published` for containers' ports."""
        openings = here.openings()
        # While sshd moves, both doors are open: a run that is cut off in between locks nobody out.
        connected = here.data.get("ssh_port") or 22
        moving = [
            replace(item, port=connected)
            for item in openings
            if item.port == self.ssh_port and connected not in [other.port for other in openings]
        ]
        return {
            "host": [rule for item in [*openings, *moving] for rule in rules(item, f"{item.protocol} dport", here)],
            "published": [
                rule
                for item in openings
                if item.role == "docker"
                for rule in rules(item, "meta l4proto tcp ct original proto-dst", here)
            ],
        }

    def never_banned(self, here: Here) -> list[str]:
        """Addresses and networks that fail2ban leaves alone."""
        others = here.topology.hosts.values()
        hosts = [address for other in others for address in (other.private_address, other.link_address) if address]
        sources = [network for source in self.ssh_sources for network in here.networks_of(source) or []]
        # Behind a jump host everybody comes from one address: one person's failed logins would ban us all.
        jumps = [address for address in logins.jumps(here) if is_address(address)]
        return list(dict.fromkeys([*hosts, *sources, *jumps, *self.ban_never]))

    def services(self, here: Here) -> list[service.Service]:
        # In a container nobody sets the clock: chrony's own condition keeps it off there.
        clock = None if here.machine and here.machine.container else True
        return [
            # Started and reloaded on probation; at boot it loads what is on disk.
            service.Service(firewall.UNIT, running=None, restart=False),
            service.Service(unconfirmed.UNIT, running=None),
            service.Service("systemd-journald.service", reads=("/etc/systemd/journald.conf.d",), enabled=None),
            service.Service("chrony.service", reads=("/etc/chrony/sources.d",), running=clock),
            service.Service("fail2ban.service", reads=("/etc/fail2ban/jail.d",), reload=True),
            service.Service("unattended-upgrades.service"),
            service.Service("apt-daily.timer"),
            service.Service("apt-daily-upgrade.timer"),
        ]

    def reads(self, here: Here) -> dict[str, list[str]]:
        return {**super().reads(here), **sshd.READS}

    def installs(self, here: Here) -> dict[str, str | None]:
        return dict.fromkeys(PACKAGES)

    def files(self, here: Here) -> list[Row]:
        return [*self.configuration(here), *self.ways_in(here), *self.sudo()]

    def configuration(self, here: Here) -> list[Row]:
        """Files that lock nobody out."""
        machine = _machine(here)
        return [
            Directory("/etc/groundwork"),
            Directory(files.LIB),
            *self._clock_files(machine),
            *self._upkeep_files(machine),
            Directory("/etc/modprobe.d"),
            File(
                "/etc/modprobe.d/groundwork.conf",
                template="base/modprobe.conf.j2",
                variables={"modules": MODULES},
            ),
            File("/etc/security/limits.d/groundwork.conf", template="base/limits.conf.j2"),
            *self._fail2ban_files(here),
            File(unconfirmed.GUARD, source="base/guard", mode="755"),
            File(f"/etc/systemd/system/{unconfirmed.UNIT}", template="base/rollback.service.j2"),
            File(f"{files.LIB}/load-firewall", source="base/load-firewall", mode="755"),
            File(f"/etc/systemd/system/{firewall.UNIT}", template="base/firewall.service.j2"),
            File(CHECK, source="base/check-sshd", mode="755"),
            Directory("/etc/systemd/system/ssh.socket.d"),
        ]

    def ways_in(self, here: Here) -> list[Row]:
        """Files that say who gets in: changed on probation."""
        return [
            File(
                RULES,
                template="base/firewall.nft.j2",
                variables={"openings": self.openings(here)},
                check="nft -c -f {}",
            ),
            *self._sshd_files(_machine(here)),
        ]

    def sudo(self) -> list[Row]:
        """Who may do everything; changed on probation, too."""
        return [File(SUDOERS, template="base/sudoers.j2", mode="440", check="visudo -cf {}")]

    def kept(self, here: Here) -> list[str]:
        """Paths that are put back where nobody confirms a change; people's keys are kept by operations/accounts.py."""
        return [row.path for row in [*self.ways_in(here), *self.sudo()]]

    def _clock_files(self, machine: Machine) -> list[Row]:
        zone = f"/usr/share/zoneinfo/{self.timezone}"
        name = File("/etc/timezone", content=f"{self.timezone}\n")
        return [
            Link("/etc/localtime", target=zone),
            *([] if machine.codename == "trixie" else [name]),  # trixie has this file no more
            File(
                "/etc/chrony/sources.d/groundwork.sources",
                template="base/chrony.sources.j2",
                check="chronyd -p -f {}",
            ),
        ]

    def _upkeep_files(self, machine: Machine) -> list[Row]:
        return [
            # For hosts that have cloud-init or needrestart; elsewhere they say nothing to anybody.
            Directory("/etc/cloud"),
            Directory("/etc/cloud/cloud.cfg.d"),
            File("/etc/cloud/cloud.cfg.d/99-groundwork.cfg", template="base/cloud.cfg.j2", check=YAML),
            Directory("/etc/needrestart"),
            Directory("/etc/needrestart/conf.d"),
            File("/etc/needrestart/conf.d/groundwork.conf", template="base/needrestart.conf.j2", check="perl -c {}"),
            File(
                "/etc/apt/apt.conf.d/52groundwork",
                template="base/apt.conf.j2",
                variables={"origins": security_origins(machine)},
            ),
            Directory("/etc/systemd/journald.conf.d"),
            File(
                "/etc/systemd/journald.conf.d/groundwork.conf", template="base/journald.conf.j2", check=JOURNALD
            ),
        ]

    def _fail2ban_files(self, here: Here) -> list[Row]:
        check = (
            'd=$(mktemp -d) && cp -r /etc/fail2ban/. "$d" && cp {} "$d/jail.d/groundwork.local" && '
            'fail2ban-client -c "$d" -t; r=$?; rm -rf "$d"; test $r = 0'
        )
        return [
            File(
                "/etc/fail2ban/jail.d/groundwork.local",
                template="base/fail2ban.local.j2",
                variables={"never_banned": self.never_banned(here)},
                check=check,
            )
        ]

    def _sshd_files(self, machine: Machine) -> list[Row]:
        socket = "/etc/systemd/system/ssh.socket.d/groundwork.conf"
        return [
            File(socket, template="base/ssh.socket.j2") if machine.ssh_socket and self.ssh_port != 22 else Absent(socket),
            File(
                DROP_IN,
                template="base/sshd.conf.j2",
                variables={
                    "modern": machine.codename == "trixie",  # OpenSSH 9.9
                    "required_rsa_size": machine.codename != "jammy",  # OpenSSH 9.1
                },
                check=f"{CHECK} {{}}",
                mode="600",
            ),
        ]

    def meets(self, found: Found, here: Here) -> Iterable[Met]:
        for met in self._meets(found, here):
            # Beside what is there Groundwork has been already: it has asked, or it is older than the questions.
            yield told(met.what) if found.firewall_written else met

    def _meets(self, found: Found, here: Here) -> Iterable[Met]:
        yield from self.taken_ports(found)
        if found.firewalld:
            yield refused("firewalld is active: declare what it lets in as flows, then `systemctl disable --now firewalld`")
        if found.tables:
            off = " ".join(f"`systemctl disable --now {unit}`" for unit in found.rules_at_boot)
            yield refused(
                f"other firewall rules keep packets out ({', '.join(found.tables)}), so that what a flow opens may stay "
                f"closed: declare what they let in as flows, then take them away {off}".rstrip()
            )
        if found.ufw is not None:
            rules = "; ".join(found.ufw) or "nothing"
            yield asked(
                f"ufw is active, and what a flow opens it may keep closed. It has: {rules}. Declare what shall stay open as "
                "flows, then `ufw disable`; or, with take_over, the run does that, when its own rules are loaded"
            )
        if closed := self._closed(found, here):
            yield asked(
                f"the firewall will close what is open now: {', '.join(closed)}. What shall stay open needs a flow: "
                'flows = [{"source": "192.0.2.0/24", "role": "base", "port": …}]'
            )
        if found.passwords:
            yield asked(
                f"{', '.join(found.passwords)} can log in with a password and no key, which sshd will take no more: put "
                "their keys into base_administrators, or into their ~/.ssh/authorized_keys"
            )

    def _closed(self, found: Found, here: Here) -> list[str]:
        """Programs that others reach today, and will not; none where our firewall is loaded already."""
        if found.firewall_loaded:
            return []
        opened = {(opening.protocol, opening.port) for opening in here.openings()} | {("tcp", here.data.get("ssh_port") or 22)}
        opened |= {("udp", port) for port in DHCP}
        closed = [
            f"port {item.port}{'' if item.protocol == 'tcp' else '/udp'} of {item.name}"
            for item in found.listeners
            if not item.local
            and not (item.program == "docker-proxy" and "docker" in here.roles)  # that role tells of its containers
            and (item.protocol, item.port) not in opened
        ]
        return list(dict.fromkeys(closed))

    def errors(self, here: Here) -> Iterable[str]:
        if self.hostname is None and not is_address(here.name) and not _is_domain(here.name):
            yield f"base_hostname: must be set, because {here.name!r} is not a host name such as db1.example.org"
        yield from self._administrator_errors(here)
        yield from self._lockout_errors(here)

    def _administrator_errors(self, here: Here) -> Iterable[str]:
        names = [person.name for person in self.administrators]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"base_administrators: {name} is there twice"
        for person in self.present:
            if not person.keys:
                yield f'base_administrators: {person.name} has no keys, and so no way in: add some, or "state": "absent"'
        if "root" in names:
            yield "base_administrators: root is not a person; base_ssh_root_login says whether it may log in"
        user = logins.login(here)
        if user in self.absent:
            yield f"base_administrators: {user} is the user whom Groundwork connects as, and can't be absent"
        for person in self.present:
            own = _own_public_key(str(here.data.get("ssh_key"))) if person.name == user else ""
            if own and own not in [_bare(key) for key in person.keys]:
                yield f"base_administrators: {user} is the user whom we connect as, and the key of ssh_key is not among the keys"

    def _lockout_errors(self, here: Here) -> Iterable[str]:
        data = here.data
        if data.get("ssh_password") and not data.get("ssh_key"):
            yield (
                "ssh_password: sshd will take no passwords, and no ssh_key is set: put a public key on the "
                "host (ssh-copy-id) and set ssh_key"
            )
        if data.get("ssh_user") == "root" and self.ssh_root_login == "no":
            yield (
                "ssh_user: root's login gets closed: declare base_administrators, run once with "
                "--data base_ssh_root_login=prohibit-password, and connect as one of them from then on"
            )
        port = data.get("ssh_port")
        if port is None and self.ssh_port != 22:
            yield (
                f"base_ssh_port: is {self.ssh_port}, but ssh_port is not set, so the next run would knock at 22: set "
                f"ssh_port = {self.ssh_port}, and for the run that moves sshd give --data ssh_port=22"
            )
        if port not in (None, 22) and "base_ssh_port" not in data:
            yield (
                f"ssh_port: is {port}, and base_ssh_port is not set: set it to {port} where sshd shall listen there, to "
                "22 where something in front forwards"
            )


def rules(opening: Opening, match: str, here: Here) -> list[str]:
    """nft rules of an opening: one for everybody, or one for each IP version, and for the private link, whose
    addresses count on its interface alone."""
    end = f'{match} {opening.port} accept comment "{opening.role}"'
    if opening.everybody:
        return [end]
    found = []
    for version, word in ((4, "ip"), (6, "ip6")):
        networks = opening.networks(version)
        linked = {network for network in networks if here.is_of_link(network)}
        for start, some in (("", set(networks) - linked), (f'iifname "{LINK_INTERFACE}" ', linked)):
            # nft refuses a set whose members overlap.
            members = [_short(network) for network in ipaddress.collapse_addresses(map(ipaddress.ip_network, some))]
            if members:
                found.append(f"{start}{word} saddr {{ {', '.join(members)} }} {end}")
    return found


def _short(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
    return str(network.network_address if network.num_addresses == 1 else network)


def security_origins(machine: Machine) -> list[str]:
    """Where unattended-upgrades takes packages from: the distribution's security archive."""
    if machine.distribution == "ubuntu":
        return [
            "origin=Ubuntu,archive=${distro_codename}-security,label=Ubuntu",
            "origin=UbuntuESM,archive=${distro_codename}-infra-security",
            "origin=UbuntuESMApps,archive=${distro_codename}-apps-security",
        ]
    return ["origin=Debian,codename=${distro_codename}-security,label=Debian-Security"]


def _machine(here: Here) -> Machine:
    return here.machine or Machine("debian", "bookworm", "amd64", here.memory, here.cores)


def _is_domain(name: str) -> bool:
    label = r"[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?"
    return bool(re.fullmatch(rf"{label}(\.{label})*", name))


def _bare(line: str) -> str:
    """Type and blob of a key, without options and comment."""
    match = KEY.search(line)
    return " ".join(match.groups()) if match else ""


def _own_public_key(ssh_key: str) -> str:
    """The public half of ssh_key: from beside it, or of the key itself where that has no passphrase."""
    key = Path(ssh_key).expanduser()
    beside = Path(f"{key}.pub")
    if beside.is_file():
        return _bare(beside.read_text())
    if not key.is_file() or not shutil.which("ssh-keygen"):
        return ""
    said = subprocess.run(["ssh-keygen", "-y", "-P", "", "-f", str(key)], capture_output=True, text=True)
    return _bare(said.stdout)


@role(Settings, "Base")
def base(settings: Settings, here: Here) -> None:
    """Packages, files and services; then firewall, sshd and people, on probation until a new connection confirms them."""
    install(settings, here)
    host.names(
        name="Host name and /etc/hosts",
        hostname=settings.hostname_of(here),
        addresses=settings.addresses(here),
    )
    configured = files.table(name="Configuration", rows=settings.configuration(here), settings=settings)
    sysctl.settings(name="Kernel settings", role="base", values={**SYSCTLS, **settings.sysctls})
    swap.file(name="Swap", size=settings.swap(here))

    service.services(name="Services", services=settings.services(here), after=[configured])

    keep = unconfirmed.keep(settings.confirm_seconds, settings.kept(here))
    ways_in = files.table(name="Ways in", rows=settings.ways_in(here), settings=settings, before=keep)
    rules = firewall.loaded(name="Firewall", before=keep, after=[ways_in])
    daemon = sshd.current(name="sshd", port=settings.ssh_port, before=keep, after=[ways_in])
    people = accounts.users(
        name="Administrators", users=settings.users(), absent=settings.absent, before=keep, administrators=True
    )
    # Last: whoever loses sudo by it can do no more but be told so.
    sudo = files.table(name="Sudo", rows=settings.sudo(), settings=settings, before=keep)
    unconfirmed.confirmed(
        name="Confirmation",
        seconds=settings.confirm_seconds,
        port=settings.ssh_port,
        after=[ways_in, rules, daemon, people, sudo],
    )
    takeover.base(name="What was here before", found=here.found, mark=settings.mark)
