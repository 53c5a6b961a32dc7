"""One run at a time: who is waited for, what is said, and that nobody holds while he waits."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from unittest.mock import Mock

import paramiko
import pytest
from groundwork import context
from operations import lock
from operations.lock import Holder
from tests.unit import pyinfra_fake
from tests.unit.conftest import make_topology

ANNA = {"who": "anna@laptop", "what": "inventories/prod.py deploy.py", "process": 4711, "kernel": "another"}


def holder(left: str = "", **run: object) -> Holder:
    return Holder({**ANNA, **run}, "2026-11-23 16:40:53 UTC", "571", left)


class Item(SimpleNamespace):
    """A host, by identity."""

    __hash__ = object.__hash__


class Run:
    """A run on two hosts, whose answers are given."""

    def __init__(self, monkeypatch, answers: dict[str, list], wait: int = 0, fail_percent: int = 0):
        self.now, self.released, self.said = 0.0, 0, []
        self.hosts = [Item(name=name, log=self.said.append) for name in ("one", "two")]
        topology = make_topology({name: (["redis"], {"lock_wait": wait}) for name in ("one", "two")})
        monkeypatch.setitem(context._made, "topology", topology)
        monkeypatch.setattr(lock, "_take", lambda item: (answers[item.name].pop(0) if answers.get(item.name) else None))
        monkeypatch.setattr(lock, "release", self._release)
        monkeypatch.setattr(lock, "state", SimpleNamespace(config=SimpleNamespace(FAIL_PERCENT=fail_percent)))
        monkeypatch.setattr(lock.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(lock.time, "sleep", self._sleep)

    def _release(self):
        self.released += 1

    def _sleep(self, seconds):
        self.now += seconds

    def take(self) -> dict[str, str]:
        return lock._take_all(self.hosts)


def test_two_free_hosts_are_taken(monkeypatch):
    run = Run(monkeypatch, {})
    assert run.take() == {} and run.released == 0


def test_one_that_is_locked_frees_the_other_and_tells_whose_it_is(monkeypatch):
    run = Run(monkeypatch, {"two": [holder()]})
    message = run.take()["two"]
    for part in ("anna@laptop", "2026-11-23 16:40:53 UTC", "inventories/prod.py deploy.py", "4711", "sudo kill 571", "lock_wait"):
        assert part in message
    assert run.released == 1


def test_with_fail_percent_the_others_are_kept(monkeypatch):
    run = Run(monkeypatch, {"two": [holder()]}, fail_percent=50)
    assert list(run.take()) == ["two"] and run.released == 0


def test_it_waits_as_long_as_it_is_told_and_holds_nothing_meanwhile(monkeypatch):
    run = Run(monkeypatch, {"two": [holder()] * 3}, wait=60)
    assert run.take() == {} and run.released == 3
    assert len(run.said) == 1 and "waiting for another run: anna@laptop" in run.said[0]


def test_it_waits_no_longer_than_that(monkeypatch):
    run = Run(monkeypatch, {"two": [holder()] * 999}, wait=60)
    assert "anna@laptop" in run.take()["two"] and 60 <= run.now < 63


def test_what_a_dead_run_left_is_waited_for_unasked(monkeypatch):
    run = Run(monkeypatch, {"two": [holder(left="dpkg, process 15065")] * 30})
    assert run.take() == {} and "dpkg, process 15065" in run.said[0]


@pytest.mark.parametrize(
    "run, dead",
    [
        ({}, False),  # of another machine: nobody here can know
        ({"kernel": lock._kernel(), "process": os.getpid()}, False),
        ({"kernel": lock._kernel(), "process": 2**22 + 1}, True),
        ({"kernel": None, "process": 2**22 + 1}, False),
    ],
)
def test_a_run_is_dead_only_where_that_is_certain(run, dead):
    assert holder(**run).is_dead is dead


def test_a_lock_file_that_is_just_being_written_is_a_lock():
    assert "somebody" in str(lock._holder([])) and not lock._holder([]).is_dead


@pytest.mark.parametrize("what", ["deploy.py", "tasks.redis.redis"])
def test_it_comes_first_and_once(tmp_path, what):
    path = pyinfra_fake.inventory(tmp_path, ["redis"])
    plan = json.loads(pyinfra_fake.run(path, what, "--dry", "--json").stdout)["plan"]
    names = [item["name"].split(" | ")[-1] for item in plan]
    assert names.index("One run at a time") == 0 and names.count("One run at a time") == 1


class Line:
    """A held lock that has ended."""

    has_hung_up = False

    def __init__(self, is_dead: bool):
        self.is_dead = is_dead

    def has_ended(self, seconds: float) -> bool:
        return True

    def dies(self) -> bool:
        return self.is_dead

    def hang_up(self) -> None:
        self.has_hung_up = True


@pytest.mark.parametrize("is_dead, why", [(True, "the connection was lost"), (False, "its lock was taken away")])
def test_a_lost_lock_ends_the_run_and_is_told_once(monkeypatch, is_dead, why):
    said, line = [], Line(is_dead)
    monkeypatch.setitem(lock._held, "one", line)
    host = Item(name="one", log=said.append)
    lock._Ends.operation_host_error(None, host, "hash", 0, 0)
    lock._watch(host, line)
    assert len(said) == 1 and why in said[0] and "Run it again" in said[0] and line.has_hung_up


def test_a_connection_that_ends_after_its_sessions_is_lost_all_the_same():
    """paramiko ends each session of a lost connection first, and tells of the connection then."""
    transport = Mock(spec=paramiko.Transport)
    transport.is_active.return_value = True
    transport.join.side_effect = lambda seconds: transport.configure_mock(**{"is_active.return_value": False})
    line = object.__new__(lock._Line)
    line.client = Mock(get_transport=lambda: transport)
    assert line.dies()


def test_a_lock_that_another_took_during_the_reboot_is_told_as_such(monkeypatch):
    run = Run(monkeypatch, {"one": [holder()] * 99})
    one, two = run.hosts
    monkeypatch.setattr(lock, "_wanted", {item.name: item for item in run.hosts})
    message = lock.again(one)
    assert "up again" in message and "anna@laptop" in message and "before the reboot is done" in message
    assert "Nothing was changed" not in message
    assert lock.again(two) is None
