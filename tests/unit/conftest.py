"""What the unit tests share: a host that exists only as inventory data."""

from __future__ import annotations

from typing import Any, Callable

# First: it has gevent change ssl and sockets, which must come before botocore reads them.
import pyinfra_cli  # noqa: F401, I001
import pytest

from groundwork.roles import all_roles
from groundwork.topology import Here, Machine, Topology

SYSTEMS = [("ubuntu", "jammy"), ("ubuntu", "noble"), ("debian", "bookworm"), ("debian", "trixie")]
"""What is supported."""


def machine(codename: str = "bookworm", **changed: Any) -> Machine:
    """A machine of 2 GiB and 2 cores."""
    distribution = {code: name for name, code in SYSTEMS}[codename]
    values = {"architecture": "amd64", "memory": 2048, "cores": 2, **changed}
    return Machine(distribution, codename, **values)


def make_topology(hosts: dict[str, tuple[list[str], dict[str, Any]]], codename: str = "bookworm") -> Topology:
    """A topology from {name: (groups, data)}; addresses are given where the data has none."""
    complete = {
        name: (groups, {"private_address": f"10.0.0.{number}", **data})
        for number, (name, (groups, data)) in enumerate(hosts.items(), start=1)
    }
    topology = Topology(complete, all_roles())
    for here in topology.hosts.values():
        here.machine = machine(codename)
    return topology


@pytest.fixture
def make_here() -> Callable[..., Here]:
    """`make_here(["redis"], codename="noble", redis_port=6380)`: one host with those roles and data."""

    def make(groups: list[str], codename: str = "bookworm", **data: Any) -> Here:
        return make_topology({"one": (groups, data)}, codename).hosts["one"]

    return make
