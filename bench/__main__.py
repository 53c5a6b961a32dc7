"""`make bench`: measure, write down, and write docs/speed.md.

    python -m bench                      everything (about an hour), then docs/speed.md
    python -m bench --only states-1-50   this case again; the others keep what they have
    python -m bench --quick              some minutes, into bench/quick: to see that it works
    python -m bench --report             docs/speed.md from what is measured
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Callable

from bench import cases, check, report, results, tools
from bench import hosts as ours
from bench.cases import CASES, Case
from bench.tools import ROOT, Start, Target, Wrong
from bench.turns import Turns, proxies
from lab import hosts
from lab.settings import LabError
from lab.shell import run as shell
from lab.shell import say

RESULTS = ROOT / "bench/results"
QUICK = ROOT / "bench/quick"
QUICK_CASES = ("stack-50", "one-file-50", "states-1-50")
INVENTORIES = {"states": "bench/inventories/states.py", "stack": "bench/inventories/stack.py"}

TOGETHER = 10
"""Hosts that are made ready at a time: apt on fifty would only stand in its own way."""

# python3-apt, which Ansible's apt module wants and Ubuntu's images have; and lists that each tool takes for fresh (ours,
# pyinfra's and Ansible's ways to tell), so that none fetches them while it is timed.
READY = """sudo sh -ec '
dpkg-query -W python3-apt >/dev/null 2>&1 || { apt-get -qq update; DEBIAN_FRONTEND=noninteractive apt-get -qq -y install python3-apt >/dev/null; }
mkdir -p /var/lib/apt/periodic /var/lib/groundwork
touch /var/lib/apt/lists /var/lib/apt/periodic/update-success-stamp /var/lib/groundwork/apt-updated'"""


def main() -> int:
    """Parse, measure, report. Gives the exit status: 1 where a way did not do what it shall."""
    options = _parser().parse_args()
    if options.list:
        for case in CASES:
            print(f"{case.name:<15}{case.what}, {case.hosts} x {case.rtt_ms} ms: {', '.join(way.tool for way in case.ways)}")
        return 0
    directory = QUICK if options.quick else RESULTS
    good = True
    if not options.report:
        good = _measure(directory, options)
    written = report.write(results.load(directory), directory if options.quick else ROOT / "docs")
    print(f"written: {', '.join(os.path.relpath(file, ROOT) for file in written)}")
    return int(not good)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description="How fast, beside the alternatives.")
    parser.add_argument("--only", nargs="+", metavar="CASE", choices=[case.name for case in CASES], help="these cases; the rest stays as it is")
    parser.add_argument("--resume", action="store_true", help="go on where a run was cut off: what has results is not measured again")
    parser.add_argument("--quick", action="store_true", help=f"one round of {', '.join(QUICK_CASES)}, into bench/quick")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each that count")
    parser.add_argument("--long", action="store_true", help="with what takes half an hour and more")
    parser.add_argument("--without", nargs="+", default=[], metavar="TOOL", help="leave out these tools")
    parser.add_argument("--keep", action="store_true", help="leave the hosts up")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--list", action="store_true", help="the cases")
    return parser


def _measure(directory: Path, options: argparse.Namespace) -> bool:
    names = options.only or (QUICK_CASES if options.quick else [case.name for case in CASES])
    wanted = [case for case in CASES if case.name in names]
    if options.resume:
        wanted = [case for case in wanted if not (directory / f"{case.name}.json").exists()]
    for case in wanted:  # what fails now is not told by older numbers
        (directory / f"{case.name}.json").unlink(missing_ok=True)
    rounds = 1 if options.quick else options.rounds
    good = True
    begin = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as scratch:
            for number, case in enumerate(wanted, start=1):
                minutes = (time.monotonic() - begin) / 60
                say(f"==> {number}/{len(wanted)} {case.name}: {case.what}, {case.hosts} x {case.rtt_ms} ms ({minutes:.0f} min so far)")
                case = replace(case, ways=tuple(way for way in case.ways if way.tool not in options.without))
                try:
                    good = _case(case, directory, Path(scratch), rounds, options.long) and good
                except (LabError, Wrong, subprocess.TimeoutExpired) as error:
                    good = False
                    say(f"    WRONG: {case.name}: {error}")
    finally:
        if not options.keep:
            _down()
    return good


def _case(case: Case, directory: Path, scratch: Path, rounds: int, long: bool) -> bool:
    """Measure a case and keep its rows. Gives whether all ways did what they shall."""
    if case.place == "first":
        return _first_run(directory, rounds)
    rows = _converge(case, scratch) if case.place == "fresh" else _take_turns(case, scratch, rounds, long)
    results.save(directory, case.name, rows)
    return not any(row.get("wrong") for row in rows)


