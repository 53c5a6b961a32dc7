"""Find the lab's hosts in a pyinfra inventory file."""

import ipaddress
import re
import runpy
import sys
from dataclasses import dataclass, field
from pathlib import Path

from . import settings
from .settings import LabError

_NETWORKS = (settings.NETWORK, settings.OFFICE)


@dataclass(frozen=True)
class Wanted:
    """A host as its inventory asks for it."""

    name: str
    address: str
    suite: str
    inventory: str
    options: dict = field(default_factory=dict)
    """What is particular to it: user_data, ssh_socket."""


def read(path: str) -> list[Wanted]:
    """The lab's hosts of an inventory file, each once, checked."""
    file = Path(path).resolve()
    found = {}
    for name, data in _hosts(file):
        host = Wanted(name, str(data.get("ssh_hostname")), data["lab_suite"], str(file), data.get("lab_options", {}))
        if found.setdefault(name, host) != host:
            raise LabError(f"{path}: {name} is declared twice, as {found[name].address} and as {host.address}.")
    hosts = list(found.values())
    if not hosts:
        raise LabError(f"{path}: no lab host in this inventory; declare one with lab_host(name, address).")
    check(hosts)
    return hosts


def check(hosts: list[Wanted]) -> None:
    """Refuse what could not be booted."""
    owner = dict.fromkeys(map(settings.gateway, _NETWORKS), "the controller")
    for host in hosts:
        if not re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", host.name):
            raise LabError(f"{host.name!r} is no host name: use lower case letters, digits and hyphens.")
        if host.suite not in settings.SUITES:
            raise LabError(f"{host.name}: no suite {host.suite!r}; there are {', '.join(settings.SUITES)}.")
        if not _usable(host.address):
            raise LabError(
                f"{host.name}: the address {host.address} is not a host's address in the lab's networks "
                f"{settings.NETWORK} (GROUNDWORK_LAB_NETWORK) and {settings.OFFICE} (the office, behind NAT)."
            )
        if host.address in owner:
            raise LabError(f"{host.name} and {owner[host.address]} cannot both have the address {host.address}.")
        owner[host.address] = host.name


def _usable(address: str) -> bool:
    try:
        return any(ipaddress.ip_address(address) in list(ipaddress.ip_network(network).hosts()) for network in _NETWORKS)
    except ValueError:
        return False


def _hosts(file: Path):
    """Every (name, data) with a lab suite, in any public group. Execs the file, as pyinfra does."""
    for key, value in _globals(file).items():
        if key.startswith("_") or not isinstance(value, (list, tuple)) or not value:
            continue
        if isinstance(value, tuple):
            if _is_lab_host(value):
                raise LabError(
                    f"{file.name}: pyinfra would read {key!r} as a group with the hosts "
                    f"{', '.join(repr(letter) for letter in value[0][:3])}…; name it '_{key}'."
                )
            value = value[0] if isinstance(value[0], (list, tuple)) else []
        yield from (host for host in value if _is_lab_host(host))


def _is_lab_host(value) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], dict) and "lab_suite" in value[1]


def _globals(file: Path) -> dict:
    if not file.is_file():
        raise LabError(f"{file}: there is no such inventory file.")
    root = str(Path(__file__).resolve().parent.parent)
    if root not in sys.path:
        sys.path.append(root)
    try:
        return runpy.run_path(str(file))
    except (Exception, SystemExit) as error:
        raise LabError(f"{file.name} could not be read: {type(error).__name__}: {error}.") from None
