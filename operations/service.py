"""Services: enabled, running, and running what is on disk."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Iterable, Mapping

from pyinfra import host, state
from pyinfra.api import operation
from pyinfra.api.operation import OperationMeta

from facts.units import STAMPS, Unit, UnitFiles, Units
from operations import declared
from operations.files import ports_free
from operations.report import report


@dataclass(frozen=True)
class Service:
    """A unit, and what it reads."""

    unit: str
    """With its suffix: nginx.service."""
    reads: tuple[str, ...] = ()
    """Files and directories (with their entries); the unit's own files are added."""
    reload: bool = False
    """A reload is enough for what it reads."""
    enabled: bool | None = True
    """None leaves it as it is."""
    running: bool | None = True
    """None leaves it as it is: for what systemd's own conditions may keep off."""
    restart: bool = True
    """False: it is reloaded or restarted elsewhere, where it is stale."""
    batch: bool = False
    """A job, which others start: it is neither started nor stopped here, and where it runs that is told."""
    ports: Mapping[int, str] = field(default_factory=dict)
    """TCP port -> where it is set: when the unit does not start, who else has it is told."""


@operation()
def services(services: Iterable[Service], after: Iterable[OperationMeta] = ()):
    """Make units enabled and running, and restart or reload those that are stale.

    A unit is stale when something it reads changed after it started (or was last reloaded): not
    "this run wrote a file", so a run that died half way is made good by the next.

    Args:
        services: the units, in the order in which they are started.
        after: operations of this run that may change what they read; where one will, `--dry` shows
            that this one will too.
    """
    services = list(services)
    found = declared.units({item.unit: item.reads for item in services})
    if not state.is_executing and any(meta.will_change for meta in after):
        yield "true"  # a prediction: the files will change, so the units will be stale
        return
    units = [(item, found.get(item.unit) or Unit()) for item in services]
    # By itself each of these would have systemd read all units again.
    enabling = [command for item, unit in units for command in _enabled(item, unit)]
    yield from enabling
    if enabling or any(_needs_reload(item, unit) for item, unit in units):
        yield "systemctl daemon-reload"
    yield from [command for item, unit in units for command in _running(item, unit)]


def _needs_reload(item: Service, unit: Unit) -> bool:
    """Also before every start: systemd's cache of paths may not know a drop-in that is seconds old,
    and NeedDaemonReload says "no" then (seen with 252)."""
    starts = item.running and not item.batch and (not unit.running or (unit.stale and item.restart))
    return bool(starts or unit.needs_daemon_reload or not unit.loaded)


def _enabled(item: Service, unit: Unit):
    name = shlex.quote(item.unit)
    if item.batch:
        return
    if item.enabled and unit.enabled not in ("enabled", "enabled-runtime", "static", "indirect", "alias"):
        report(f"{item.unit}: enabled")
        yield f"systemctl enable --quiet --no-reload {name}"
    if item.enabled is False and unit.enabled == "enabled":
        report(f"{item.unit}: disabled")
        yield f"systemctl disable --quiet --no-reload {name}"


def _running(item: Service, unit: Unit):
    name = shlex.quote(item.unit)
    if item.batch:
        if unit.running:
            report(f"{item.unit}: runs, and is left alone; its next start takes what is new")
        return
    if item.running is False:
        if unit.running:
            report(f"{item.unit}: stopped")
            yield f"systemctl stop {name}"
    elif item.running is None and not unit.running:
        return
    elif not unit.running:
        report(f"{item.unit}: started")
        yield _or_say_why(f"systemctl restart {name}", item)
    elif unit.stale and item.restart:
        # A unit file's change needs a restart, whatever the daemon can reload.
        verb = "reload" if item.reload and not unit.newest_path.startswith("/etc/systemd/") else "restart"
        report(f"{item.unit}: {verb} ({unit.newest_path} is newer than what runs)")
        stamp = f" && mkdir -p {STAMPS} && touch {STAMPS}/{name}" if verb == "reload" else ""
        yield _or_say_why(f"systemctl {verb} {name}{stamp}", item)


@operation()
def only(pattern: str, units: Iterable[str]):
    """Remove unit files of ours that nobody declares any more.

    What was enabled (a timer, what reports) is stopped. A job that runs ends by itself, with its unit as it is: without
    the file systemd would give it a default's 90 seconds. A run after its end removes it.

    Args:
        pattern: of the names of the units: "training-*".
        units: those that are declared, with their suffixes.
    """
    wanted = set(units)
    gone = [name for name in host.get_fact(UnitFiles, pattern=pattern) or [] if name not in wanted]
    found = (host.get_fact(Units, reads={name: [] for name in gone}) or {}) if gone else {}
    commands = []
    for name in gone:
        unit, quoted = found.get(name) or Unit(), shlex.quote(name)
        # By the word: is-enabled's status calls "static" enabled, too, as a job is that others start.
        enabled = unit.enabled.startswith("enabled")
        if unit.running and not enabled:
            report(f"{name}: is declared no more, and runs: it is left alone, and removed by a run after its end")
            continue
        report(f"{name}: removed, because it is declared no more")
        commands += [f"systemctl disable --quiet --now {quoted}"] if enabled else []
        commands.append(f"rm -f /etc/systemd/system/{quoted}")
    yield from [*commands, "systemctl daemon-reload"] if commands else []


def _or_say_why(command: str, item: Service) -> str:
    """A service that does not start is told by its own last words, and fails the host."""
    unit = shlex.quote(item.unit)
    taken = f"{{ {ports_free(item.unit, item.ports)}; }} >&2; " if item.ports else ""
    return (
        f"systemctl reset-failed {unit} 2>/dev/null; {command} || {{ "
        f"journalctl --no-pager -o cat -n 20 -u {unit} >&2; {taken}exit 1; }}"
    )
