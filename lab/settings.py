"""Where the lab keeps its things and what it calls them. Computes paths only: inventories import this."""

import ipaddress
import os
from pathlib import Path

CACHE = Path(os.environ.get("GROUNDWORK_LAB_CACHE") or "/var/cache/groundwork-lab")
NETWORK = os.environ.get("GROUNDWORK_LAB_NETWORK") or "10.87.0.0/24"
MIRROR = os.environ.get("GROUNDWORK_LAB_MIRROR")
SUITE = os.environ.get("GROUNDWORK_LAB_SUITE") or "bookworm"

PREFIX = NETWORK.removesuffix("/24").rpartition(".")[0]  # "10.87.0"
GATEWAY = f"{PREFIX}.1"
NETWORK6 = f"fd87:{PREFIX.replace('.', ':')}::/64"

# Every name that the controller's kernel sees is derived from the network, so that two labs can
# stand side by side. "gw-255-255-255" still fits into an interface's 15 characters.
BRIDGE = f"gw-{PREFIX.replace('.', '-')}"
NFT_TABLE = f"groundwork_lab_{PREFIX.replace('.', '_')}"

DEBIAN = ("bookworm", "trixie")
UBUNTU = ("jammy", "noble")
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


def address6(address: str) -> str:
    """The IPv6 address beside a host's IPv4 address: the same last octet."""
    return NETWORK6.replace("/64", address.rpartition(".")[2])
