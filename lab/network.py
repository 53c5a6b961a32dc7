"""The bridges that hosts hang on, and their ways out: NAT in an nft table of our own."""

import json
import os
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from . import settings
from .settings import BRIDGE, CACHE, NETWORK, NFT_TABLE, OFFICE, OFFICE_BRIDGE, LabError
from .shell import run

#: What the lab needs of the kernel's settings; each host takes several inotify instances.
SYSCTLS = {"net/ipv4/ip_forward": 1, "fs/inotify/max_user_instances": 4096}

_BRIDGES = {BRIDGE: NETWORK, OFFICE_BRIDGE: OFFICE}

# Ordinary hosts have an MTU of 1500; an uplink that is narrower is made up for here.
# The office is behind NAT: it reaches the first network under the controller's address there, and from
# outside, the controller itself apart, nothing begins a connection with it.
_RULES = f"""
table inet {NFT_TABLE}
delete table inet {NFT_TABLE}
table inet {NFT_TABLE} {{
    chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname {{ "{BRIDGE}", "{OFFICE_BRIDGE}" }} tcp flags syn tcp option maxseg size set rt mtu
        oifname {{ "{BRIDGE}", "{OFFICE_BRIDGE}" }} tcp flags syn tcp option maxseg size set rt mtu
        iifname != "{OFFICE_BRIDGE}" oifname "{OFFICE_BRIDGE}" ct state new,invalid drop
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {NETWORK} oifname != "{BRIDGE}" masquerade
        ip saddr {OFFICE} oifname != "{OFFICE_BRIDGE}" masquerade
    }}
}}
"""


def up() -> set[str]:
    """Make the networks, or what is missing of them. The bridges that are new: no running host hangs on them."""
    labs = _labs()
    for bridge in _BRIDGES:
        if bridge in labs and labs[bridge]["cache"] != str(CACHE):
            _refuse_if_in_use(bridge, labs[bridge]["cache"])
    # The bridges themselves remember what the kernel's settings were: they live exactly as long as they do.
    before = next((lab["sysctls"] for lab in labs.values()), None) or _read()
    run("nft", "-f", "-", input=_RULES)
    new = _BRIDGES.keys() - _interfaces()
    for bridge, network in _BRIDGES.items():
        if bridge in new:
            run("ip", "link", "add", bridge, "type", "bridge")
        if labs.get(bridge, {}).get("cache") != str(CACHE):
            run("ip", "link", "set", bridge, "alias", json.dumps({"cache": str(CACHE), "sysctls": before}))
        gateway = settings.gateway(network)
        run("ip", "address", "replace", f"{gateway}/24", "dev", bridge)
        run("ip", "address", "replace", settings.address6(gateway) + "/64", "dev", bridge, "nodad", check=False)
        run("ip", "link", "set", bridge, "up")
    for key, value in SYSCTLS.items():
        file = Path("/proc/sys", key)
        if int(file.read_text()) < value:
            file.write_text(str(value))
    return new


def down() -> None:
    """Take the networks away and put the kernel's settings back, if no other lab needs them."""
    labs = _labs()
    mine = [labs.pop(bridge) for bridge in _BRIDGES if bridge in labs]
    if any(lab["cache"] != str(CACHE) for lab in mine):
        return
    run("nft", "delete", "table", "inet", NFT_TABLE, check=False)
    if mine and not labs:
        for key, value in mine[0]["sysctls"].items():
            Path("/proc/sys", key).write_text(str(value))
    for bridge in _BRIDGES.keys() & _interfaces():
        run("ip", "link", "delete", bridge)


def is_up() -> bool:
    """Whether this lab's bridges are there and marked as ours, and its rules are."""
    labs = _labs()
    if any(labs.get(bridge, {}).get("cache") != str(CACHE) for bridge in _BRIDGES):
        return False
    return OFFICE_BRIDGE in run("nft", "list", "table", "inet", NFT_TABLE, check=False)


@contextmanager
def cut(*addresses: str) -> Iterator[None]:
    """Drop what goes between two hosts, or between one and everything but the controller, as long as this lasts.

    The rules belong to a process: they go when it ends, and it ends when the one that began this does, killed or not.

    Args:
        addresses: of one host or of two; IPv4.
    """
    ways = [f"ip saddr {addresses[0]}", f"ip daddr {addresses[0]}"]
    if len(addresses) > 1:
        ways = [f"{ways[0]} ip daddr {addresses[1]}", f"{ways[1]} ip saddr {addresses[1]}"]
    chain = "chain forward { type filter hook forward priority -10; " + "".join(f"{way} drop; " for way in ways) + "}"
    nft = subprocess.Popen(
        ["nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "HOME": "/dev/null"},  # where it would write a history
    )  # fmt: skip
    tables = [f"{family} {NFT_TABLE}_cut_{nft.pid}" for family in ("inet", "bridge")]  # routed, and within one bridge
    with nft:
        nft.stdin.write("".join(f"table {table} {{ flags owner; {chain}; }}\n" for table in tables))
        nft.stdin.flush()
        deadline = time.monotonic() + 5
        while not all(f"table {table}\n" in run("nft", "list", "tables") for table in tables):
            if time.monotonic() > deadline or nft.poll() is not None:
                raise LabError(f"nft made no table {' or '.join(tables)} within 5 s.")
            time.sleep(0.02)
        yield


def nameservers() -> list[str]:
    """The controller's name servers that a host can reach too."""
    for file in ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"):
        if not Path(file).exists():
            continue
        words = [line.split() for line in Path(file).read_text().splitlines()]
        found = [word[1] for word in words if word[:1] == ["nameserver"] and not word[1].startswith(("127.", "::1"))]
        if found:
            return found
    raise LabError("/etc/resolv.conf names no server that a lab host could reach; a loopback address won't do.")


def _read() -> dict[str, int]:
    return {key: int(Path("/proc/sys", key).read_text()) for key in SYSCTLS}


def _interfaces() -> dict[str, str]:
    return {link["ifname"]: link.get("ifalias", "") for link in json.loads(run("ip", "-j", "link", "show"))}


def _labs() -> dict[str, dict]:
    """Every lab's bridge on this machine, with what it remembers."""
    labs = {}
    for name, alias in _interfaces().items():
        if name.startswith("gw-") and alias.startswith("{"):
            labs[name] = json.loads(alias)
    return labs


def _refuse_if_in_use(bridge: str, cache: str) -> None:
    if Path(cache).exists():
        raise LabError(
            f"The network {_BRIDGES[bridge]} belongs to the lab in {cache}. Take that one down first "
            f"(GROUNDWORK_LAB_CACHE={cache} python -m lab down --all), or set GROUNDWORK_LAB_NETWORK to another."
        )
