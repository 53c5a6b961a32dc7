"""What pyinfra's command line would let through with exit status 0. Called from config.py."""

from __future__ import annotations

import os
from fnmatch import fnmatch

import click
from pyinfra.api.exceptions import PyinfraError
from pyinfra_cli.inventory import make_inventory


checked = False
"""config.py has been read, which pyinfra does only in its own directory."""


def check(arguments: list[str]) -> None:
    """Refuse --no-wait, and a --limit that matches no host.

    Args:
        arguments: the command line, without the program.
    Raises:
        PyinfraError: with one sentence.
    """
    global checked
    checked = True
    if "--no-wait" in arguments:
        raise PyinfraError("--no-wait is refused: a failure would end with exit status 0")
    if _asks(arguments) and _stdin_is_null():
        raise PyinfraError("there is nobody to ask: add -y to go ahead, or --dry to look")
    limits = _limits(arguments)
    if limits and (inventory := _inventory(arguments)):
        hosts = list(make_inventory(inventory))
        if not any(_matches(host, limit) for host in hosts for limit in limits):
            names = ", ".join(host.name for host in hosts)
            raise PyinfraError(f"--limit {' '.join(limits)} matches none of the hosts: {names}")


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


def _inventory(arguments: list[str]) -> str | None:
    """pyinfra's own parser knows which argument is the inventory."""
    from pyinfra_cli.cli import cli

    try:
        context = cli.make_context("pyinfra", list(arguments), resilient_parsing=True)
    except click.ClickException:
        return None
    return context.params.get("inventory")


def _matches(host, limit: str) -> bool:
    return limit in host.groups or fnmatch(host.name, limit)
