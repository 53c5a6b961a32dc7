"""The roles, in the order of deploy.py, and the form that they share."""

from __future__ import annotations

import importlib
from functools import cache, wraps
from typing import TYPE_CHECKING, Callable

from pyinfra.api.deploy import deploy

if TYPE_CHECKING:
    from groundwork.settings import RoleSettings

ORDER = ("base", "link", "gpu", "docker", "mongodb", "redis", "chromadb", "app", "inference", "training", "nginx")


@cache
def all_roles() -> dict[str, type[RoleSettings]]:
    """Role name -> its Settings class, in the order in which a host is set up."""
    return {name: importlib.import_module(f"tasks.{name}").Settings for name in ORDER}


def role(settings: type[RoleSettings], title: str) -> Callable[[Callable], Callable]:
    """Make a function the deploy of a role.

    It is called with the checked settings and the topology as the host sees it, on hosts that carry
    the role; on others it does nothing. Called alone (`pyinfra INVENTORY tasks.nginx.nginx`) it
    runs the same checks as deploy.py.

    Args:
        settings: the role's Settings.
        title: how the role is called in the run's output.
    """

    def decorate(function: Callable) -> Callable:
        @deploy(title)
        @wraps(function)
        def run() -> None:
            from groundwork.context import current
            from groundwork.preflight import preflight
            from operations.lock import lock

            preflight()
            here = current()
            if settings.role in here.roles:
                lock()
                function(here.settings(settings), here)

        return run

    return decorate
