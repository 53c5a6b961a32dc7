"""systemd units: many, in one question."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Mapping

from pyinfra.api import FactBase

STAMPS = "/run/groundwork"
"""A unit's stamp is touched after a reload that worked; /run is empty after a boot."""


@dataclass
class Unit:
    """What systemd says of a unit, and how old it is against what it reads."""

    loaded: bool = False
    active: str = "inactive"
    enabled: str = ""
    needs_daemon_reload: bool = False
    started: float = 0.0
    """Seconds since the epoch of the start, or of the last reload that worked."""
    newest: float = 0.0
    """Latest change (ctime) of what the unit reads: a package's files keep an old mtime."""
    newest_path: str = ""

    @property
    def running(self) -> bool:
        return self.active in ("active", "reloading", "activating")

    @property
    def stale(self) -> bool:
        return self.newest > self.started


class Units(FactBase):
    """State and staleness of units: {unit: Unit}.

    Args of the command:
        reads: unit -> paths that it reads. A directory counts with its entries, not deeper.
    """

    default = dict

    def command(self, reads: Mapping[str, list[str]]) -> str:
        script = []
        for unit, paths in reads.items():
            name = shlex.quote(unit)
            quoted = " ".join(shlex.quote(path) for path in paths)
            script.append(
                f"echo 'U|{unit}'; systemctl show --timestamp=us+utc {name} "
                "-p LoadState,ActiveState,UnitFileState,NeedDaemonReload,ActiveEnterTimestamp; "
                f"stat -c 'stamp=%.Y' {STAMPS}/{name} 2>/dev/null; "
                "fragment=$(systemctl show -P FragmentPath {0}); dropins=$(systemctl show -P DropInPaths {0}); "
                # A link counts itself (it may be flipped to what is older) and what it names.
                "{{ find -P {1} -maxdepth 0 -type l -printf 'newest=%C@ %p\\n'; "
                # Our drop-ins by their path too: systemd may not know of them yet.
                # What generators write is as old as the last daemon-reload, and says nothing.
                "find -H {1} $fragment $dropins /etc/systemd/system/{0}.d -maxdepth 1 -not -path '/run/systemd/generator*' "
                "-printf 'newest=%C@ %p\\n'; }} 2>/dev/null "
                "| sort -t= -k2 -n | tail -n 1".format(name, quoted)
            )
        return "; ".join(script) + "; true"

    def process(self, output):
        found: dict[str, Unit] = {}
        unit = Unit()
        for line in output:
            if line.startswith("U|"):
                unit = found[line[2:]] = Unit()
                continue
            name, _, value = line.partition("=")
            if name == "LoadState":
                unit.loaded = value == "loaded"
            elif name == "ActiveState":
                unit.active = value
            elif name == "UnitFileState":
                unit.enabled = value
            elif name == "NeedDaemonReload":
                unit.needs_daemon_reload = value == "yes"
            elif name == "ActiveEnterTimestamp":
                unit.started = max(unit.started, _seconds(value))
            elif name == "stamp":
                unit.started = max(unit.started, float(value))
            elif name == "newest":
                stamp, _, unit.newest_path = value.partition(" ")
                unit.newest = float(stamp)
        return found


class UnitFiles(FactBase):
    """Names of unit files of ours in /etc/systemd/system.

    Args of the command:
        pattern: of their names, such as "training-*".
    """

    default = list

    def command(self, pattern: str) -> str:
        return (
            f"cd /etc/systemd/system && find . -maxdepth 1 -type f -name {shlex.quote(pattern)} "
            "-exec grep -l 'Managed by Groundwork' {} + 2>/dev/null; true"
        )

    def process(self, output):
        return sorted(line.removeprefix("./") for line in output)


def _seconds(stamp: str) -> float:
    """`Mon 2026-11-23 13:10:10.123456 UTC` as seconds since the epoch; nothing is 0."""
    if not stamp or stamp == "n/a":
        return 0.0
    _, day, clock, _ = stamp.split(" ")
    form = "%Y-%m-%d %H:%M:%S.%f" if "." in clock else "%Y-%m-%d %H:%M:%S"
    return datetime.strptime(f"{day} {clock}", form).replace(tzinfo=timezone.utc).timestamp()
