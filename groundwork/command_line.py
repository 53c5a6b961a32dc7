"""What pyinfra's command line would let through with exit status 0. Called from config.py."""

from __future__ import annotations

import ast
import os
import re
import signal
import sys
import traceback
from fnmatch import fnmatch
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, Callable

import click
from pyinfra.api import Host, Inventory
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.state import StateStage
from pyinfra.context import ctx_state
from pyinfra_cli import cli
from pyinfra_cli import inventory as inventories
from pyinfra_cli.exceptions import UnexpectedExternalError
from pyinfra_cli.inventory import make_inventory

from groundwork import ROOT, connections
from groundwork.errors import Refusal
from groundwork.roles import ORDER

checked = False
"""config.py has been read, which pyinfra does only in its own directory."""


NOT_READ = f"config.py was not read: run pyinfra in the repository's root: cd {ROOT} (and then pyinfra inventories/NAME.py deploy.py)"

PASSWORDS = {
    "--use-sudo-password": 'pyinfra 3.10 does nothing with it; set sudo_password = Secret("sudo/NAME")',
    "--same-sudo-password": 'the host\'s process list would show the password; set sudo_password = Secret("sudo/NAME")',
}


def check(arguments: list[str]) -> None:
    """Refuse what would end with exit status 0 and no work done, and what is wrong without a connection.

    Args:
        arguments: the command line, without the program.
    Raises:
        Refusal: with what to put right.
    """
    global checked
    checked = True
    signal.signal(signal.SIGINT, _interrupted)
    cli._do_confirm = _confirm
    inventories._get_groups_from_filename = _groups
    cli.make_inventory = _inventory
    if "--no-wait" in arguments:
        raise Refusal("--no-wait is refused: a failure would end with exit status 0")
    if "--serial" in arguments:
        raise Refusal("--serial is refused: a host would go past the stages alone; --limit HOST is one host by itself")
    if passwords := [name for name in PASSWORDS if name in arguments]:
        raise Refusal(f"{passwords[0]} is refused: {PASSWORDS[passwords[0]]}")
    inventory, operations = words(arguments)
    if inventory.endswith(".py") and not Path(inventory).is_file():
        raise Refusal(f"{inventory}: there is no such inventory file")
    for operation in operations:
        if re.fullmatch(r"tasks/\w+\.py", operation):
            name = Path(operation).stem
            raise Refusal(f"{operation} does nothing by itself: one role alone is tasks.{name}.{name}")
    roles = [operation.split(".")[1] for operation in operations[:1] if operation.startswith("tasks.")]
    limits = _limits(arguments)
    deploys = any(_deploys(operation) for operation in operations)
    if inventory and (limits or deploys):
        hosts = _hosts(arguments, inventory)
        _check_hosts(hosts, limits, roles)
        if deploys:
            connections.meanwhile[:] = _steps(hosts)
    if _asks(arguments) and _stdin_is_null():
        raise Refusal("there is nobody to ask: add -y to go ahead, or --dry to look")


def _steps(hosts: list[Host]) -> list[Callable[[], object]]:
    """What can be known without a connection: the modules for it, one by one, and then the checks."""
    modules = ("pydantic.main", "groundwork.settings", "groundwork.preflight", *(f"tasks.{role}" for role in ORDER))
    check = "groundwork.preflight"
    return [*(partial(import_module, name) for name in modules), lambda: import_module(check).before_connecting(hosts)]


def refuse_elsewhere() -> None:
    """Refuse a deploy of ours that was started in another directory, where pyinfra does not read config.py.

    Called from group data, which is read in any case.

    Raises:
        Refusal: with the directory.
    """
    ours = any(word.startswith("tasks.") or Path(word).resolve() == ROOT / "deploy.py" for word in sys.argv[1:])
    if ours and not checked:
        raise Refusal(f"{NOT_READ}; nothing was changed")


def _interrupted(signum, frame) -> None:
    """Ctrl-C, which pyinfra lets end with 0."""
    said = "nothing was changed"
    if ctx_state.isset() and ctx_state.get().current_stage >= StateStage.Execute:
        said = (
            "the hosts are half done, and the next run finishes them: run it again. What was changed of firewall, sshd, "
            "keys or sudo and is not confirmed yet is put back by the host within base_confirm_seconds"
        )
    click.echo(f"\n--> Interrupted: {said}", err=True)
    sys.exit(128 + signum)


def _confirm(message: str) -> bool:
    """pyinfra's question, where another answer than Enter ends with 0, and none at all in a traceback."""
    try:
        if _pyinfras_confirm(message):
            return True
    except EOFError:
        raise Refusal("there was no answer, and nothing was changed: -y goes ahead without asking") from None
    raise Refusal("nothing was changed: Enter alone goes ahead")


_pyinfras_confirm = cli._do_confirm


