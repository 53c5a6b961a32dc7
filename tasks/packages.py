"""Packages: those of all roles of a host in one transaction, which is what most of a first run is spent in."""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from groundwork.context import current
from groundwork.settings import RoleSettings
from groundwork.topology import Here
from operations import apt, firewall, uv, wait
from operations.repository import repositories


@deploy("All roles")
def packages() -> None:
    """The repositories and packages of all roles of the host, at once.

    Not the GPU's driver: which one is for the kernel that runs, its role finds out.
    """
    here = current()
    _install([here.settings(here.topology.roles[role]) for role in here.roles], here)
    here.equipped = True


def install(settings: RoleSettings, here: Here) -> None:
    """The repositories and packages of a role that is applied alone; in a full run they are there by now."""
    if not here.equipped:
        _install([settings], here)


def _install(roles: list[RoleSettings], here: Here) -> None:
    """All repositories first, so that the lists are fetched once; then one transaction."""
    base = next((settings for settings in roles if settings.role == "base"), None)
    if base:
        wait.first_boot(name="First boot", booting=bool(here.machine and here.machine.booting))
        firewall.way_in(name="Way in", networks=base.ssh_networks(here), port=base.ssh_port)
    theirs = {settings.role: wanted for settings in roles if (wanted := settings.repositories(here))}
    if theirs:
        repositories(name="Repositories", wanted=theirs, found=here.found)
    if here.found is not None and (environments := [given for settings in roles if (given := settings.python_environment())]):
        uv.begin(name="Environments", environments=environments)
    wanted = [(settings, settings.installs(here)) for settings in roles]
    present: dict[str, str | None] = {}
    for _, packages in wanted:
        # One role may ask for any version of what another wants in one.
        present |= {name: version or present.get(name) for name, version in packages.items()}
    apt.packages(
        name="Packages",
        present=present,
        held=[name for settings in roles for name in settings.holds],
        upgrade_once=bool(base and base.first_run_upgrade),
        setting=" or ".join(f"{settings.role}_version" for settings, packages in wanted if any(packages.values())),
    )
