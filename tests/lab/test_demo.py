"""The main job: a bare host becomes a verified stack, and stays one."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
import requests
from tests.lab.conftest import ROOT, Lab

pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS")  # a placeholder certificate is self-signed
URL = "https://10.87.0.11"


def verified(inventory: str) -> None:
    """tests/host on an inventory, with no failure."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/host", "--inventory", inventory],
        cwd=ROOT, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]


@pytest.fixture(scope="module")
def stack(demo: Lab) -> Lab:
    """A bare host, made into the stack."""
    demo.fresh()
    demo.deploy()
    return demo


def _store(name: str) -> str:
    answer = requests.post(f"{URL}/items", json={"name": name, "text": name}, verify=False, timeout=20)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def _read(item: str) -> requests.Response:
    return requests.get(f"{URL}/items/{item}", verify=False, timeout=20)


def _ready(seconds: int) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            answer = requests.get(f"{URL}/ready", verify=False, timeout=5)
            if answer.status_code == 200:
                return
            last = answer.text
        except requests.RequestException as error:
            last = str(error)
        assert time.monotonic() < end, f"not ready after {seconds} s: {last}"
        time.sleep(0.5)


def test_a_second_run_changes_nothing(stack):
    assert stack.changes() == []


def test_asked_first_it_says_that_nothing_will_change(stack):
    plan = json.loads(stack.pyinfra(stack.inventory, "deploy.py", "--dry", "--json").stdout)["plan"]
    assert len(plan) > 30
    assert [item["name"] for item in plan if item["hosts_with_change"]] == []


def test_the_host_is_what_its_groups_promise(stack):
    verified(stack.inventory)


def test_one_role_alone_changes_nothing(stack):
    for role in ("nginx", "mongodb"):
        done = stack.pyinfra("-y", stack.inventory, f"tasks.{role}.{role}")
        assert "Success" not in [line.split("] ")[-1].strip() for line in done.stderr.splitlines()]


def test_drift_is_put_right(stack):
    stack.ssh("demo", "sudo sh -c 'echo garbage >>/etc/nginx/nginx.conf; systemctl stop redis-server; chmod 644 /etc/app/environment'")
    changes = " ".join(stack.changes())
    assert "Nginx" in changes and "Redis" in changes and "Application" in changes
    assert stack.changes() == []
    _ready(30)


def test_it_comes_back_after_a_reboot_with_its_data(stack):
    item = _store("before the reboot")
    before = _started(stack)
    stack.ssh("demo", "sudo systemctl reboot", check=False)
    _until_rebooted(stack, before)
    _ready(120)
    assert _read(item).json()["name"] == "before the reboot"
    state = stack.ssh("demo", "systemctl is-system-running --wait", check=False).stdout.strip()
    assert state == "running", stack.ssh("demo", "systemctl --failed --no-legend").stdout
    assert stack.changes() == []


def _started(stack: Lab) -> str:
    """When PID 1 of the host started, in clock ticks."""
    return stack.ssh("demo", "cut -d' ' -f22 /proc/1/stat", check=False).stdout


def _until_rebooted(stack: Lab, before: str) -> None:
    for _ in range(120):
        if _started(stack) not in ("", before):
            return
        time.sleep(1)
    pytest.fail("the host did not come back after a reboot")