def _deploys(operation: str) -> bool:
    return operation.endswith(".py") or operation.startswith("tasks.")


def _hosts(arguments: list[str], inventory: str) -> list[Host]:
    """The inventory's hosts, with what the command line says of them, as pyinfra will have them."""
    given = _parsed(*arguments)
    words = list(given.get("data") or ())
    if wrong := [word for word in words if "=" not in word]:
        raise Refusal(f"--data {wrong[0]}: say it as KEY=VALUE")
    login = [given.get(f"ssh_{name}") for name in ("user", "key", "key_password", "port", "password")]
    try:
        data = cli._set_override_data(words, *login)
        named = {"cwd": ctx_state.get().cwd if ctx_state.isset() else None, "override_data": data, "group_data_directories": given.get("group_data")}
        _read[:] = [((inventory,), named, make_inventory(inventory, **named))]
        return list(_read[0][-1])
    except UnexpectedExternalError as error:
        raise _unreadable(error.exception, Path(inventory).parent) from None
    except (PyinfraError, SyntaxError) as error:
        raise _unreadable(error, Path(inventory).parent) from None


_read: list[tuple[tuple, dict, Inventory]] = []


def _inventory(*words, **named) -> Inventory:
    """make_inventory, in its place: what `check` has read this moment is not read again."""
    if _read and _read[0][:2] == (words, named):
        return _read.pop()[-1]
    return make_inventory(*words, **named)


def _groups(file: str) -> dict[str, Any]:
    """The groups of an inventory file, as pyinfra reads it, but for hosts that are not what was meant.

    Raises:
        Refusal: for two hosts of one name, of which pyinfra would make one; for a tuple that is no group.
    """
    groups = _pyinfras_groups(file)
    declared: dict[str, dict[str, Any]] = {}
    for name, hosts in groups.items():
        hosts = hosts[0] if isinstance(hosts, tuple) else hosts
        if isinstance(hosts, str):
            letters = ", ".join(map(repr, hosts[:3]))
            raise Refusal(
                f"{_named(file, name)}: pyinfra would read {name!r} as a group with the hosts {letters}…: a host by itself "
                f"starts with an underscore (_{name}), and a group is a list ({name} = [_host])"
            )
        pairs = [item for item in hosts if isinstance(item, tuple)]
        if not all(len(item) == 2 and isinstance(item[1], dict) for item in pairs):
            raise Refusal(f"{_named(file, name)}: {name}: a host is its name, or a pair of its name and a dict with its data")
        for host, data in pairs:
            known = declared.setdefault(host, {})
            if any(known.setdefault(key, value) != value for key, value in data.items()):  # pyinfra joins what does not clash
                raise Refusal(
                    f"{_named(file, host)}: two hosts are called {host}, and pyinfra would make one of them: give one another "
                    "name (a host that is in several groups is declared once, with all its data)"
                )
    return groups


_pyinfras_groups = inventories._get_groups_from_filename


def _named(file: str, name: str) -> str:
    """`file:lines` where a host is named, or a variable is set."""
    nodes = [node for node in ast.walk(ast.parse(Path(file).read_text())) if not isinstance(getattr(node, "ctx", None), ast.Load)]
    lines = [node.lineno for node in nodes if name in (getattr(node, "value", None), getattr(node, "id", None))]
    return f"{file}:{','.join(map(str, dict.fromkeys(lines)))}" if lines else file


def _unreadable(error: Exception, directory: Path) -> Refusal:
    """What is wrong with a file of the inventory that is no Python, or that raises an error.

    Args:
        directory: where the inventory is, and below it its group data.
    """
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError):
        frames.append((error.filename or "", error.lineno))
    inside = [f"{file}:{line}: " for file, line in frames if Path(file).resolve().is_relative_to(directory.resolve())]
    place = inside[-1] if inside else ""
    kind = "" if isinstance(error, PyinfraError) else f"{type(error).__name__}: "
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    return Refusal(f"{place}{kind}{message}; nothing was changed")


def _check_hosts(hosts: list, limits: list[str], roles: list[str]) -> None:
    names = ", ".join(host.name for host in hosts)
    if not hosts:
        raise Refusal("the inventory has no hosts: nothing would be done")
    for limit in limits:
        if not any(_matches(host, limit) for host in hosts):
            raise Refusal(f"--limit {limit} matches none of the hosts: {names}")
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
    """Inventory and operations."""
    given = _parsed(*arguments)
    return given.get("inventory") or "", list(given.get("operations") or ())


@cache
def _parsed(*arguments: str) -> dict[str, Any]:
    """The command line, by pyinfra's own parser; empty where it will be refused."""
    try:
        return cli.cli.make_context("pyinfra", list(arguments), resilient_parsing=True).params
    except click.ClickException:
        return {}


def _matches(host, limit: str) -> bool:
    return limit in host.groups or fnmatch(host.name, limit)
