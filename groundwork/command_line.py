"""What pyinfra's command line would let through with exit status 0. Called from config.py."""

from __future__ import annotations

import os
import re
from fnmatch import fnmatch
from pathlib import Path

import click
from pyinfra_cli.inventory import make_inventory

from groundwork.errors import Refusal

checked = False
"""config.py has been read, which pyinfra does only in its own directory."""


def check(arguments: list[str]) -> None:
    """Refuse --no-wait, and a --limit that matches no host.

    Args:
        arguments: the command line, without the program.
    Raises:
        Refusal: with one sentence.
    """
    global checked
    checked = True
    if "--no-wait" in arguments:
        raise Refusal("--no-wait is refused: a failure would end with exit status 0")
    if _asks(arguments) and _stdin_is_null():
        raise Refusal("there is nobody to ask: add -y to go ahead, or --dry to look")
    inventory, operations = words(arguments)
    if inventory.endswith(".py") and not Path(inventory).is_file():
        raise Refusal(f"{inventory}: there is no such inventory file")
    for operation in operations:
        if re.fullmatch(r"tasks/\w+\.py", operation):
            name = Path(operation).stem
            raise Refusal(f"{operation} does nothing by itself: one role alone is tasks.{name}.{name}")
    roles = [operation.split(".")[1] for operation in operations[:1] if operation.startswith("tasks.")]
    limits = _limits(arguments)
    if (limits or roles) and inventory:
        _check_hosts(list(make_inventory(inventory)), limits, roles)


def _check_hosts(hosts: list, limits: list[str], roles: list[str]) -> None:
    names = ", ".join(host.name for host in hosts)
    if limits and not any(_matches(host, limit) for host in hosts for limit in limits):
        raise Refusal(f"--limit {' '.join(limits)} matches none of the hosts: {names}")
    for role in roles:
        if role != "base" and not any(role in host.groups for host in hosts):
            raise Refusal(f"none of the hosts is in the group {role}: {names}")


def _asks(arguments: list[str]) -> bool:
    """Whether pyinfra would show the changes and ask."""
    quiet = {"-y", "--yes", "--dry", "--json", "--debug-operations", "--debug-facts"}
    deploys = any(argument.endswith("deploy.py") or argument.startswith("tasks.") for argument in arguments)
    return deploys and not quiet & set(arguments)


def _stdin_is_null() -> bool:
    try:
        return os.fstat(0).st_rdev == os.stat(os.devnull).st_rdev
    except OSError:  # closed
        return True


def _limits(arguments: list[str]) -> list[str]:
    found = [argument.split("=", 1)[1] for argument in arguments if argument.startswith("--limit=")]
    return found + [after for before, after in zip(arguments, arguments[1:]) if before == "--limit"]


def words(arguments: list[str]) -> tuple[str, list[str]]:
    """Inventory and operations: pyinfra's own parser knows which arguments they are."""
    from pyinfra_cli.cli import cli

    try:
        context = cli.make_context("pyinfra", list(arguments), resilient_parsing=True)
    except click.ClickException:
        return "", []
    return context.params.get("inventory") or "", list(context.params.get("operations") or ())


def _matches(host, limit: str) -> bool:
    return limit in host.groups or fnmatch(host.name, limit)
