"""Ways that take turns on the same hosts: a run of each, then again, so that what else the machine does falls on all."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

from bench import measure, results, tools
from bench.cases import Case, Way
from bench.results import Row
from bench.tools import ROOT, Start, Target, Wrong
from lab.shell import say

LOGS = ROOT / "bench/logs"
"""What a run that went wrong said."""


PORTS = 20000
"""From here on, by the last number of a host's address."""


class Proxies:
    """The proxy process (bench/latency.py), which stands for hosts."""

    def __init__(self, process: subprocess.Popen):
        self._process = process
        self.ports: list[int] = self._answer()

    def delay(self, rtt_ms: int) -> None:
        """Set the round trip."""
        self._ask(f"delay {rtt_ms}")

    def turns(self) -> int:
        """How often the clients have spoken after an answer, since the last time; of all hosts together."""
        return sum(self._ask("turns"))

    def _ask(self, line: str) -> Any:
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        return json.loads(self._process.stdout.readline())


@contextmanager
def proxies(addresses: list[str]) -> Iterator[Proxies]:
    """Proxies for port 22 of hosts, as long as this lasts; at the same ports each time, by which Groundwork remembers a host."""
    hosts = [f"{address}:22:{PORTS + int(address.rpartition('.')[2])}" for address in addresses]
    command = [sys.executable, "-m", "bench.latency", *hosts]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Proxies(process)
    finally:
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Turns:
    """A case on its hosts.

    Args:
        rounds: runs of each way that count.
        long: with the ways that take very long.
    """

    def __init__(self, case: Case, targets: list[Target], proxies: Proxies, scratch: Path, rounds: int, long: bool):
        self.case, self.targets, self.proxies, self.scratch, self.rounds, self.long = case, targets, proxies, scratch, rounds, long
        self.rows = [results.row(case.what, way.tool, case.rtt_ms, case.hosts) for way in case.ways]

    def take(self) -> list[Row]:
        """All rounds. A way that goes wrong is out, with the reason in its row's note."""
        self.proxies.delay(self.case.rtt_ms)
        machine = {"load": [os.getloadavg()[0]], "calibration": [measure.calibration()]}
        for way in self.case.ways:
            if way.warm:
                self._warm(way)
        for number in range(1, self.rounds + 1):
            for way, row in zip(self.case.ways, self.rows):
                if self._is_out(way, row, number):
                    continue
                self.once(way, row, f"{number}/{self.rounds}")
        machine["load"].append(os.getloadavg()[0])
        machine["calibration"].append(measure.calibration())
        about = {**machine, "measured": datetime.date.today().isoformat(), "versions": tools.versions()}
        return [{**row, **about} for row in self.rows]

    def _is_out(self, way: Way, row: Row, number: int) -> bool:
        if row.get("wrong"):
            return True
        if way.long and not self.long:
            row["note"] = f"not measured: {way.long}"
            return True
        if number > 1 and row["seconds"][0] > way.slow:
            row["note"] = "one run, which took long"
            return True
        return False

    def _warm(self, way: Way) -> None:
        cost = self._run(way.start(self.targets, self.scratch), way.limit)
        say(f"    {way.tool}: once, to remember ({cost.seconds:.1f} s)")

    def once(self, way: Way, row: Row, which: str) -> None:
        """A run that counts."""
        start = way.start(self.targets, self.scratch)
        exchanges = self.scratch / "exchanges"
        exchanges.unlink(missing_ok=True)
        self.proxies.turns()
        cost = self._run(start, way.limit)
        turns = self.proxies.turns()
        try:
            changed = judge(start, cost, way)
        except Wrong as error:
            LOGS.mkdir(exist_ok=True)
            log = LOGS / f"{self.case.name}-{way.tool.replace(' ', '-')}.log"
            log.write_text(cost.output)
            row |= {"wrong": True, "note": f"wrong: {error}", "seconds": [], "cpu_seconds": [], "peak_mib": []}
            say(f"    {which} {way.tool}: WRONG: {error}; see {log.relative_to(ROOT)}")
            return
        for name, value in (("seconds", cost.seconds), ("cpu_seconds", cost.cpu_seconds), ("peak_mib", cost.peak_mib)):
            row[name].append(value)
        row["changed"] = changed
        row.setdefault("turns", []).append(round(turns / len(self.targets), 1))
        if exchanges.exists():
            lines = [json.loads(line) for line in exchanges.read_text().splitlines()]
            row.setdefault("exchanges", []).append(max(line["exchanges"] for line in lines))
        say(f"    {which} {way.tool}: {cost.seconds:.2f} s, {cost.cpu_seconds:.2f} s of processor, {cost.peak_mib:.0f} MiB, {changed} changed")

    def _run(self, start: Start, limit: float) -> measure.Cost:
        return measure.run(start.command, start.cwd, tools.environment(start.environment), limit, start.given)


def judge(start: Start, cost: measure.Cost, way: Way) -> int:
    """Number of changes of a run.

    Raises:
        Wrong: where it failed, took too long, changed something though all is as it shall be, or nothing though it is not.
    """
    if cost.timed_out:
        raise Wrong(f"not done after {way.limit:.0f} s")
    if cost.status:
        raise Wrong(f"exit status {cost.status}")
    changed = start.changed(cost.output)
    if changed and not way.changes:
        raise Wrong(f"it changed {changed} where all was as it shall be")
    if way.changes and not changed:
        raise Wrong("it changed nothing where something was to be changed")
    return changed
