"""The role gpu on a host without a card: what it refuses, what it leaves alone; and a reboot within a run."""

from __future__ import annotations

import pytest
from tests.lab.conftest import ROOT, Lab

HOST = "gpubox"
INVENTORY = f"""
from lab import lab_host

_host = lab_host("{HOST}", "10.87.0.171", base_first_run_upgrade=False, **__DATA__)
base = [_host]
"""

# What the role does where a driver asks for it, and between two operations that need the connection and the lock.
REBOOT = """
import sys
sys.path.insert(0, {root!r})
from groundwork.preflight import preflight
from operations import files, reboot
from operations.lock import lock
from groundwork.rows import File

preflight()
lock()
files.table(name="Before", rows=[File("/run/before", content="before")], settings=None)
reboot.reboot(name="Reboot", why="to see one", seconds=120)
files.table(name="After", rows=[File("/run/after", content="after")], settings=None)
"""


def inventory(directory, **data: object) -> Lab:
    path = directory / "gpu_lab.py"
    path.write_text(INVENTORY.replace("__DATA__", repr(data)))
    return Lab(str(path))


@pytest.fixture(scope="module")
def box(tmp_path_factory) -> Lab:
    stack = inventory(tmp_path_factory.mktemp("gpu"), base_firewall_log=False)
    stack.fresh()
    return stack


def test_a_reboot_in_a_run_is_waited_for_and_the_run_goes_on(box, tmp_path):
    deploy = tmp_path / "reboot.py"
    deploy.write_text(REBOOT.format(root=str(ROOT)))
    before = _boot(box)
    done = box.pyinfra("-y", box.inventory, str(deploy))
    assert "rebooting: to see one" in done.stderr and "up again after" in done.stderr
    assert "This run is over here" not in done.stderr
    assert _boot(box) not in ("", before)
    # /run is empty after a boot: the first file went with it, the second came after.
    assert box.ssh(HOST, "ls /run/before /run/after", check=False).stdout == "/run/after\n"
    assert box.ssh(HOST, "sudo systemctl is-system-running", check=False).stdout in ("running\n", "degraded\n")


def _boot(stack: Lab) -> str:
    return stack.ssh(HOST, "cat /proc/sys/kernel/random/boot_id").stdout
