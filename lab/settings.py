"""Where the lab keeps its things and what it calls them. Changes nothing: inventories import this."""

import ipaddress
import os
from pathlib import Path

CACHE = Path(os.environ.get("GROUNDWORK_LAB_CACHE") or "/var/cache/groundwork-lab")
NETWORK = os.environ.get("GROUNDWORK_LAB_NETWORK") or "10.87.0.0/24"
MIRROR = os.environ.get("GROUNDWORK_LAB_MIRROR")
DEBIAN = ("bookworm", "trixie")
UBUNTU = ("jammy", "noble")


def distribution(release: Path = Path("/etc/os-release")) -> tuple[str, str]:
    """What the controller runs, by os-release(5): `ID` and `VERSION_CODENAME`, empty where it does not tell."""
    lines = release.read_text().splitlines() if release.exists() else []
    found = {key: value.strip('"') for key, value in (line.split("=", 1) for line in lines if "=" in line)}
    return found.get("ID", ""), found.get("VERSION_CODENAME", "")


def own_suite(codename: str) -> str:
    """The suite of hosts that name none: bookworm, but on an Ubuntu controller, whose sources lead to no Debian, its own."""
    return codename if codename in UBUNTU else "bookworm"


SUITE = os.environ.get("GROUNDWORK_LAB_SUITE") or own_suite(distribution()[1])
CONNECTOR = os.environ.get("GROUNDWORK_LAB_CONNECTOR") or "groundwork"


def gateway(address: str) -> str:
    """The controller's address in the network of a host's address."""
    return f"{prefix(address)}.1"


def bridge(address: str) -> str:
    """The bridge of a host's address.

    Every name that the controller's kernel sees is derived from the network, so that two labs can
    stand side by side. "gw-255-255-255" still fits into an interface's 15 characters.
    """
    return f"gw-{prefix(address).replace('.', '-')}"


def address6(address: str) -> str:
    """The IPv6 address beside a host's IPv4 address: the same octets."""
    return f"fd87:{prefix(address).replace('.', ':')}::{address.rpartition('.')[2]}"


def prefix(address: str) -> str:
    """What the addresses of a network have in common: three octets."""
    return address.rpartition(".")[0]


def _office() -> str:
    first, _, third = PREFIX.rpartition(".")
    return f"{first}.{int(third) ^ 128}" if third.isdecimal() else PREFIX  # what is no network, check() refuses


# Two networks: the first, which the office behind its NAT reaches, and the office.
PREFIX = prefix(NETWORK)  # "10.87.0"
OFFICE_PREFIX = _office()  # "10.87.128"
OFFICE = f"{OFFICE_PREFIX}.0/24"

GATEWAY = gateway(NETWORK)
BRIDGE = bridge(NETWORK)
OFFICE_BRIDGE = bridge(OFFICE)
NFT_TABLE = f"groundwork_lab_{PREFIX.replace('.', '_')}"

SUITES = DEBIAN + UBUNTU

SSH_KEY = CACHE / "ssh" / "id_ed25519"
KNOWN_HOSTS = CACHE / "ssh" / "known_hosts"
HOST_KEYS = CACHE / "ssh" / "host_keys"
ROOTS = CACHE / "roots"
HOSTS = CACHE / "hosts"
TRASH = CACHE / "trash"
LOCK = CACHE / "lock"

REPOSITORY_PORT = 8087
REPOSITORY = f"http://{GATEWAY}:{REPOSITORY_PORT}"
REPOSITORY_KEY = CACHE / "repository" / "key.asc"


class LabError(Exception):
    """Something that its reader can put right; shown as one sentence, without a traceback."""


def check() -> None:
    """Refuse settings that the rest of the lab could not work with."""
    try:
        network = ipaddress.ip_network(NETWORK)
    except ValueError as error:
        raise LabError(f"GROUNDWORK_LAB_NETWORK is no network: {error}.") from None
    if network.version != 4 or network.prefixlen != 24 or not network.is_private:
        raise LabError(f"GROUNDWORK_LAB_NETWORK must be a private IPv4 /24 such as 10.88.0.0/24, not {NETWORK}.")
    if not CACHE.is_absolute() or len(str(CACHE)) > 120:
        raise LabError(f"GROUNDWORK_LAB_CACHE must be an absolute path of at most 120 characters, not {CACHE}.")
