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
