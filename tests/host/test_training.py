"""Training: its jobs are units that may do little, and its models are whole."""

from __future__ import annotations

import json
import re

import pytest

VERSION = re.compile(r"\d{8}T\d{6}Z")


def _show(host, unit: str, *names: str) -> dict[str, str]:
    said = host.check(f"systemctl show {unit} -p {','.join(names)}")
    return dict(line.split("=", 1) for line in said.splitlines())


def _models(host) -> list[tuple[str, str]]:
    """Models with a version, and what their link `current` names."""
    found = []
    for name in (job.model for job in host.settings("training").jobs if job.model):
        current = host.run(f"readlink /srv/models/{name}/current").stdout.strip()
        found += [(name, current)] if current else []
    if not found:
        pytest.skip("no model was trained yet")
    return found


def test_each_job_is_a_unit_of_its_own_user(training):
    for job in training.settings("training").jobs:
        found = _show(training, f"{job.unit}.service", "LoadState", "User", "Type", "NotifyAccess", "NoNewPrivileges", "ProtectSystem")
        assert found == {
            "LoadState": "loaded", "User": "training", "Type": "oneshot", "NotifyAccess": "all", "NoNewPrivileges": "yes",
            "ProtectSystem": "strict",
        }  # fmt: skip


def test_each_job_has_no_device_but_the_cards(training):
    for job in training.settings("training").jobs:
        found = _show(training, f"{job.unit}.service", "PrivateDevices", "DevicePolicy", "DeviceAllow")
        allowed = [name for name in found.get("DeviceAllow", "").split() if name[:5] in ("char-", "block", "/dev/")]
        assert found["PrivateDevices"] == "yes" or found["DevicePolicy"] == "closed", job.name
        assert {name for name in allowed if not name.startswith("char-nvidia")} <= {"char-rtc"}, job.name


def test_the_clock_starts_those_with_a_schedule_and_no_others(training):
    scheduled = {f"{job.unit}.timer" for job in training.settings("training").jobs if job.schedule}
    there = set(training.check("systemctl list-timers --all --no-legend --plain 'training-*' | grep -o 'training-[^ ]*\\.timer' || true").split())
    assert there == scheduled
    for timer in scheduled:
        assert _show(training, timer, "ActiveState", "UnitFileState") == {"ActiveState": "active", "UnitFileState": "enabled"}


def test_its_environment_is_closed_to_others(training):
    assert training.check("stat -c '%a %U' /etc/training/environment").strip() == "600 root"


def test_the_environment_is_composed_from_the_topology(training):
    names = {line.split("=")[0] for line in training.check("cat /etc/training/environment").splitlines() if "=" in line}
    assert names == set(training.settings("training").variables(training.here, lambda name: ""))


def test_the_current_version_is_whole_and_says_where_it_comes_from(training):
    for model, current in _models(training):
        assert VERSION.fullmatch(current)
        known = json.loads(training.check(f"cat /srv/models/{model}/current/metadata.json"))
        assert (known["version"], known["model"]) == (current, model)
        assert known["started"] <= known["ended"] and known["release"] and known["environment"]


def test_there_are_no_more_versions_than_shall_be_kept(training):
    jobs = {job.model: job for job in training.settings("training").jobs}
    for model, current in _models(training):
        versions = [name for name in training.check(f"ls /srv/models/{model}").split() if VERSION.fullmatch(name)]
        waiting = [name for name in versions if training.run(f"[ -e /srv/models/{model}/{name}/.reported ]").returncode]
        extra = len(waiting) if jobs[model].report else 0
        assert len(versions) - extra <= training.settings("training").keep_versions + 1, model
        assert current in versions
