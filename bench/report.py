"""docs/speed.md and docs/speed.svg, from what was measured: every number and every verdict is computed here."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable

from bench import cases, tools
from bench.cases import ANSIBLE, ASKED, ASKED_PLAIN, FLOOR, GROUNDWORK, MITOGEN, PLAIN, PYINFRA, STACK, STATES
from bench.results import Book, Row

TOOLS = (GROUNDWORK, PLAIN, FLOOR, PYINFRA, MITOGEN, ANSIBLE)
TRIPS = (0, 50, 200)
HOSTS = (1, 10, 50)

HEAD = """# Speed

<!-- Written by `make bench` (bench/report.py) from bench/results/: changes here are overwritten. -->

How long a run takes beside the alternatives, on lab hosts (docs/lab.md) of one machine; which commit each case was measured at is
told at the end. `make bench` measures it again; `.venv/bin/python -m bench --list` names its cases, `--only CASE` measures one of
them, `--report` only writes this page. How it was done is told below and in bench/README.md.

- *The floor*: stock pyinfra starts, connects, and runs `true` on each host. *floor.sh* (bench/) is that of a first run: one apt transaction.
- *State*: a thing that shall be so, such as a file with content, owner and mode. *N ms*: the round trip to a host.
- *`-y`* does not ask; *asked first* is a run without it, which looks, shows what will change, and asks.
- *Plain `@ssh`* is Groundwork on pyinfra's own connector, as all is asked where nothing is remembered: the first run of a host from a machine.
- *Exchanges* are scripts and commands sent after connecting; *turns* are how often the controller spoke and was answered, connecting included.
"""

HOW = """## How it was measured

- **200 states** (bench/states.yml): a small web host with ten sites; files, templates, drop-ins, lines, directories, links, packages, users,
  groups, kernel settings, services. The same file is fed to each tool: bench/with_groundwork, bench/with_pyinfra, bench/with_ansible.
  Each tool brought them to a host of its own, made anew, where a program that is none of them (bench/check.py) found all 200; its
  second run changed nothing. A run that changes what is as it shall be, or that fails, does not count and is told.
- **The round trip** is a proxy's (bench/latency.py) in front of each host's own sshd, at 0 ms as well: it holds back what it passes
  on for half of it each way, TCP's handshake included. Nothing is lost, and bandwidth is what it was.
