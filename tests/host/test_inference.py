"""Inference: it answers, where it shall and nowhere else, and can't change what it answers from."""

from __future__ import annotations

import pytest


def test_it_is_healthy(inference):
    settings = inference.settings("inference")
    if not settings.health_path:
        pytest.skip("inference_health_path is None")
    assert inference.check(f"curl -s -o /dev/null -w '%{{http_code}}' http://127.0.0.1:{settings.port}{settings.health_path}") == "200"


def test_it_listens_where_it_shall_and_nowhere_else(inference):
    settings = inference.settings("inference")
    said = inference.check(f"ss -Hltn 'sport = :{settings.port}' | awk '{{print $4}}'").split()
    assert sorted(said) == sorted(settings.binds(inference.here))


def test_it_runs_as_its_own_user_with_no_device_but_the_cards(inference):
    said = inference.check("systemctl show inference.service -p User,PrivateDevices,DevicePolicy,DeviceAllow")
    found = dict(line.split("=", 1) for line in said.splitlines())
    assert found["User"] == "inference"
    assert found["PrivateDevices"] == "yes" or found["DevicePolicy"] == "closed"
    allowed = [name for name in found.get("DeviceAllow", "").split() if name[:5] in ("char-", "block", "/dev/")]
    assert {name for name in allowed if not name.startswith("char-nvidia")} <= {"char-rtc"}


def test_it_reads_the_models_and_can_not_change_them(inference):
    for model in inference.settings("inference").models:
        directory = f"/srv/models/{model}"
        if inference.run(f"[ -d {directory} ]").returncode:
            pytest.skip(f"there is no {directory} yet")
        assert inference.run(f"runuser -u inference -- test -r {directory}").returncode == 0
        assert inference.run(f"runuser -u inference -- test -w {directory}").returncode == 1


def test_its_environment_is_closed_to_others(inference):
    assert inference.check("stat -c '%a %U' /etc/inference/environment").strip() == "600 root"
