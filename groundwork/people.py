"""What people do from their own machine: what fabfile.py's jobs share, and the `.env` of a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from pyinfra_cli.exceptions import UnexpectedExternalError

from groundwork import context, uris
from groundwork.errors import Refusal
from groundwork.secrets import SecretStore, default_inventory, replace
from groundwork.settings import HostSettings
from groundwork import ROOT
from groundwork.topology import PROGRAMS, Here, Topology

CLIENTS = ("app", "training")
"""Roles whose settings say as whom an application logs in to MongoDB, the one that is taken by default first."""
MARK = "# Written by Groundwork (fab env)"
"""How a file of ours begins."""


def inventory(given: str | None) -> Path:
    """The inventory at hand: named, or of GROUNDWORK_INVENTORY, or that of the only secrets/*.age.

    Raises:
        Refusal: where that is no file.
        SecretError: where none is named, and there is not one age file.
    """
    named = given or os.environ.get("GROUNDWORK_INVENTORY")
    path = Path(named) if named else default_inventory()
    found = next((place for place in (path, ROOT / path) if place.is_file()), None)
    if found is None:
        raise Refusal(f"{path}: there is no such inventory file (--inventory, or the variable GROUNDWORK_INVENTORY)")
    return found


def load(path: Path) -> Topology:
    """The topology of an inventory; what the inventory prints goes where it disturbs nobody."""
    try:
        with redirect_stdout(sys.stderr):
            return context.load(path)
    except UnexpectedExternalError as error:
        raise Refusal(f"{path} can't be read: {type(error.exception).__name__}: {error.exception}") from None
    except SyntaxError as error:
        raise Refusal(f"{error.filename}:{error.lineno}: {error.msg}") from None


def store(path: Path) -> SecretStore:
    """The secrets of an inventory."""
    return SecretStore.for_inventory(path, lab=load(path).is_lab)


def tell(sentence: str) -> None:
    """Say something to the person, at once."""
    print(sentence, flush=True)


def number(name: str, given: str | int | None, most: int) -> int | None:
    """A number of the command line, 1 to the most. Raises Refusal."""
    if given is None:
        return None
    if not str(given).isdigit() or not 0 < int(given) <= most:
        raise Refusal(f"{name} {given}: must be a number from 1 to {most}")
    return int(given)


def host_of(topology: Topology, role: str, name: str | None = None) -> Here:
    """The host of a role: the one of that name, or the first.

    Raises:
        Refusal: where there is none.
    """
    if name not in (None, *topology.hosts):
        raise Refusal(f"there is no host {name}: {', '.join(topology.hosts)}")
    if role not in topology.roles:
        raise Refusal(f"{role}: there is no such role: {', '.join(topology.roles)}")
    hosts = topology.with_role(role)
    if not hosts and (other := topology.external(role)):
        raise Refusal(f"{role} is external, at {other.host}: the inventory does not say how to log in there")
    if not hosts:
        raise Refusal(f"no host of the inventory is in the group {role}")
    names = ", ".join(here.name for here in hosts)
    found = next((here for here in hosts if name in (None, here.name)), None)
    if found is None:
        raise Refusal(f"--host {name}: has not the role {role}, which is on {names}")
    return found


class Desk(Here):
    """A person's machine, as one more host that uses the inventory's services.

    Args:
        tunnels: it reaches them by tunnels from its loopback.
        port: the local one of the tunnel to MongoDB, where that is not MongoDB's own.
    """

    def __init__(self, topology: Topology, tunnels: bool, port: int | None):
        super().__init__(topology, "this machine", [], {})
        self.tunnels = tunnels
        self.port = port

    def address_of(self, other: Here) -> str:
        return "127.0.0.1" if self.tunnels else other.settings(HostSettings).public_address or other.private_address

    def settings_of(self, role: str) -> Any:
        settings = super().settings_of(role)
        return settings.model_copy(update={"port": self.port}) if self.tunnels and self.port and role == "mongodb" else settings


# .env


def write_env(
    path: Path, source: Path, topology: Topology, store: SecretStore, role: str | None, tunnels: bool, port: int | None, force: bool
) -> tuple[str, list[str]]:
    """Write what an application needs on a person's machine, for that person alone, at once or not at all.

    Args:
        path: the file.
        source: the inventory's, which the file names.
        role: the program that runs here (app, inference, training); by default that of CLIENTS that is there.
        tunnels, port: see Desk.
        force: take the place of a file that is not ours, or of another inventory.
    Returns:
        Inventory, role and host that it is of; names of the variables.
    Raises:
        Refusal: where that could be committed, or would overwrite somebody's own.
    """
    resolved = source.resolve()
    named = str(resolved.relative_to(ROOT) if resolved.is_relative_to(ROOT) else resolved)
    if os.path.lexists(path) and not force:
        _refuse_others(path, named)
    if not path.parent.is_dir():
        raise Refusal(f"{path}: there is no directory {path.parent}")
    _refuse_tracked(path)
    values = variables(topology, store, role, tunnels, port)
    client = role or _client(topology) or "mongodb"
    whose = f"{named}, {client} of {host_of(topology, client).name}"
    head = f"{MARK} of {whose}: the next one overwrites it. It holds passwords: it is for you alone.\n"
    replace(path, (head + "".join(f"{name}={quoted(value)}\n" for name, value in values.items())).encode())
    return whose, list(values)


def variables(topology: Topology, store: SecretStore, role: str | None, tunnels: bool, port: int | None) -> dict[str, str]:
    """Variables by which an application on a person's machine finds the inventory's services."""
    desk = Desk(topology, tunnels, port)
    client = role or _client(topology)
    if client not in (None, *PROGRAMS):
        raise Refusal(f"--role {client}: is none of {', '.join(PROGRAMS)}")
    settings = host_of(topology, client).settings(topology.roles[client]) if client else None
    if client and client not in CLIENTS:
        return settings.neighbours(desk, store.value)
    user, database = _login(desk, client, settings)
    authority = _authority(desk)
    found = uris.mongodb(desk, user, database, store.value, authority=authority)
    if hasattr(settings, "redis_user"):
        found |= uris.redis(desk, settings.redis_user, settings.redis_database, store.value)
    return found | uris.chromadb(desk)


def _client(topology: Topology) -> str | None:
    """Which of CLIENTS is there, the first."""
    return next((name for name in CLIENTS if topology.with_role(name)), None)


def _login(desk: Desk, client: str | None, settings: Any) -> tuple[str, str]:
    """User and database for MongoDB: the client's, or, where the inventory has none, the first."""
    if not desk.address("mongodb"):
        raise Refusal("no host of the inventory is in the group mongodb, and there is no external of that name")
    _refuse_plain(desk)
    users = desk.settings_of("mongodb").present if desk.peers("mongodb") else []
    user, database = settings.mongodb_login(desk) if client else next(((user.name, user.database) for user in users), ("", ""))
    if not user:
        raise Refusal("mongodb_users has nobody to log in as")
    return user, database


def _refuse_plain(desk: Desk) -> None:
    """A password does not go through the internet as plain text."""
    address, there = desk.address("mongodb"), desk.peers("mongodb")[:1]
    if there and address == there[0].settings(HostSettings).public_address and desk.settings_of("mongodb").tls == "off":
        raise Refusal(f"MongoDB is at the public address {address} of {there[0].name} and speaks no TLS: fab env --tunnel (or set mongodb_tls)")


def _authority(desk: Desk) -> str:
    """Where this machine has the authority that MongoDB's certificate is judged by."""
    path = desk.settings_of("mongodb").tls_authority if desk.peers("mongodb") else None
    return str((ROOT / path).resolve()) if path else ""


def quoted(value: str) -> str:
    """A value in single quotes: python-dotenv, systemd's EnvironmentFile and a shell read it alike.

    Raises:
        Refusal: for a character that they do not.
    """
    if set(value) & set("'\\\n\r\0") or "${" in value:
        raise Refusal("a value has a quote, a backslash or a line break, which no .env carries unharmed (an external's name? a path?)")
    return f"'{value}'"


def _refuse_others(path: Path, inventory: str) -> None:
    """Refuse a file that is not ours, or of another inventory."""
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            first = lines.readline()
    except OSError:  # a directory, a link that leads nowhere, somebody else's
        first = ""
    ways = "move it away, name another with --file, or say --force"
    if not first.startswith(MARK):
        raise Refusal(f"{path}: is there, and not written by fab env: {ways}")
    if not first.startswith(f"{MARK} of {inventory}, "):
        raise Refusal(f"{path}: is there, and of another inventory than {inventory} (its first line says which): {ways}")


def _refuse_tracked(path: Path) -> None:
    """Refuse a file that one `git add` would give to everybody."""
    try:
        inside = _git(path, "rev-parse", "--show-toplevel")
    except FileNotFoundError:
        return
    if inside.returncode:  # no repository
        return
    if _git(path, "check-ignore", "--quiet", path.name).returncode:
        top = inside.stdout.strip()
        raise Refusal(f"{path}: git would take it into {top}: add the line {path.name} to {top}/.gitignore (git rm --cached it, if it is there)")


def _git(path: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["git", "-C", str(path.parent), *arguments], capture_output=True, text=True, check=False)
