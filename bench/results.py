"""What was measured: a list of rows in each bench/results/CASE.json.

    {"what": "200 states, no change", "tool": "Groundwork", "rtt_ms": 50, "hosts": 1, "seconds": [2.1, 2.0, 2.2],
     "cpu_seconds": [1.2, …], "peak_mib": [88.1, …], "changed": 0, "note": ""}

`seconds`, `cpu_seconds` and `peak_mib` have a number for each run. A row may have more: `turns` (see bench/latency.py) and
`exchanges` (by Groundwork's own count) of each run, `load` and `calibration` of the machine at the case's begin and end, `versions`,
`measured` (date). A row that was not measured has no seconds, and a note why.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def row(what: str, tool: str, rtt_ms: int, hosts: int, note: str = "", **more: Any) -> Row:
    """A row with nothing measured yet."""
    empty = {"seconds": [], "cpu_seconds": [], "peak_mib": [], "changed": 0, "note": note}
    return {"what": what, "tool": tool, "rtt_ms": rtt_ms, "hosts": hosts, **empty, **more}


def save(directory: Path, case: str, rows: list[Row]) -> None:
    """Put a case's rows in the place of those that it had."""
    directory.mkdir(parents=True, exist_ok=True)
    new = directory / f".{case}.json"
    new.write_text("[\n" + ",\n".join(f" {json.dumps(item)}" for item in rows) + "\n]\n")
    new.rename(directory / f"{case}.json")


def load(directory: Path) -> list[Row]:
    """All rows, the later of one file behind the earlier."""
    return [item for file in sorted(directory.glob("[!.]*.json")) for item in json.loads(file.read_text())]


class Book:
    """All rows, to look things up in."""

    def __init__(self, rows: list[Row]):
        self.rows = rows

    def find(self, what: str, tool: str, rtt_ms: int, hosts: int = 1) -> Row | None:
        """The last row of that name that has seconds."""
        wanted = {"what": what, "rtt_ms": rtt_ms, "hosts": hosts}
        for item in reversed(self.rows):
            if item["seconds"] and item["tool"].casefold() == tool.casefold() and all(item[key] == wanted[key] for key in wanted):
                return item
        return None

    def median(self, what: str, tool: str, rtt_ms: int, hosts: int = 1, of: str = "seconds") -> float | None:
        """Median of a row's numbers; None where there are none."""
        found = self.find(what, tool, rtt_ms, hosts)
        return statistics.median(found[of]) if found and found.get(of) else None