def _take_turns(case: Case, scratch: Path, rounds: int, long: bool) -> list[results.Row]:
    names = [name for name, _ in (ours.SHARED[: case.hosts] if case.place == "states" else [ours.STACK])]
    _up(case.place, names)
    there = hosts.known()
    with proxies([there[name].address for name in names]) as ways_in:
        targets = [Target(name, there[name].address, port) for name, port in zip(names, ways_in.ports)]
        _prepare(case, targets, scratch)
        return Turns(case, targets, ways_in, scratch, rounds, long).take()


def _prepare(case: Case, targets: list[Target], scratch: Path) -> None:
    """Bring the hosts to where nothing is to be changed: by Groundwork, and seen with none of the tools.

    Raises:
        Wrong: where a run fails, where a third one still changes something, or where a host is not as it shall be.
    """
    say(f"    the hosts are made ready ({len(targets)})")
    if case.place == "states":
        _ready([target.name for target in targets])
    for first in range(0, len(targets), TOGETHER):
        _settle(tools.stack if case.place == "stack" else tools.groundwork, targets[first : first + TOGETHER], scratch)
    if case.place == "states":
        with ThreadPoolExecutor(TOGETHER) as pool:
            found = pool.map(lambda target: check.differences(target.name), targets)
            _refuse([line for lines in found for line in lines])


def _settle(way: Callable[[list[Target], Path], Start], targets: list[Target], scratch: Path) -> None:
    """Run until nothing is changed."""
    for _ in range(3):
        start = way(targets, scratch)
        done = subprocess.run(
            start.command, cwd=start.cwd, env=tools.environment(start.environment), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1800,
        )  # fmt: skip
        if done.returncode:
            raise Wrong(f"the hosts could not be made ready: {done.stdout[-3000:]}")
        if not start.changed(done.stdout):
            return
    raise Wrong("the hosts are still changed by a third run")


def _ready(names: list[str]) -> None:
    """What all tools find on a host before they come."""
    there = hosts.known()
    with ThreadPoolExecutor(TOGETHER) as pool:
        list(pool.map(lambda name: shell(*hosts.ssh_command(there[name], READY), timeout=300), names))


def _refuse(differences: list[str]) -> None:
    if differences:
        raise Wrong("; ".join(differences[:5]) + (f" and {len(differences) - 5} more" if len(differences) > 5 else ""))


def _converge(case: Case, scratch: Path) -> list[results.Row]:
    """Each tool on a bare host of its own: it comes to the same states, and its second run changes nothing."""
    rows = []
    for (name, _), way in zip(ours.FRESH, case.ways):
        _up("states", [name], fresh=True)
        _ready([name])
        address = hosts.known()[name].address
        with proxies([address]) as ways_in:
            target = [Target(name, address, ways_in.ports[0])]
            first = Turns(replace(case, ways=(replace(way, changes=True),)), target, ways_in, scratch, 1, True).take()
            if not first[0].get("wrong"):
                _refuse(check.differences(name))
                say(f"    {way.tool}: all {case.what.split()[0]} states are there")
                again = replace(case, what=cases.STATES, ways=(way,))
                first += Turns(again, target, ways_in, scratch, 1, True).take()
            rows += [{**row, "note": row["note"] or "one run, on a host made anew"} for row in first]
        _down([name])
    return rows


def _first_run(directory: Path, rounds: int) -> bool:
    """bench/first_run.py measures it, on hosts of its own, and appends to the results."""
    if not (ROOT / "bench/first_run.py").exists():
        say("    there is no bench/first_run.py")
        return True
    return not subprocess.run([sys.executable, "-m", "bench.first_run", "--runs", str(rounds)], cwd=ROOT, timeout=3600).returncode


def _up(place: str, names: list[str], fresh: bool = False) -> None:
    inventory = INVENTORIES[place]
    shell(sys.executable, "-m", "lab", "up", inventory, *names, *(["--fresh"] if fresh else []), cwd=ROOT, timeout=1200)


def _down(names: list[str] | None = None) -> None:
    """Take down what this made, and nobody else's."""
    mine = [name for name, _ in (*ours.SHARED, *ours.FRESH, ours.STACK)] if names is None else names
    with hosts.lock():
        hosts.down([host for name, host in hosts.known().items() if name in mine])


if __name__ == "__main__":
    sys.exit(main())
