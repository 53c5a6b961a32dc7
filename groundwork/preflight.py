"""Everything that can be known to be wrong before a host is touched, said at once."""

from __future__ import annotations

import ast
import difflib
import os
import re
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Iterable

import gevent
from gevent.lock import Semaphore
from jinja2 import TemplateError
from paramiko import SSHException
from pyinfra import inventory, logger
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.host import Host
from pyinfra.connectors.fake import FakeConnectorData
from pyinfra.connectors.ssh import ConnectorData
from pyinfra.connectors.ssh_util import load_key_with_certificate
from pyinfra.context import ctx_host

from groundwork import command_line, connections, context, logins
from groundwork.errors import Refusal
from groundwork.rows import File
from groundwork.settings import ConnectionSettings, HostSettings, RoleSettings, is_address, key, keys
from groundwork.takeover import new_roles, sentences
from groundwork.templates import render
from groundwork.topology import Here, SettingsError, Topology, UnknownSource
from operations import takeover as takeover_operations

SUPPORTED = {
    "ubuntu": ("jammy", "noble"),
    "debian": ("bookworm", "trixie"),
}
DISK_FIRST = 3072
"""MiB free on / for the first run: all roles together took 1.9 GiB on a bookworm lab host."""
DISK_LATER = 256
"""MiB free on / for every later run: room for an update, not for the stack again."""

_once = Semaphore()
_outcome: dict[str, list[str]] = {}
_checked: list[Topology] = []
"""What was found right before connecting."""


def preflight() -> None:
    """Check settings, topology, secrets, templates and hosts; all hosts at once, once per run.

    Raises:
        Refusal: with every error found, one a line. Nothing has been changed then.
    """
    with _once:
        if "errors" not in _outcome:
            _outcome["errors"] = _errors()
    if _outcome["errors"]:
        raise Refusal(_text(_outcome["errors"]))


def forget() -> None:
    """Forget the outcome: for tests, which check many inventories in one process."""
    _outcome.clear()
    _checked.clear()
    context.forget()


def _text(errors: list[str]) -> str:
    count = f"{len(errors)} thing{'s' * (len(errors) > 1)} to put right, nothing was changed:"
    return "\n".join([count, *(f"  - {error}" for error in errors)])


def before_connecting(hosts: Iterable[Host]) -> None:
    """Check what can be known without a connection, all hosts at once.

    Raises:
        Refusal: with every error found, one a line.
    """
    topology = context.use(hosts)
    errors = _first(*_said_errors(topology), _key_errors(topology), _template_errors(topology.hosts.values()))
    if errors:
        raise Refusal(_text(errors))
    _checked.append(topology)


def _errors() -> list[str]:
    if not command_line.checked:
        return [command_line.NOT_READ]
    # The hosts as this run has them: an inventory that asks a cloud may have answered differently before.
    topology = context.use(inventory)
    active = [topology.hosts[item.name] for item in inventory.get_active_hosts()]
    known = () if topology in _checked else _said_errors(topology)
    return _first(*known, _machine_errors(topology), _found_errors(topology), _template_errors(active))


def _said_errors(topology: Topology) -> list[Iterable[str]]:
    """What is wrong with what the inventory and its secrets say."""
    return [setting_errors(topology, context.inventory_file()), _missing_secrets(topology), _secret_errors(topology)]


def _first(*rounds: Iterable[str]) -> list[str]:
    """Errors of the first round that finds any: they would only make noise in the next."""
    return next((errors for errors in map(list, map(dict.fromkeys, rounds)) if errors), [])


# Settings


def setting_errors(topology: Topology, source: Path = Path("inventory")) -> Iterable[str]:
    """What is wrong with the inventory's settings, with no host asked.

    Args:
        source: the inventory's file; pyinfra makes a group of its name.
    """
    known = _known_keys(topology)
    for here in topology.hosts.values():
        groups = [group for group in here.groups if group in topology.roles]
        if not groups and "base" not in here.groups:
            yield f"{here.name}: is in no role's group ({', '.join(topology.roles)})"
        for name in here.data:
            if name not in known and not name.startswith("_"):
                yield f"{_where(here, name)}: unknown key{_nearest(name, known)}"
        for name in logins.leaked_password(here.data):
            yield f'{_where(here, name)}: is refused, because it would be in the inventory: sudo_password = Secret("sudo/NAME")'
    yield from _group_errors(topology, source)
    for here in topology.hosts.values():
        yield from _refused(here)
    yield from _known(_address_errors(topology))
    yield from _combination_errors(topology.hosts.values())


def _known(errors: Iterable[str]) -> Iterable[str]:
    """Errors, up to the one that needs a setting that is itself refused: that was said already."""
    with suppress(SettingsError):
        yield from errors


