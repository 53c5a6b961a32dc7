"""What this process works on: the inventory's topology and its secrets, made once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Iterable

from pyinfra import host, inventory
from pyinfra.api import Host, State
from pyinfra.context import ctx_state
from pyinfra_cli.inventory import make_inventory

from groundwork.roles import all_roles
from groundwork.secrets import SecretStore
from groundwork import ROOT
from groundwork.topology import Here, Topology

_made: dict[str, Any] = {}


def topology() -> Topology:
    """The topology of the inventory at hand."""
    return _made.get("topology") or use(inventory)


def use(hosts: Iterable[Host]) -> Topology:
    """Make the topology of an inventory's hosts, and work on it from now on; the one at hand where they are the same."""
    known, made = _made.get("topology"), _topology_of(hosts)
    if known is None or [_said(here) for here in known.hosts.values()] != [_said(here) for here in made.hosts.values()]:
        _made["topology"] = made
    return _made["topology"]


def _said(here: Here) -> tuple[str, list[str], dict[str, Any]]:
    """All that an inventory says of a host."""
    return here.name, here.groups, here.data


def load(path: Path | str) -> Topology:
    """The topology of an inventory file, read outside of a run."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))  # where a run finds what inventories import
    with ctx_state.use(State()):
        return _topology_of(make_inventory(str(path)))


def _topology_of(hosts: Iterable[Host]) -> Topology:
    return Topology({item.name: (list(item.groups), item.data.dict()) for item in hosts}, all_roles())


def forget() -> None:
    """Forget what was made: for tests, which work on many inventories in one process."""
    _made.clear()


def current() -> Here:
    """The topology as the current host sees it."""
    return topology().hosts[host.name]


def inventory_file() -> Path:
    """The inventory file of this run: pyinfra does not keep it, its command line does.

    pyinfra puts every host into a group called as the file, which tells it from deploy.py. Where
    there is no such file (hosts named on the command line), it is `inventories/none.py`, so that a
    missing secret's message still names a place.
    """
    groups = {name for here in topology().hosts.values() for name in here.groups}
    for argument in sys.argv[1:]:
        path = Path(argument)
        if path.suffix == ".py" and path.stem in groups and path.is_file():
            return path
    return Path("inventories/none.py")


def secret_store() -> SecretStore:
    """Where this inventory's secrets come from."""
    if "secrets" not in _made:
        _made["secrets"] = SecretStore.for_inventory(inventory_file(), lab=topology().is_lab)
    return _made["secrets"]


def secret_value(name: str) -> str:
    """The value of a secret. Call it only where the value is written or used.

    Raises:
        SecretError: when there is none; the message says where it was looked for.
    """
    return secret_store().value(name)