- **All start from nothing**: a connection of an earlier run is never used (ssh's masters are ended with their run). Groundwork has run
  once before, and remembers what it asked. Package lists count as fresh for all, and python3-apt, which Ansible wants, is there.
- **Ansible**: pipelining, ControlPersist, no facts, as many forks as hosts, lists where a module takes them; with Mitogen the
  same playbook by `mitogen_linear`. **pyinfra**: its own operations, `-y --sudo`, no configuration of ours, the same versions of
  Python, pyinfra and paramiko. **The floor**: stock pyinfra starts, connects and runs `true`, from an empty directory.
- **Whole seconds** of the command, as its operator waits. Tools take turns, a run each, then again. Numbers are the median, then the
  least and the most. *Processor* is user and system time of everything that the command started; *memory* the largest process, or all
  together with what they share counted once, whichever is more (looked at twice a second).
- **Exchanges** are SSH channels opened after connecting, by Groundwork's own count; **turns** are counted by the proxy: how often the
  controller spoke after it had been answered, connecting and disconnecting included.
"""


@dataclass(frozen=True)
class Goal:
    """What the issue asks for, and what it came to."""

    text: str
    limit: float
    value: float | None
    """None where something of it was not measured."""
    unit: str
    at_least: bool = False
    detail: str = ""

    @property
    def reached(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def verdict(self) -> str:
        """In words: by how much it was missed, too."""
        if self.reached is None:
            return "not measured"
        if self.reached:
            return "reached"
        if self.unit == "x" and self.at_least:
            return f"**missed**, {self.limit / self.value:.2f} x too slow"
        return f"**missed** by {abs(self.value - self.limit):.2f} {self.unit}".rstrip()


def write(rows: list[Row], directory: Path) -> list[Path]:
    """Write the page and its picture; gives their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    page, picture = directory / "speed.md", directory / "speed.svg"
    book = Book(rows)
    picture.write_bytes(_picture(book))
    page.write_text("\n".join(_page(book)))
    return [page, picture]


def goals(book: Book) -> list[Goal]:
    """What must be reached, by the issue; ratios of medians."""
    stack, states = (lambda tool: book.median(STACK, tool, 50)), (lambda tool, hosts=1: book.median(STATES, tool, 50, hosts))
    found = [
        _ratio("No change at 50 ms, full stack, `-y`, against the floor", 1.5, stack(GROUNDWORK), stack(FLOOR)),
        _ratio("The same, asked first", 2, stack(ASKED), stack(FLOOR)),
        Goal("Exchanges after connecting, `-y`", 4, book.median(STACK, GROUNDWORK, 50, of="exchanges"), ""),
    ]
    for tool, times in ((PYINFRA, 12), (ANSIBLE, 40), (MITOGEN, 18)):
        found.append(_ratio(f"200 states at 50 ms: {tool}'s time against ours", times, states(tool), states(GROUNDWORK), at_least=True))
    found.append(_ratio("The same on 10 hosts: Ansible's time against ours", 60, states(ANSIBLE, 10), states(GROUNDWORK, 10), at_least=True))
    found += [
        Goal("50 hosts: processor for each further host", 0.3, _further(book, "cpu_seconds", 1, 50), "s"),
        Goal("50 hosts: memory for each further host", 8, _further(book, "peak_mib", 1, 50), "MiB"),
        _ratio("50 hosts: time grows less than their number, against one host", 50, states(GROUNDWORK, 50), states(GROUNDWORK)),
        _ratio("First run of the full stack, against bench/floor.sh", 1.25, *(book.median(cases.FIRST_RUN, tool, 0) for tool in (GROUNDWORK, "floor.sh"))),
        _difference(book),
    ]
    return found


def _ratio(text: str, limit: float, over: float | None, under: float | None, at_least: bool = False) -> Goal:
    if over is None or under is None:
        return Goal(text, limit, None, "x", at_least)
    return Goal(text, limit, over / under, "x", at_least, f"{over:.2f} s / {under:.2f} s")


def _difference(book: Book) -> Goal:
    """One file changed, by what it costs more; the dearer of there and back."""
    none = book.median(cases.ONE_FILE, GROUNDWORK, 50)
    changed = [book.median(cases.ONE_FILE, tool, 50) for tool in (cases.CHANGED, cases.CHANGED_BACK)]
    text = "A change of one file at 50 ms, more than none"
    if none is None or None in changed:
        return Goal(text, 2, None, "s")
    return Goal(text, 2, max(changed) - none, "s", detail=f"{max(changed):.2f} s - {none:.2f} s")


def _further(book: Book, of: str, few: int, many: int, tool: str = GROUNDWORK) -> float | None:
    """What each host more costs the controller."""
    ends = [book.median(STATES, tool, 50, hosts, of) for hosts in (few, many)]
    return None if None in ends else (ends[1] - ends[0]) / (many - few)


# The page


def _page(book: Book) -> Iterable[str]:
    yield HEAD
    yield "## What must be reached\n"
    yield from _table(("Goal", "Wanted", "Measured", ""), (_goal(goal) for goal in goals(book)))
    yield "\n## 200 states that are as they shall be\n"
    yield "![Seconds by tool, hosts and round trip, on a logarithmic axis](speed.svg)\n"
    yield "Seconds: the median (least - most) of the runs; of one run, the number alone.\n"
    places = [(hosts, trip) for hosts in HOSTS for trip in TRIPS if book.find(STATES, GROUNDWORK, trip, hosts)]
    head = ("", *(f"{_hosts(hosts)}, {trip} ms" for hosts, trip in places))
    yield from _table(head, ((tool, *(_seconds(book.find(STATES, tool, trip, hosts)) for hosts, trip in places)) for tool in TOOLS))
    yield "\n## What it costs the controller\n"
    yield "The same at 50 ms: seconds of processor, and MiB of memory.\n"
    yield from _table(
        ("", *(f"{_hosts(hosts)}" for hosts in HOSTS), "each further host, 1 to 50"),
        ((tool, *(_cost(book.find(STATES, tool, 50, hosts)) for hosts in HOSTS), _each_further(book, tool)) for tool in TOOLS),
    )
    yield "\n## The full stack on one host, no change\n"
    stack = [(GROUNDWORK, "`-y`"), (ASKED, "asked first"), (PLAIN, "`-y`, plain `@ssh`"), (ASKED_PLAIN, "asked first, plain `@ssh`"), (FLOOR, "the floor")]
    trips = [trip for trip in TRIPS if book.find(STACK, GROUNDWORK, trip)]
    yield from _table(
        ("", *(f"{trip} ms" for trip in trips), "exchanges (50 ms)", "turns (50 ms)"),
        (
            (name, *(_seconds(book.find(STACK, tool, trip)) for trip in trips), *(_count(book.find(STACK, tool, 50), of) for of in ("exchanges", "turns")))
            for tool, name in stack
        ),
    )
    yield "\n## One file changed\n"
    yield "The full stack at 50 ms, where one setting of one file of nginx is another (`nginx_rate_burst`), which nginx then loads.\n"
    ways = ((cases.CHANGED, "changed"), (GROUNDWORK, "nothing changed"), (cases.CHANGED_BACK, "changed back"))
    rows = ((name, book.find(cases.ONE_FILE, tool, 50)) for tool, name in ways)
    yield from _table(("", "seconds", "operations that changed"), ((name, _seconds(row), str(row["changed"]) if row else "-") for name, row in rows))
    yield "\n## The first run\n"
    yield "The full stack on a host made anew, against bench/floor.sh (bench/first_run.py): the same packages in one apt transaction.\n"
    rows = ((name, book.find(cases.FIRST_RUN, name, 0)) for name in (GROUNDWORK, "floor.sh"))
    yield from _table(("", "seconds", ""), ((name, _seconds(row), row["note"] if row else "") for name, row in rows))
    rows = [(tool, book.find(cases.FIRST, tool, 0)) for tool in (GROUNDWORK, PYINFRA, MITOGEN, ANSIBLE)]
    if any(row for _, row in rows):
        yield "\nThe 200 states on a host made anew, at 0 ms, and how many tasks or operations said that they changed something.\n"
        yield from _table(("", "seconds", "changed"), ((name, _seconds(row), str(row["changed"]) if row else "-") for name, row in rows))
    yield "\n## What was not measured, or not as the rest\n"
    yield from (_remarks(book) or ["Nothing.\n"])
    yield ""
    yield HOW
    yield from _machine(book)


def _goal(goal: Goal) -> tuple[str, ...]:
    wanted = f"at {'least' if goal.at_least else 'most'} {goal.limit:g} {goal.unit}".strip()
    value = "-" if goal.value is None else f"{goal.value:.2f} {goal.unit}".strip() + (f" ({goal.detail})" if goal.detail else "")
    return goal.text, wanted, value, goal.verdict


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterable[str]:
    head = list(head)
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _hosts(number: int) -> str:
    return f"{number} host{'s' * (number > 1)}"


def _seconds(row: Row | None) -> str:
    return _spread(row["seconds"]) if row else "-"


def _spread(numbers: list[float]) -> str:
    if len(numbers) == 1:
        return _number(numbers[0])
    return f"{_number(statistics.median(numbers))} ({_number(min(numbers))} - {_number(max(numbers))})"


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 20 else f"{value:.0f}"


def _cost(row: Row | None) -> str:
    return f"{_number(statistics.median(row['cpu_seconds']))} s, {statistics.median(row['peak_mib']):.0f} MiB" if row else "-"


def _each_further(book: Book, tool: str) -> str:
    cpu, memory = (_further(book, of, 1, 50, tool) for of in ("cpu_seconds", "peak_mib"))
    return "-" if cpu is None else f"{cpu:.2f} s, {memory:.1f} MiB"


def _count(row: Row | None, of: str) -> str:
    return f"{statistics.median(row[of]):g}" if row and row.get(of) else "-"


def _remarks(book: Book) -> list[str]:
    """What rows say of themselves; where one was measured after all, the others are silent."""
    said: dict[str, list[str]] = {}
    for row in book.rows:
        found = book.find(row["what"], row["tool"], row["rtt_ms"], row["hosts"])
        if row["note"] and (found is row or not found) and row["what"] != cases.FIRST_RUN:
            said.setdefault(row["note"], []).append(f"{row['what']}: {row['tool']}, {_hosts(row['hosts'])} at {row['rtt_ms']} ms")
    lines = [f"- {note}: {'; '.join(dict.fromkeys(where))}." for note, where in said.items()]
    planned = {(way.tool, case.hosts, case.rtt_ms) for case in cases.CASES if case.what in (STATES, cases.FIRST) for way in case.ways}
    told = {(row["tool"], row["hosts"], row["rtt_ms"]) for row in book.rows if row["what"] == STATES}
    rest = [(tool, hosts, trip) for tool in (PYINFRA, MITOGEN, ANSIBLE) for hosts in HOSTS for trip in TRIPS if (tool, hosts, trip) not in told]
    for why, missing in (
        ("left out, for the hour that `make bench` may take", [item for item in rest if item not in planned]),
        ("not measured yet", [item for item in rest if item in planned]),
    ):
        if missing:
            lines.append(f"- {why}: {'; '.join(f'{tool}, {_hosts(hosts)} at {trip} ms' for tool, hosts, trip in missing)}.")
    return lines


def _machine(book: Book) -> Iterable[str]:
    """Each case by itself: within one, tools take turns, and both sides of a ratio have the same noise."""
    measured = {(row["what"], row["hosts"], row["rtt_ms"]): row for row in book.rows if row["seconds"]}
    if not any(row.get("load") for row in book.rows):
        return
    yield "## Noise, and versions\n"
    yield (
        f"The machine has {os.cpu_count()} cores, which hosts and tools share with others' work. *Load*: when the case began and ended. *Fixed work*: the "
        "seconds that the same piece of work took before and after it; the more they differ, the less a small difference says. A ratio's two "
        "sides are of one case, whose tools took turns, but for what compares 50 hosts with one.\n"
    )
    yield from _table(("case", "measured", "commit", "load", "fixed work"), map(_circumstances, measured.values()))
    yield ""
    versions = {json.dumps({**row["versions"], GROUNDWORK: {**row["versions"][GROUNDWORK], "commit": ""}}) for row in book.rows if "versions" in row}
    for one in sorted(versions):
        yield "- " + "; ".join(
            f"{tool}: {', '.join(f'{name} {number}' for name, number in parts.items() if number)}" for tool, parts in json.loads(one).items()
        )
    yield ""


def _circumstances(row: Row) -> tuple[str, ...]:
    commit = row.get("versions", {}).get(GROUNDWORK, {}).get("commit", "-")
    ends = [" and ".join(f"{number:.2f}" for number in row.get(of, [])) or "-" for of in ("load", "calibration")]
    return f"{row['what']}, {_hosts(row['hosts'])}, {row['rtt_ms']} ms", row.get("measured", "-"), commit, *ends


# The picture


def _picture(book: Book) -> bytes:
    places = [(1, 0), (1, 50), (1, 200), (10, 50), (50, 50)]
    places = [place for place in places if book.find(STATES, GROUNDWORK, place[1], place[0])]
    given = {
        "title": "200 states that are as they shall be: seconds (logarithmic)",
        "places": [f"{_hosts(hosts)}, {trip} ms" for hosts, trip in places],
        "series": {tool: [book.median(STATES, tool, trip, hosts) for hosts, trip in places] for tool in TOOLS},
    }
    command = [str(tools.VENVS / "ansible/bin/python"), str(tools.BENCH / "plot.py")]
    return subprocess.run(command, input=json.dumps(given).encode(), stdout=subprocess.PIPE, check=True, timeout=60).stdout
