"""The bridge that hosts hang on, and their way out: NAT in an nft table of our own."""

import json
from pathlib import Path

from . import settings
from .settings import BRIDGE, CACHE, GATEWAY, NETWORK, NFT_TABLE, LabError
from .shell import run

#: What the lab needs of the kernel's settings; each host takes several inotify instances.
SYSCTLS = {"net/ipv4/ip_forward": 1, "fs/inotify/max_user_instances": 4096}

# Ordinary hosts have an MTU of 1500; an uplink that is narrower is made up for here.
_RULES = f"""
table inet {NFT_TABLE}
delete table inet {NFT_TABLE}
table inet {NFT_TABLE} {{
    chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname "{BRIDGE}" tcp flags syn tcp option maxseg size set rt mtu
        oifname "{BRIDGE}" tcp flags syn tcp option maxseg size set rt mtu
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {NETWORK} oifname != "{BRIDGE}" masquerade
    }}
}}
"""


def up() -> bool:
    """Make the network, or what is missing of it. True if the bridge is new: no running host hangs on it."""
    labs = _labs()
    new = BRIDGE not in _interfaces()
    if new:
        run("ip", "link", "add", BRIDGE, "type", "bridge")
    elif BRIDGE in labs and labs[BRIDGE]["cache"] != str(CACHE):
        _refuse_if_in_use(labs[BRIDGE]["cache"])
    if labs.get(BRIDGE, {}).get("cache") != str(CACHE):
        # The bridge itself remembers what the kernel's settings were: it lives exactly as long as they do.
        before = next((lab["sysctls"] for lab in labs.values()), None) or _read()
        run("ip", "link", "set", BRIDGE, "alias", json.dumps({"cache": str(CACHE), "sysctls": before}))
    run("ip", "address", "replace", f"{GATEWAY}/24", "dev", BRIDGE)
    run("ip", "address", "replace", settings.address6(GATEWAY) + "/64", "dev", BRIDGE, "nodad", check=False)
    run("ip", "link", "set", BRIDGE, "up")
    for key, value in SYSCTLS.items():
        file = Path("/proc/sys", key)
        if int(file.read_text()) < value:
            file.write_text(str(value))
    run("nft", "-f", "-", input=_RULES)
    return new


def down() -> None:
    """Take the network away and put the kernel's settings back, if no other lab needs them."""
    labs = _labs()
    mine = labs.pop(BRIDGE, None)
    if mine and mine["cache"] != str(CACHE):
        return
    run("nft", "delete", "table", "inet", NFT_TABLE, check=False)
    if mine and not labs:
        for key, value in mine["sysctls"].items():
            Path("/proc/sys", key).write_text(str(value))
    if mine or BRIDGE in _interfaces():
        run("ip", "link", "delete", BRIDGE)


def is_up() -> bool:
    """Whether this lab's bridge is there and marked as ours."""
    return _labs().get(BRIDGE, {}).get("cache") == str(CACHE)


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


def _refuse_if_in_use(cache: str) -> None:
    if Path(cache).exists():
        raise LabError(
            f"The network {NETWORK} belongs to the lab in {cache}. Take that one down first "
            f"(GROUNDWORK_LAB_CACHE={cache} python -m lab down --all), or set GROUNDWORK_LAB_NETWORK to another."
        )
