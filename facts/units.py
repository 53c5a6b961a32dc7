"""systemd units: many, in one question."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Iterable, Mapping

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
    changes: dict[str, tuple[float, str]] = field(default_factory=dict)
    """Path that it reads -> latest change of that or of what is in it, and where; "" has the unit's own files."""

    def reading(self, paths: Iterable[str]) -> Unit:
        """The same unit by its own files and some of what it reads."""
        if not self.changes:
            return self
        newest, path = max(self.changes.get(path, (0.0, "")) for path in ("", *paths))
        return replace(self, newest=newest, newest_path=path)

    @property
    def running(self) -> bool:
        return self.active in ("active", "reloading", "activating")

    @property
    def stale(self) -> bool:
        return self.newest > self.started


class Units(FactBase):
    """State and staleness of units: {unit: Unit}. systemd is asked once for all of them, and so are the files.

    Args of the command:
        reads: unit -> paths that it reads. A directory counts with its entries, not deeper.
    """

    default = dict

    def command(self, reads: Mapping[str, list[str]]) -> str:
        self.reads = {unit: list(paths) for unit, paths in reads.items()}
        units = _words(reads)
        stamps = _words(f"{STAMPS}/{unit}" for unit in reads)
        paths = _words(path for paths in reads.values() for path in paths)
        # Our drop-ins by their path too: systemd may not know of them yet.
        own = _words(_drop_ins(unit) for unit in reads)
        return (
            f"shown=$(systemctl show --timestamp=us+utc -p {_PROPERTIES} -- {units}); printf '%s\\n' \"$shown\"; "
            # A link counts itself (it may be flipped to what is older), and below what it names.
            f"stat -c 'S|%.Y|%.Z|%n' -- {stamps} {paths} 2>/dev/null; "
            f"find -H {paths} {own} $(printf '%s\\n' \"$shown\" | sed -n 's/^FragmentPath=//p; s/^DropInPaths=//p') -maxdepth 1 "
            # What generators write is as old as the last daemon-reload, and says nothing.
            "-not -path '/run/systemd/generator*' -printf 'F|%C@|%H|%P\\n' 2>/dev/null; true"
        )

    def process(self, output):
        blocks: list[dict[str, str]] = [{}]
        changed: dict[str, list[tuple[float, str]]] = {}
        stamps: dict[str, float] = {}
        for line in output:
            if line.startswith("S|"):
                _, modified, change, path = line.split("|", 3)
                stamps[path] = float(modified)
                changed.setdefault(path, []).append((float(change), path))
            elif line.startswith("F|"):
                _, change, start, below = line.split("|", 3)
                changed.setdefault(start, []).append((float(change), f"{start}/{below}" if below else start))
            elif line:
                name, _, value = line.partition("=")
                blocks[-1][name] = value
            else:
                blocks.append({})
        found = {}
        for unit, paths in self.reads.items():
            # A unit may be asked for by another of its names.
            shown = next((block for block in blocks if unit in block.get("Names", "").split()), {})
            found[unit] = _unit(shown, stamps.get(f"{STAMPS}/{unit}", 0.0))
            own = (_drop_ins(unit), shown.get("FragmentPath", ""), *shown.get("DropInPaths", "").split())
            sources = {"": own, **{path: (path,) for path in paths}}
            found[unit].changes = {
                name: max((item for path in among for item in changed.get(path, ())), default=(0.0, ""))
                for name, among in sources.items()
            }
            found[unit] = found[unit].reading(paths)
        return found


_PROPERTIES = "Names,LoadState,ActiveState,UnitFileState,NeedDaemonReload,ActiveEnterTimestamp,FragmentPath,DropInPaths"


def _words(values: Iterable[str]) -> str:
    """Values as words of a command, each once."""
    return " ".join(map(shlex.quote, dict.fromkeys(values)))


def _drop_ins(unit: str) -> str:
    return f"/etc/systemd/system/{unit}.d"


def _unit(shown: Mapping[str, str], stamp: float) -> Unit:
    """What systemd shows of a unit, with the time of its stamp."""
    return Unit(
        loaded=shown.get("LoadState") == "loaded",
        active=shown.get("ActiveState", "inactive"),
        enabled=shown.get("UnitFileState", ""),
        needs_daemon_reload=shown.get("NeedDaemonReload") == "yes",
        started=max(stamp, _seconds(shown.get("ActiveEnterTimestamp", ""))),
    )


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