def _group_errors(topology: Topology, source: Path) -> Iterable[str]:
    """A group that is nearly a role's: its hosts would quietly go without the role."""
    groups = {group for here in topology.hosts.values() for group in here.groups}
    for group in sorted(groups - set(topology.roles) - {source.stem, "all"}):
        for close in difflib.get_close_matches(group, topology.roles, n=1, cutoff=0.75):
            yield f"{source}: group {group}: is no role; did you mean {close}?"


def _address_errors(topology: Topology) -> Iterable[str]:
    owners: dict[tuple[str, str], list[str]] = {}
    for here in topology.hosts.values():
        owners.setdefault((here.site, here.private_address), []).append(here.name)
    for (_, address), names in owners.items():
        if len(names) > 1:
            yield (
                f"private_address: {' and '.join(names)} have the same, {address}"
                + (" (a group is a list: redis = [_host])" if any(len(name) == 1 for name in names) else "")
            )


def _known_keys(topology: Topology) -> set[str]:
    known = {*ConnectorData.__annotations__, *FakeConnectorData.__annotations__, *keys(HostSettings)}
    for settings in topology.roles.values():
        known |= set(keys(settings))
    return known


def _nearest(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else "; docs/settings.md lists what can be set"


def _refused(here: Here) -> Iterable[str]:
    for settings in (HostSettings, ConnectionSettings, *(here.topology.roles[role] for role in here.roles)):
        try:
            here.settings(settings)
        except SettingsError as error:
            for sentence in error.errors:
                name = sentence.split(" ")[0].split("[")[0].rstrip(":")
                yield f"{_where(here, name, short=True)}{sentence}"


def _combination_errors(hosts: Iterable[Here]) -> Iterable[str]:
    """What is wrong with settings that are right one by one; what several hosts share is said once."""
    found: dict[str, list[str]] = {}
    for here in hosts:
        for sentence in dict.fromkeys(_combined(here)):
            found.setdefault(f"{_where_said(here, sentence)}{sentence}", []).append(here.name)
    for sentence, names in found.items():
        yield f"{sentence} (on {', '.join(names)})"


def _combined(here: Here) -> Iterable[str]:
    yield from _known(_host_errors(here))
    yield from _known(_way_errors(here))
    for role in here.roles:
        yield from _known(_role_errors(here, here.topology.roles[role]))
    yield from _known(_port_errors(here))


def _role_errors(here: Here, role: type[RoleSettings]) -> Iterable[str]:
    settings = here.settings(role)
    for flow in settings.flows():
        yield from _source_errors(here, _naming(settings, flow.source), flow.source)
    yield from settings.errors(here)
    yield from _memory_errors(here, settings)


def _port_errors(here: Here) -> Iterable[str]:
    """A port that two roles of one host want: the ports that a role takes are those of its own flows."""
    takers: dict[tuple[int, str], dict[str, None]] = {}
    for role in here.roles:
        for flow in here.settings(here.topology.roles[role]).flows():
            if flow.role == role:
                takers.setdefault((flow.port, flow.protocol), {})[role] = None
    for (port, _), roles in takers.items():
        if len(roles) > 1:
            yield f"port {port} is wanted by {' and '.join(roles)}: give one of them another"


def _host_errors(here: Here) -> Iterable[str]:
    """What is wrong with the settings that belong to no single role."""
    settings = here.settings(HostSettings)
    if not is_address(here.private_address):
        yield (
            f"private_address is not set, and {here.private_address!r} is not an address: set private_address "
            "in the inventory to the IP that the other hosts use"
        )
    roles = ", ".join(here.topology.roles)
    yield from (f"take_over: {name!r} is none of {roles}" for name in settings.take_over if name not in here.topology.roles)
    for item in settings.flows:
        if item.role not in here.topology.roles:
            yield f"flows: role {item.role!r} is none of {roles}"
        yield from _source_errors(here, "flows", item.source)


DATA = ("mongodb", "chromadb")
"""Roles without which their clients are nothing. (A cache, or an inference, of another site may well be out of reach.)"""


def _way_errors(here: Here) -> Iterable[str]:
    """A store of the inventory that this host's roles use, and nothing leads to, or that is stopped."""
    yield from _stopped_errors(here)
    flows = {flow for other in here.topology.hosts.values() for role in other.roles for flow in other.settings(here.topology.roles[role]).flows()}
    for role in sorted({flow.role for flow in flows if flow.source in here.roles and flow.nearest}):
        there = here.topology.with_role(role)
        if here.peers(role):
            yield from _open_road_errors(here, here.peers(role)[0], role)
        elif role not in DATA or here.address(role):
            continue
        elif there:
            where = ", ".join(f"{other.name} (site {other.site!r})" for other in there)
            dumb = here.link_address and any(other.link_address for other in there)
            mend = "one of the two needs link_endpoint" if dumb else "put both into the group link (docs/link.md), or set public_address there"
            yield f"site: {here.name} is at {here.site!r} and finds no way to {role} on {where}: {mend}"


def _stopped_errors(here: Here) -> Iterable[str]:
    stopped = {role for other in here.topology.hosts.values() for role in other.settings(HostSettings).stopped}
    for role in stopped.intersection(DATA):
        clients = {flow.source for flow in here.topology.roles[role]().flows()}
        if clients.intersection(here.roles) and not here.topology.with_role(role) and not here.topology.external(role):
            yield f"{role}: its host is stopped, and {here.name} would be deployed without it: start it, or take {role} off its tag role"


def _open_road_errors(here: Here, there: Here, role: str) -> Iterable[str]:
    """A service that is reached across the internet, and not by TLS."""
    if here.is_private_to(there) or getattr(there.settings(here.topology.roles[role]), "tls", "off") != "off":
        return
    linked = here.link_address and there.link_address
    mend = "one of the two needs link_endpoint, for the link to join them" if linked else "put both into the group link (docs/link.md)"
    tls = ', or set mongodb_tls = "provided" (docs/mongodb.md)' if role == "mongodb" else ""
    yield (
        f"public_address: {here.name} would reach {role} on {there.name} across the internet, where all on the way could read it: "
        f"{mend}{tls}"
    )


def _source_errors(here: Here, name: str, source: str) -> Iterable[str]:
    """Whether anybody knows a flow's source, which the setting of that name has."""
    try:
        here.networks_of(source)
    except UnknownSource as error:
        yield f"{name}: {error}"


def _naming(settings: RoleSettings, source: str) -> str:
    """The setting that names a flow's source, such as base_ssh_sources; the role where none does."""
    lists = (field for field, value in settings if isinstance(value, list) and source in value)
    return next((key(type(settings), field) for field in lists), settings.role)


def _memory_errors(here: Here, settings: RoleSettings) -> Iterable[str]:
    if not settings.memory_weight:
        return
    share = here.memory_share(settings.role)
    if share < settings.memory_minimum:
        yield (
            f"{here.memory} MiB of memory leave {share} MiB for {settings.role}, which needs "
            f"{settings.memory_minimum}: move a role to another host, or take a larger one (hardware_memory "
            "overrides what the host reports)"
        )


def _where(here: Here, name: str, short: bool = False) -> str:
    """Where a key's value comes from: the file and line, or the command line."""
    given = (f"--data {name}=" in " ".join(sys.argv)) or any(
        argument.startswith(f"{name}=") for argument in sys.argv
    )
    place = f"--data {name}" if given else _place(here, name)
    if short:
        return f"{place}: " if place else f"{here.name}: "
    return place and f"{place}: {name}" or f"{here.name}: {name}"


def _where_said(here: Here, sentence: str) -> str:
    """Where the key that a sentence starts with is set; nothing where it starts with none, or with one not set."""
    name = re.split(r"[^a-z0-9_]", sentence, maxsplit=1)[0]
    return _where(here, name, short=True) if name in here.data else ""


def _place(here: Here, name: str) -> str | None:
    """`file:line` of the assignment to a key that counts for this host, by reading the files."""
    source = context.inventory_file()
    own = source.is_file() and _line_in_inventory(source, here.name, name)
    if own:
        return f"{source}:{own}"
    for group in [*reversed(here.groups), "all"]:
        path = source.parent / "group_data" / f"{group}.py"
        line = path.is_file() and _line_assigned(path, name)
        if line:
            return f"{path}:{line}"
    anywhere = source.is_file() and _line_in_inventory(source, None, name)
    return f"{source}:{anywhere}" if anywhere else None


def _line_assigned(path: Path, name: str) -> int | None:
    """Line of the last assignment to a name at a file's top level: that is the one that counts."""
    lines = []
    for node in ast.parse(path.read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            lines.append(node.lineno)
    return lines[-1] if lines else None


def _line_in_inventory(path: Path, host: str | None, name: str) -> int | None:
    """Line of a key in an inventory: in the statement that names the host, or in any."""
    for statement in ast.parse(path.read_text()).body:
        nodes = list(ast.walk(statement))
        if host is None or any(isinstance(node, ast.Constant) and node.value == host for node in nodes):
            for node in nodes:
                if isinstance(node, ast.keyword) and node.arg == name:
                    return node.value.lineno
                if isinstance(node, ast.Constant) and node.value == name:
                    return node.lineno
    return None


def _key_errors(topology: Topology) -> Iterable[str]:
    """SSH keys that can't be read: pyinfra would show a traceback."""
    for here in topology.hosts.values():
        if not (path := here.data.get("ssh_key")):
            continue
        try:
            load_key_with_certificate(path, here.data.get("ssh_key_password"), cwd=os.getcwd(), allow_prompt=False)
        except (PyinfraError, OSError) as error:
            if "encrypted" not in str(error):  # pyinfra will ask
                wrong = "there is no such file" if "No such" in str(error) else "is no private key that can be read"
                lab = "; `python -m lab up` makes the lab's" if here.data.get("lab_suite") else ""
                yield f"{_where(here, 'ssh_key')} = {path!r}: {wrong}{lab}"


# Secrets


def _missing_secrets(topology: Topology) -> Iterable[str]:
    for message in context.secret_store().missing(topology.secret_names(), topology.random_secrets()):
        yield f"secret: {message}"


def _secret_errors(topology: Topology) -> Iterable[str]:
    """What is wrong with values, as far as a role can tell."""
    found: dict[str, list[str]] = {}
    for here in topology.hosts.values():
        for role in here.roles:
            for sentence in here.settings(topology.roles[role]).secret_errors(here, context.secret_value):
                found.setdefault(sentence, []).append(here.name)
    for sentence, names in found.items():
        yield f"{sentence} (on {', '.join(names)})"


# Hosts: asked, not changed


def _machine_errors(topology: Topology) -> Iterable[str]:
    problems: dict[str, str | None] = {}

    def ask(item) -> None:
        here = topology.hosts[item.name]
        secret = here.settings(HostSettings).sudo_password
        connections.bound(item, here.settings(HostSettings).connection_seconds)
        with ctx_host.use(item):
            problems[item.name] = logins.ask_machine(item, here, secret and context.secret_value(secret.name))

    gevent.joinall([gevent.spawn(ask, item) for item in inventory.get_active_hosts()])
    for item in inventory.get_active_hosts():
        here = topology.hosts[item.name]
        if here.machine is None:
            yield problems.get(item.name) or f"{here.name}: can't be asked what it is"
            continue
        machine = here.machine
        if machine.codename not in SUPPORTED.get(machine.distribution, ()):
            supported = ", ".join(f"{name} {series}" for name in SUPPORTED for series in SUPPORTED[name])
            yield f"{here.name}: {machine.distribution} {machine.codename} is not supported: {supported}"
        needed = DISK_LATER if machine.known else DISK_FIRST
        if machine.disk_free < needed:
            yield f"{here.name}: {machine.disk_free} MiB free on /, {needed} are needed"
    yield from _combination_errors(here for here in topology.hosts.values() if here.machine)


def _found_errors(topology: Topology) -> Iterable[str]:
    """What is on hosts that are not bare, and in the way of roles that are new to them."""
    problems: dict[str, str] = {}

    def ask(item, roles: list[str]) -> None:
        with ctx_host.use(item):
            try:
                topology.hosts[item.name].found = takeover_operations.ask(roles)
            except (PyinfraError, SSHException, OSError, EOFError) as error:
                problems[item.name] = f"{item.name}: {error or type(error).__name__}"

    new = {item: new_roles(topology.hosts[item.name]) for item in inventory.get_active_hosts()}
    # Whatever else goes wrong ends the run: a host that was not asked would count as one where nothing is in the way.
    gevent.joinall([gevent.spawn(ask, item, roles) for item, roles in new.items() if roles], raise_error=True)
    yield from problems.values()
    for item in new:
        here = topology.hosts[item.name]
        if here.found is not None:
            notes, errors = sentences(here, here.found)
            for note in notes:
                logger.info(f"  Found: {note}")
            yield from errors


# Templates


def _template_errors(hosts: Iterable[Here]) -> Iterable[str]:
    for here in hosts:
        for role in here.roles:
            yield from render_errors(here, here.settings(here.topology.roles[role]))


def render_errors(here: Here, settings: RoleSettings) -> Iterable[str]:
    """What is wrong with a role's templates on a host; no secret is resolved."""
    for row in settings.files(here):
        if not isinstance(row, File):
            continue
        try:
            render(row, settings, here, secret=lambda name: "checked-before-it-lands")
        except (TemplateError, OSError, ValueError) as error:
            source = f"templates/{row.template}" if row.template else f"files/{row.source}"
            yield f"{source}{_template_line(error, source)}: {error} (for {row.path} on {here.name})"


def _template_line(error: Exception, source: str) -> str:
    """`:line` of a template that is wrong; where a name is, the traceback tells."""
    frames = traceback.extract_tb(error.__traceback__)
    line = getattr(error, "lineno", None) or next((f.lineno for f in reversed(frames) if f.filename.endswith(source)), None)
    return f":{line}" if line else ""
