"""What is measured: cases, and in each the ways that take turns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Callable

from bench import tools
from bench.tools import Start, Target

STATES = "200 states, no change"
FIRST = "200 states, first run"
STACK = "full stack, no change"
ONE_FILE = "full stack, one file"
FIRST_RUN = "first run"
"""By bench/first_run.py."""

GROUNDWORK = "Groundwork"
PLAIN = "Groundwork, plain @ssh"
ASKED = "Groundwork, asked first"
ASKED_PLAIN = "Groundwork, asked first, plain @ssh"
PYINFRA = "pyinfra"
ANSIBLE = "Ansible"
MITOGEN = "Ansible + Mitogen"
FLOOR = "floor"
CHANGED = "Groundwork, a file changed"
CHANGED_BACK = "Groundwork, and changed back"

SLOW = 150.0
"""Seconds: who takes longer is measured once, but where a goal is at stake."""


@dataclass(frozen=True)
class Way:
    """One of those that take turns in a case."""

    tool: str
    start: Callable[[list[Target], Path], Start]
    limit: float = 600
    """Seconds after which a run is given up."""
    changes: bool = False
    """Each run shall change something; else nothing."""
    warm: bool = False
    """One run before the first that counts: it remembers what it asked."""
    slow: float = SLOW
    long: str = ""
    """Why it is left out but with --long."""


@dataclass(frozen=True)
class Case:
    """Hosts, a round trip, and who takes turns on them."""

    name: str
    what: str
    place: str
    """states, stack, fresh (each way has a host of its own, made anew), or first (bench/first_run.py)."""
    hosts: int
    rtt_ms: int
    ways: tuple[Way, ...] = ()


_groundwork = Way(GROUNDWORK, tools.groundwork, warm=True)
_plain = Way(PLAIN, partial(tools.groundwork, connector="ssh"))
_pyinfra = Way(PYINFRA, tools.pyinfra, limit=900)
_floor = Way(FLOOR, tools.floor)

_HALF_HOUR = "would take half an hour and more; python -m bench --long measures it"


def _states(hosts: int, rtt_ms: int, *more: Way) -> Case:
    return Case(f"states-{hosts}-{rtt_ms}", STATES, "states", hosts, rtt_ms, (_groundwork, _plain, _floor, *more))


def _stack(rtt_ms: int) -> Case:
    ways = (
        Way(GROUNDWORK, tools.stack, warm=True),
        Way(ASKED, partial(tools.stack, asked=True), warm=True),
        Way(PLAIN, partial(tools.stack, connector="ssh")),
        Way(ASKED_PLAIN, partial(tools.stack, connector="ssh", asked=True)),
        _floor,
    )
    return Case(f"stack-{rtt_ms}", STACK, "stack", 1, rtt_ms, ways)


_burst = ("nginx_rate_burst=41",)
"""A setting that one file has (templates/nginx), which nginx then reloads; its default is 40."""

_slow_ones = (Way(MITOGEN, tools.mitogen, 900, slow=900), Way(ANSIBLE, tools.ansible, 900, slow=900))
_once = (Way(MITOGEN, tools.mitogen, 2400, slow=0), Way(ANSIBLE, tools.ansible, 2400, slow=0))
_fifty = (Way(MITOGEN, tools.mitogen, 7200, slow=0, long=_HALF_HOUR), Way(ANSIBLE, tools.ansible, 7200, slow=0, long=_HALF_HOUR))

# Those first on which a goal hangs: a run that is cut off has them.
CASES = (
    _stack(50),
    Case(
        "one-file-50", ONE_FILE, "stack", 1, 50,
        (
            Way(CHANGED, partial(tools.stack, data=_burst), changes=True),
            Way(GROUNDWORK, partial(tools.stack, data=_burst)),
            Way(CHANGED_BACK, tools.stack, changes=True),
        ),
    ),
    _states(1, 50, replace(_pyinfra, slow=900), *_slow_ones),
    _states(10, 50, _pyinfra, replace(_once[0], long=_HALF_HOUR), _once[1]),
    _states(50, 50, replace(_pyinfra, limit=1500, slow=0), *_fifty),
    Case("first_run", FIRST_RUN, "first", 1, 0),
    Case(
        "converge", FIRST, "fresh", 1, 0,
        (
            Way(GROUNDWORK, tools.groundwork),
            Way(PYINFRA, tools.pyinfra, limit=900),
            Way(MITOGEN, tools.mitogen, limit=900),
            Way(ANSIBLE, tools.ansible, limit=1500),
        ),
    ),
    _stack(0),
    _stack(200),
    _states(1, 0, _pyinfra),
    _states(1, 200, _pyinfra, *_once),
    _states(10, 0),
    _states(10, 200),
    _states(50, 0),
    _states(50, 200),
)  # fmt: skip
