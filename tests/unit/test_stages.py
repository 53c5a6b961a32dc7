"""Stages are barriers: no host starts a tier before every host has ended the one before."""

from __future__ import annotations

import json
import re

import pytest
from tests.unit.pyinfra_fake import ALL_ROLES, ROOT, group_data, inventory, run

TIERS = {
    "host": ("All roles", "Base", "Docker"),
    "data": ("MongoDB", "Redis", "ChromaDB"),
    "application": ("Application", "Inference", "Training"),
    "edge": ("Nginx",),
}

CLUSTER = """
def _another(name, address):
    return (f"@fake/{name}", {**_host[1], "private_address": address, "base_hostname": name})

_app1, _app2, _data1 = _another("app1", "10.0.0.6"), _another("app2", "10.0.0.7"), _another("data1", "10.0.0.8")
docker = [_app1]
mongodb = [_data1]
redis = [_data1]
chromadb = [_data1]
app = [_app1, _app2]
"""


def _plan(path, deploy: str) -> list[str]:
    """The tier of each operation that belongs to one, in pyinfra's order."""
    done = run(path, deploy, "--dry", "--json")
    assert done.returncode == 0, done.stderr
    roles = {role: tier for tier, roles in TIERS.items() for role in roles}
    names = [item["name"].split(" | ")[0] for item in json.loads(done.stdout)["plan"]]
    return [roles[name] for name in names if name in roles]


@pytest.fixture
def cluster(tmp_path):
    """An edge, two applications and their data: roles with very different numbers of operations."""
    group_data(tmp_path, "all", ALL_ROLES)
    path = inventory(tmp_path, ["nginx"])
    path.write_text(path.read_text() + CLUSTER)
    return path


def test_the_tiers_follow_each_other(cluster):
    plan = _plan(cluster, "deploy.py")
    assert set(plan) == set(TIERS)
    assert plan == sorted(plan, key=list(TIERS).index)


@pytest.mark.parametrize("tier", list(TIERS)[1:])
def test_without_a_barrier_they_would_not(cluster, tmp_path, tier):
    """What the barriers are for: each one is needed on these hosts, so the test above can fail."""
    without = tmp_path / "deploy.py"
    without.write_text(re.sub(rf'stage\("{tier}"\)\n', "", (ROOT / "deploy.py").read_text()))
    plan = _plan(cluster, str(without))
    assert plan != sorted(plan, key=list(TIERS).index)


# Between the barriers

SIDE_BY_SIDE = """
import gevent
from pyinfra import host, state
from pyinfra.api import operation
from groundwork.stages import stage, together

@operation()
def work(seconds=0.0, command=""):
    if state.is_executing:
        gevent.sleep(seconds)
    if command:
        yield command

slow = host.name.endswith("slow")
for number in range(3):
    work(name=f"step {number}", seconds=0.5 if slow else 0.0)
stage("next")
work(name="after", command="false" if host.name.endswith("fails") else "")
work(name="last", seconds=0.5)
work(name="very last")
together(work(name="meeting"))
"""


def _hosts(tmp_path, *names: str) -> tuple:
    path = tmp_path / "try_out.py"
    hosts = [
        (f"@fake/{name}", {"private_address": f"10.0.0.{number}", "base_hostname": name, "fake_responses": {"false": {"success": False}}})
        for number, name in enumerate(names, start=5)
    ]
    path.write_text(f"base = {hosts!r}\n")
    deploy = tmp_path / "deploy.py"
    deploy.write_text(SIDE_BY_SIDE)
    return path, str(deploy)


def _done(said: str) -> list[tuple[str, str]]:
    """(host, operation) in the order in which they ended."""
    lines = [re.match(r"\s+\[@fake/(\w+)\]\s+(.+?): (?:No changes|Success)", line) for line in said.splitlines()]
    return [(match[1], match[2]) for match in lines if match]


def test_a_slow_host_holds_no_other_up(tmp_path):
    path, deploy = _hosts(tmp_path, "slow", "quick")
    done = run(path, deploy, "-y")
    assert done.returncode == 0, done.stderr
    ended = _done(done.stderr)
    assert [item for item in ended if item[0] == "quick"] == [("quick", f"step {n}") for n in range(3)] + [("quick", name) for name in ("after", "last", "very last")]
    assert ended.index(("quick", "step 2")) < ended.index(("slow", "step 0"))
    # The stage is where it is waited for.
    assert ended.index(("slow", "step 2")) < ended.index(("quick", "after"))


def test_a_host_that_fails_ends_the_run_for_the_others_after_what_they_are_at(tmp_path):
    path, deploy = _hosts(tmp_path, "fails", "quick", "slow")
    done = run(path, deploy, "-y")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "1 of 3 hosts failed: @fake/fails at after" in done.stderr and ("quick", "very last") not in _done(done.stderr)
    assert "meeting" not in done.stderr


def test_where_it_may_fail_the_others_go_on(tmp_path):
    path, deploy = _hosts(tmp_path, "fails", "quick", "slow")
    done = run(path, deploy, "-y", "--fail-percent", "50")
    assert done.returncode == 1 and "@fake/fails at after" in done.stderr  # pyinfra's exit status where any host failed
    assert ("quick", "last") in _done(done.stderr) and ("slow", "last") in _done(done.stderr)
    assert "Starting operation: meeting" in done.stderr


def test_one_host_is_told_as_pyinfra_does(tmp_path):
    path, deploy = _hosts(tmp_path, "quick")
    done = run(path, deploy, "-y")
    assert "Starting operation: step 0" in done.stderr and "each host by itself" not in done.stderr


def test_who_is_still_at_work_is_told(tmp_path):
    path, deploy = _hosts(tmp_path, "slow", "quick")
    (tmp_path / "deploy.py").write_text("from groundwork import stages\nstages.TELL_SECONDS = 0.3\n" + SIDE_BY_SIDE)
    done = run(path, deploy, "-y")
    assert "--> At work still: @fake/slow (step 0)" in done.stderr
