"""What the roles of a host declare is asked for together: the same question whichever role asks, so that one answer does."""

from __future__ import annotations

from functools import cache
from typing import Iterable, Mapping

from pyinfra import host

from facts.files import Path, Paths
from facts.units import Unit, Units
from groundwork.context import current
from groundwork.topology import Here


def paths(wanted: Iterable[str]) -> dict[str, Path]:
    """What is at paths: asked with the files of all roles where these are among them, else alone."""
    wanted, together = list(wanted), _files(current())
    found = host.get_fact(Paths, paths=list(together) if set(wanted) <= set(together) else wanted) or {}
    return {path: found[path] for path in wanted if path in found}


def units(reads: Mapping[str, Iterable[str]]) -> dict[str, Unit]:
    """State and staleness of units by what they read here: asked with those of all roles where these are among them, else alone.

    Args:
        reads: unit -> paths.
    """
    wanted, together = {unit: list(paths) for unit, paths in reads.items()}, _reads(current())
    known = all(unit in together and set(paths) <= set(together[unit]) for unit, paths in wanted.items())
    found = host.get_fact(Units, reads=together if known else wanted) or {}
    return {unit: (found.get(unit) or Unit()).reading(paths) for unit, paths in wanted.items()}


@cache
def _files(here: Here) -> tuple[str, ...]:
    rows = (row for role in here.roles for row in here.settings(here.topology.roles[role]).files(here))
    return tuple(dict.fromkeys(row.path for row in rows))


@cache
def _reads(here: Here) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for role in here.roles:
        for unit, paths in here.settings(here.topology.roles[role]).reads(here).items():
            found.setdefault(unit, []).extend(paths)
    return found
