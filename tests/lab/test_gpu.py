"""The role gpu on hosts without a card: what it refuses, what it leaves alone, its real packages; and a reboot within a run."""

from __future__ import annotations

import pytest
from tests.lab.conftest import ROOT, Lab

HOST = "gpubox"
INVENTORY = f"""
from lab import lab_host

_host = lab_host("{HOST}", "10.87.0.171", base_first_run_upgrade=False, **__DATA__)
gpu = [_host]
"""

OPERATIONS = """
import sys
sys.path.insert(0, {root!r})
from groundwork.preflight import preflight
from groundwork.rows import File
from operations import apt, files, gpu
from operations.gpu import Wanted
from operations.lock import lock
from operations.repository import components
from pyinfra.operations import server

preflight()
lock()
"""

REBOOT = """
files.table(name="Before", rows=[File("/run/before", content="before")], settings=None)
gpu.effective(name="Boot", allowed={allowed}, seconds=120)
files.table(name="After", rows=[File("/run/after", content="after")], settings=None)
server.shell(name="Lock", commands=["mkdir -p /run/groundwork; flock -n /run/groundwork/run.lock touch /run/unlocked; true"])
"""

# What the role does with a card, up to where there is need of one.
COMPONENTS = """
components(name="Repository", repository="groundwork-gpu", codename={suite!r}, components=["contrib", "non-free", "non-free-firmware"])
"""
DRIVER = COMPONENTS + """
gpu.driver(name="Driver", wanted=Wanted("debian", {branch}, open=False))
"""
LIBRARIES = COMPONENTS + """
apt.packages(name="Libraries", present={{"nvidia-smi": "{branch}.*"}}, held=["nvidia-smi"])
gpu.works(name="Driver works")
"""


def inventory(directory, **data: object) -> Lab:
    path = directory / "gpu_lab.py"
    path.write_text(INVENTORY.replace("__DATA__", repr(data)))
    return Lab(str(path))


@pytest.fixture(scope="module")
def box(tmp_path_factory) -> Lab:
    stack = inventory(tmp_path_factory.mktemp("gpu"), gpu_card=False)
    stack.fresh()
    return stack


def test_a_card_that_is_not_there_is_told_before_anything_is_done(box, tmp_path):
    done = inventory(tmp_path).deploy(check=False)
    assert done.returncode != 0
    assert f"gpu_card: {HOST} has no NVIDIA card" in done.stderr and "set gpu_card = False" in done.stderr
    assert "nothing was changed" in done.stderr and "Traceback" not in done.stderr
    assert box.ssh(HOST, "ls -d /var/lib/groundwork /etc/groundwork", check=False).stdout == ""


def test_a_box_without_a_card_gets_nothing_of_nvidia(box):
    box.deploy()
    assert box.changes() == []
    assert box.ssh(HOST, "dpkg-query -W -f '${Package}\\n' '*nvidia*'", check=False).stdout == ""
    assert box.ssh(HOST, "ls /etc/apt/sources.list.d/ /etc/apt/keyrings | grep -e nvidia -e groundwork-gpu", check=False).stdout == ""
    assert '"libnv";' in box.ssh(HOST, "apt-config dump Unattended-Upgrade::Package-Blacklist").stdout


def test_a_kernel_without_headers_is_told_and_nothing_of_nvidia_is_installed(box, tmp_path):
    """The lab's kernel is the controller's, which no archive has."""
    done = _run(box, tmp_path, DRIVER)
    assert done.returncode != 0
    assert "kernel headers are missing" in done.stderr and "Nothing of NVIDIA was installed" in done.stderr
    assert "linux-headers-" + box.ssh(HOST, "uname -r").stdout.strip() in done.stderr
    assert box.ssh(HOST, "dpkg-query -W -f '${Package}\\n' '*nvidia*'", check=False).stdout == ""


def test_debians_own_libraries_are_found_held_and_no_driver_is_told(box, tmp_path):
    done = _run(box, tmp_path, LIBRARIES)
    assert done.returncode != 0
    version = box.ssh(HOST, "dpkg-query -W -f '${source:Upstream-Version}' nvidia-smi").stdout
    assert f"the libraries are of {version}" in done.stderr, done.stderr
    assert "nvidia-smi says: NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver" in done.stderr
    assert box.ssh(HOST, "apt-mark showhold").stdout == "nvidia-smi\n"
    # The host's own sources are as they were, and apt has no complaint of what was added.
    assert "non-free" not in box.ssh(HOST, "cat /etc/apt/sources.list.d/debian.sources").stdout
    assert "W:" not in box.ssh(HOST, "sudo apt-get update 2>&1").stdout
    # The next one finds nothing to do, but that there is still no driver.
    again = _run(box, tmp_path, LIBRARIES)
    assert "installing" not in again.stderr and "groundwork-gpu.sources" not in again.stderr and "holding" not in again.stderr


def test_a_version_that_is_not_there_is_told_with_those_that_are(box, tmp_path):
    done = _run(box, tmp_path, LIBRARIES.replace('"{branch}.*"', '"{branch}.999.*"'))
    version = box.ssh(HOST, "dpkg-query -W -f '${Version}' nvidia-smi").stdout
    assert "no repository of this host has nvidia-smi in that version; there is" in done.stderr
    assert version in done.stderr.split("there is")[1]


def test_a_reboot_is_done_where_it_is_allowed_and_the_run_goes_on(box, tmp_path):
    """No module can be loaded here, so there is need for one."""
    before = _boot(box)
    done = _run(box, tmp_path, REBOOT, allowed=False)
    assert "a reboot is needed: the kernel has no nvidia module loaded. It was not done, because gpu_reboot is False" in done.stderr
    assert _boot(box) == before
    done = _run(box, tmp_path, REBOOT, allowed=True)
    assert done.returncode == 0, done.stderr
    assert "rebooting: the kernel has no nvidia module loaded" in done.stderr and "up again after" in done.stderr
    assert "This run is over here" not in done.stderr
    after = _boot(box)
    assert after not in ("", before)
    # /run is empty after a boot: the first file went with it, the second came after. The lock was taken again.
    assert box.ssh(HOST, "ls /run/before /run/after /run/unlocked", check=False).stdout == "/run/after\n"
    assert box.ssh(HOST, "systemctl is-system-running", check=False).stdout in ("running\n", "degraded\n")


def test_what_a_reboot_did_not_help_is_told_and_not_tried_again(box, tmp_path):
    before = _boot(box)
    done = _run(box, tmp_path, REBOOT, allowed=True)
    assert "the host was rebooted because the kernel has no nvidia module loaded, and it still is so" in done.stderr
    assert _boot(box) == before


def _run(box: Lab, tmp_path, operations: str, **more: object):
    """Run some of the role's operations on the box."""
    suite = box.ssh(HOST, ". /etc/os-release; echo $VERSION_CODENAME").stdout.strip()
    text = (OPERATIONS + operations).format(root=str(ROOT), suite=suite, branch={"bookworm": 535, "trixie": 550}[suite], **more)
    deploy = tmp_path / "operations.py"
    deploy.write_text(text)
    return box.pyinfra("-y", box.inventory, str(deploy), check=False)


def _boot(stack: Lab) -> str:
    return stack.ssh(HOST, "cat /proc/sys/kernel/random/boot_id").stdout
