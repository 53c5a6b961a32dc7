"""The role gpu: the branch that is chosen, its packages, what is refused, and what nvidia-smi's words mean."""

from __future__ import annotations

import configparser
import inspect
import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from pyinfra.api.exceptions import ConnectError

import facts.gpu
import operations.apt
import operations.report
from facts.gpu import REBOOTED, Available, Card, Cards, Driver, DriverState, Smi
from facts.machine import BOOT, SECURE_BOOT, Machine
from facts.packages import Apt, AptState, Installed
from groundwork.cuda import Build
from groundwork.rows import Absent
from groundwork.templates import render
from groundwork.topology import SettingsError
from operations import gpu, reboot
from operations.gpu import Wanted, explained, flavour, out_of_range, reason
from tasks import app, docker
from tasks import gpu as task
from tasks.gpu import CARDS, KEYS, RELEASES, Settings
from tests.unit.conftest import SYSTEMS, machine

# Device ids as pci.ids has them.
K80, M60, P40, V100, T4, A100, H100, RTX4090, B200 = "102d", "13f2", "1b38", "1db4", "1eb8", "20b0", "2330", "2684", "2901"


@pytest.fixture
def make(make_here):
    """`make("noble", A100, gpu_branch=570)`: a host with that card."""

    def made(codename: str = "noble", card: str | None = A100, groups=("gpu",), secure_boot: bool = False, **data):
        here = make_here(list(groups), codename, **data)
        here.machine = machine(codename, cards=(card,) if card else (), secure_boot=secure_boot)
        return here

    return made


def errors(here) -> list[str]:
    return list(here.settings(Settings).errors(here))


def wanted(here) -> Wanted:
    return here.settings(Settings).wanted(here)


# Which driver


@pytest.mark.parametrize(
    "codename, card, source, branch, open_module",
    [
        ("noble", A100, "ubuntu", 580, True),
        ("jammy", V100, "ubuntu", 580, False),
        ("noble", B200, "ubuntu", 580, True),
        ("noble", P40, "ubuntu", 580, False),
        ("bookworm", H100, "debian", 535, False),
        ("trixie", RTX4090, "debian", 550, False),
    ],
)
def test_the_branch_and_the_module_that_fit(make, codename, card, source, branch, open_module):
    here = make(codename, card)
    assert wanted(here) == Wanted(source, branch, open_module)
    assert errors(here) == []


def test_nvidias_own_repository_has_newer_ones_for_debian(make):
    here = make("bookworm", H100, gpu_repository="vendor")
    assert wanted(here) == Wanted("vendor", 580, True)
    found = here.settings(Settings).repository_for(here)
    assert found["uris"] == ["https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/"]
    assert found["key"].endswith("/3bf863cc.pub") and found["fingerprint"].endswith("3BF863CC")
    own = make("trixie", H100, gpu_repository="vendor", gpu_repository_url="https://mirror.example/cuda", gpu_repository_key="/k")
    found = own.settings(Settings).repository_for(own)
    assert (found["uris"], found["key"], found["fingerprint"]) == (["https://mirror.example/cuda/debian13/x86_64/"], "/k", None)
    assert set(KEYS) == set(RELEASES)


def test_ubuntus_modules_are_built_and_signed_for_the_hosts_kernels():
    assert Wanted("ubuntu", 580, True).packages("6.8.0-45-generic", ["generic-hwe-22.04", "6.8.0-45-generic"]) == {
        "nvidia-headless-no-dkms-580-server-open": None,
        "nvidia-utils-580-server": None,
        "linux-modules-nvidia-580-server-open-generic-hwe-22.04": None,
    }
    found = Wanted("ubuntu", 535, False, "535.274.02").packages("6.8.0-1016-aws", ["aws"])
    assert found == {
        "nvidia-headless-no-dkms-535-server": "535.274.02-*",
        "nvidia-utils-535-server": "535.274.02-*",
        "linux-modules-nvidia-535-server-aws": None,
    }


def test_debians_module_is_built_with_the_headers_of_the_kernel_that_runs():
    found = Wanted("debian", 550, False).packages("6.12.43+deb13-amd64")
    assert set(found) == {
        "nvidia-kernel-dkms", "libcuda1", "libnvidia-cfg1", "nvidia-smi", "nvidia-persistenced",
        "linux-headers-6.12.43+deb13-amd64", "linux-headers-amd64",
    }  # fmt: skip
    found = Wanted("vendor", 580, True, "580.95.05").packages("6.1.0-28-cloud-amd64")
    assert found["nvidia-driver-pinning-580.95.05"] is None
    assert found["nvidia-driver-cuda"] == found["nvidia-kernel-open-dkms"] == "580.95.05-*"
    assert "linux-headers-cloud-amd64" in found


def test_what_is_held():
    """A kernel must not come without its module: where the host builds it, headers come with each kernel."""
    debian, ubuntu = Wanted("debian", 550, False), Wanted("ubuntu", 580, True)
    packages = debian.packages("6.12.43+deb13-amd64")
    assert set(packages) - set(debian.held(packages, ["amd64"])) == {"linux-headers-6.12.43+deb13-amd64", "linux-headers-amd64"}
    packages = ubuntu.packages("6.8.0-45-generic", ["virtual"])
    assert set(ubuntu.held(packages, ["virtual"])) - set(packages) == {"linux-image-virtual"}


@pytest.fixture
def installs(monkeypatch):
    """`installs(wanted, state, lacks)`: what `driver` would do where apt is in a state, and knows one package not."""

    def run(wanted: Wanted, state: AptState, lacks: str = "") -> list[str]:
        available = set(wanted.packages("6.8.0-45-generic")) - {lacks}
        answers = {Driver: DriverState("6.8.0-45-generic", ["generic"]), Apt: state, Installed: state.versions, Available: available}
        fake = SimpleNamespace(get_fact=lambda fact, **_: answers[fact], log=lambda text: None, run_shell_command=lambda *_, **__: (True, None))
        for module in (gpu, operations.report, operations.apt):
            monkeypatch.setattr(module, "host", fake)
        for module in (gpu, operations.apt):
            monkeypatch.setattr(module, "state", SimpleNamespace(is_executing=True))
        return [str(command) for command in gpu.driver._inner(wanted)]

    return run


def test_a_planned_upgrade_takes_driver_and_module_together(installs):
    old = {name: "580.65.06-0ubuntu0.24.04.1" for name in Wanted("ubuntu", 580, True).packages("6.8.0-45-generic")}
    held = {*old, "linux-image-generic"}
    there = AptState(versions=old, held=held, lists_age=60)
    assert installs(Wanted("ubuntu", 580, True), there) == []
    assert installs(Wanted("ubuntu", 580, True, "580.65.06"), there) == []
    checked, installed, holding = installs(Wanted("ubuntu", 580, True, "580.95.05"), there)
    assert "'nvidia-utils-580-server=580.95.05-*'" in checked and "apt-cache madison" in checked
    assert "'nvidia-utils-580-server=580.95.05-*'" in installed and " linux-modules-nvidia-580-server-open-generic" in installed
    assert holding.startswith("apt-mark hold ") and "linux-image" not in holding  # that one is held still
    # Another branch is another set of packages.
    first = installs(Wanted("ubuntu", 595, True), there)
    assert any("install nvidia-headless-no-dkms-595-server-open" in command for command in first)


@pytest.mark.parametrize(
    "wanted, lacks, says",
    [
        (Wanted("debian", 535, False), "linux-headers-6.8.0-45-generic", "kernel headers are missing"),
        (Wanted("ubuntu", 999, True), "nvidia-utils-999-server", "no repository of this host has nvidia-utils-999-server (driver 999"),
    ],
)
def test_what_no_repository_has_is_told_and_nothing_installed(installs, wanted, lacks, says):
    [stopped] = installs(wanted, AptState(lists_age=60), lacks)
    assert says in stopped and "Nothing of NVIDIA was installed" in stopped


@pytest.mark.parametrize(
    "kernel, images, expected",
    [
        ("6.8.0-45-generic", [], "generic"),
        ("6.8.0-45-generic", ["generic"], "generic"),
        ("6.8.0-45-generic", ["virtual"], "generic"),
        ("6.5.0-45-generic", ["generic", "virtual-hwe-22.04"], "generic-hwe-22.04"),
        ("6.8.0-1016-aws", ["generic", "aws"], "aws"),
        ("6.1.0-28-amd64", ["amd64"], "amd64"),
        ("6.18.44-fc-v669", [], "fc-v669"),
    ],
)
def test_the_flavour_of_the_kernel(kernel, images, expected):
    assert flavour(kernel, images) == expected


# What is refused


@pytest.mark.parametrize(
    "codename, card, data, says",
    [
        ("noble", None, {}, "gpu_card: one has no NVIDIA card"),
        ("noble", K80, {}, "gpu_branch: the card 10de:102d (Kepler or older) has no driver newer than 470, and ubuntu noble has 535, 570, 580"),
        ("noble", M60, {"gpu_branch": 590}, "has no driver newer than 580, and gpu_branch = 590"),
        ("bookworm", B200, {}, 'needs driver 570 or newer, and debian bookworm has 535. NVIDIA\'s own repository has 580: gpu_repository = "vendor"'),
        ("noble", B200, {"gpu_branch": 535}, "needs driver 570 or newer, and gpu_branch = 535"),
        ("noble", B200, {"gpu_module": "proprietary"}, "gpu_module: the card 10de:2901 (Blackwell or newer) has no proprietary kernel module"),
        ("noble", V100, {"gpu_module": "open"}, "has no open kernel module"),
        ("trixie", A100, {"gpu_branch": 580}, "gpu_branch: debian trixie has 550, and gpu_branch = 580. NVIDIA's own"),
        ("noble", A100, {"gpu_repository": "vendor"}, "gpu_repository: on Ubuntu"),
        ("noble", A100, {"gpu_clocks": [1410, 210]}, "gpu_clocks: 1410 MHz, the least, is more than 210"),
        ("noble", A100, {"gpu_branch": 570, "gpu_version": "580.95.05"}, "gpu_version: 580.95.05 is not of the driver branch 570: set gpu_branch = 580"),
    ],
)
def test_one_error_says_what_is_wrong(make, codename, card, data, says):
    [error] = errors(make(codename, card, **data))
    assert says in error


def test_secure_boot_takes_signed_modules_only(make):
    [error] = errors(make("bookworm", A100, secure_boot=True))
    assert "Secure Boot is on in one" in error and "take Ubuntu" in error
    assert errors(make("noble", A100, secure_boot=True)) == []
    assert errors(make("bookworm", None, secure_boot=True, gpu_card=False)) == []


def test_a_driver_too_old_for_a_roles_cuda_build(make, monkeypatch):
    monkeypatch.setattr(app.Settings, "cuda_build", lambda self, here: Build("torch", "13.0"))
    groups, source = ("gpu", "app"), {"app_source": "examples/app"}
    too_old = "app: its lock has torch for CUDA 13.0, which needs driver 580 or newer, and "
    assert errors(make("noble", A100, groups, gpu_branch=535, **source)) == [f"{too_old}gpu_branch = 535"]
    [error] = errors(make("bookworm", A100, groups, **source))
    assert error == f'{too_old}debian bookworm has 535. NVIDIA\'s own repository has 580: gpu_repository = "vendor"'
    [error] = errors(make("noble", A100, groups, gpu_version="580.50.01", **source))
    assert error == "app: its lock has torch for CUDA 13.0, which needs driver 580.65.06 or newer, and gpu_version = 580.50.01"
    assert errors(make("noble", A100, groups, **source)) == []
    assert errors(make("noble", None, groups, gpu_card=False, **source)) == []
    # What is set is told before a host is asked what it is.
    here = make("noble", A100, groups, gpu_branch=535, **source)
    here.machine = None
    assert errors(here) == [f"{too_old}gpu_branch = 535"]


@pytest.mark.parametrize(
    "data",
    [
        {"gpu_branch": 12},
        {"gpu_version": "latest"},
        {"gpu_repository": "ppa"},
        {"gpu_power_limit": 0},
        {"gpu_clocks": [1410]},
        {"gpu_container_repository": "https://mirror.example/"},
    ],
)
def test_values_that_are_refused(make, data):
    with pytest.raises(SettingsError, match=next(iter(data))):
        make(**data).settings(Settings)


def test_cards_are_in_the_order_of_their_ids():
    assert [item[0] for item in CARDS] == sorted(item[0] for item in CARDS)


# Files


def rendered(here, end: str) -> str:
    settings = here.settings(Settings)
    row = next(row for row in settings.files(here) if row.path.endswith(end))
    return render(row, settings, here, str).decode()


def blacklisted(here) -> list[re.Pattern]:
    return [re.compile(name) for name in re.findall(r'^    "(.+)";$', rendered(here, "53groundwork-gpu"), re.M)]


def test_unattended_upgrades_leave_driver_and_cuda_alone(make):
    on_debian, on_ubuntu = blacklisted(make("bookworm")), blacklisted(make("noble"))
    driver = ("nvidia-utils-580-server", "libnvidia-compute-580-server", "libcuda1", "cuda-toolkit-13-0", "libnvcuvid1")
    for name in driver:
        assert any(pattern.match(name) for pattern in on_debian), name
    # On Ubuntu a kernel and its module are built for each other; Debian's host builds a module for each kernel.
    kernel = "linux-image-6.8.0-48-generic"
    assert any(pattern.match(kernel) for pattern in on_ubuntu) and not any(pattern.match(kernel) for pattern in on_debian)
    assert not any(pattern.match(name) for pattern in on_ubuntu for name in ("openssl", "linux-libc-dev", "libc6"))


def test_without_a_card_there_is_nothing_but_that(make):
    here = make("noble", None, ("gpu", "docker"), gpu_card=False)
    settings = here.settings(Settings)
    assert [row.path for row in settings.files(here)] == [settings.mark]
    assert settings.container_runtimes(here) == {}


def test_a_version_is_pinned_and_otherwise_no_pin_is_left(make):
    path = "/etc/apt/preferences.d/groundwork-gpu"
    here = make()
    assert Absent(path) in here.settings(Settings).files(here)
    assert "Pin: version 580.95.05-*" in rendered(make(gpu_version="580.95.05"), "preferences.d/groundwork-gpu")


def unit(here, end: str) -> configparser.ConfigParser:
    class Lines(dict):
        def __setitem__(self, key, value):
            super().__setitem__(key, [*self[key], *value] if isinstance(value, list) and isinstance(self.get(key), list) else value)

    parser = configparser.RawConfigParser(strict=False, dict_type=Lines)
    parser.optionxform = str
    parser.read_string(rendered(here, end))
    return parser


def test_limits_are_set_seen_and_taken_back(make):
    set_ = unit(make(gpu_power_limit=250, gpu_clocks=[210, 1410]), "groundwork-gpu.service")["Service"]["ExecStart"]
    assert "/usr/bin/nvidia-smi -pl 250" in set_ and "/usr/bin/nvidia-smi -lgc 210,1410" in set_ and "grep -vx 250.00" in set_
    none = unit(make(), "groundwork-gpu.service")["Service"]["ExecStart"]
    assert none.startswith("/usr/bin/nvidia-smi -pm 1") and set_.startswith("/usr/bin/nvidia-smi -pm 1")
    assert "nvidia-smi -rgc" in none and "-pl $$watts" in none and "-pl 2" not in none


@pytest.mark.parametrize("card, runtimes", [(True, {"nvidia": {"path": "nvidia-container-runtime"}}), (False, None)])
def test_docker_knows_the_runtime(make, card, runtimes):
    here = make("noble", A100, ("gpu", "docker"), gpu_card=card)
    settings = here.settings(docker.Settings)
    row = next(row for row in settings.files(here) if row.path == docker.CONFIGURATION)
    assert json.loads(render(row, settings, here, str)).get("runtimes") == runtimes


def test_the_container_toolkits_repository(make):
    found = make().settings(Settings).containers_for()
    assert found["uris"] == ["https://nvidia.github.io/libnvidia-container/stable/deb/$(ARCH)"]
    assert found["key"] == "https://nvidia.github.io/libnvidia-container/gpgkey" and found["fingerprint"].endswith("F796ECB0")
    own = make(gpu_container_repository="https://mirror.example/nct", gpu_container_repository_key="https://mirror.example/key")
    assert own.settings(Settings).containers_for()["fingerprint"] is None


# What a host says


def test_cards_are_part_of_what_a_machine_is():
    found = Machine().process(
        "distribution=ubuntu codename=noble architecture=amd64 cores=2 memory=4194304 container=none card=2684 card=20b0 "
        "secure_boot=yes disk_free=20971520".split()
    )
    assert found.cards == ("2684", "20b0") and found.secure_boot and not found.booting


@pytest.mark.parametrize("byte, secure", [(b"\1", True), (b"\0", False)])
def test_a_card_is_a_display_of_nvidias_and_its_sound_is_none(tmp_path, byte, secure):
    """The question itself, asked of directories such as sysfs has."""
    devices = {"00": ("0x10de", "0x030000", "0x2684"), "01": ("0x10de", "0x040300", "0x22ba"), "02": ("0x10de", "0x030200", "0x20b0"),
               "03": ("0x8086", "0x030000", "0xa780")}  # fmt: skip
    for name, values in devices.items():
        (tmp_path / name).mkdir()
        for file, value in zip(("vendor", "class", "device"), values):
            (tmp_path / name / file).write_text(f"{value}\n")
    (tmp_path / "secure").write_bytes(b"\6\0\0\0" + byte)
    command = Machine().command().replace("/sys/bus/pci/devices", str(tmp_path)).replace(SECURE_BOOT, str(tmp_path / "secure"))
    said = subprocess.run(["sh", "-c", command], capture_output=True, text=True).stdout.splitlines()
    assert [line for line in said if line.startswith(("card=", "secure"))] == ["card=2684", "card=20b0", *(["secure_boot=yes"] if secure else [])]


def test_the_drivers_parts():
    lines = "kernel=6.8.0-45-generic|image=generic|image=unsigned-6.8.0-45-generic|loaded=580.65.06|module=580.95.05|libraries=580.95.05"
    found = Driver().process(lines.split("|"))
    assert found == DriverState("6.8.0-45-generic", ["generic"], False, "580.65.06", "580.95.05", "580.95.05")
    assert Driver().process(["kernel=6.1.0-28-amd64", "nouveau=yes", "stale_initramfs=yes", "rebooted=why = so"]) == DriverState(
        "6.1.0-28-amd64", nouveau=True, stale_initramfs=True, rebooted="why = so"
    )


@pytest.mark.parametrize("old, stale", [("initrd.img-6.1.0-28-amd64", True), ("initrd.img-6.1.0-28-amd64.bak", False), ("initrd.img-5.10.0-8-amd64.old-dkms", False)])
def test_of_initramfs_only_those_of_kernels_count(tmp_path, old, stale):
    """update-initramfs makes no leftover anew: each run would do it, and say that it changed the host."""
    for name in ("vmlinuz-6.1.0-28-amd64", "initrd.img-6.1.0-28-amd64", "blacklist", old):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (2e9, 2e9) if name == "initrd.img-6.1.0-28-amd64" else (1e9, 1e9))
    os.utime(tmp_path / old, (5e8, 5e8))
    command = Driver().command(str(tmp_path / "blacklist")).replace("/boot/", f"{tmp_path}/").replace("find /boot ", f"find {tmp_path} ")
    said = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert Driver().process(said.stdout.splitlines()).stale_initramfs == stale


def test_what_apt_could_install():
    # `apt-cache policy`, of bookworm's apt.
    lines = [
        "linux-headers-amd64:", "  Installed: (none)", "  Candidate: 6.1.158-1", "  Version table:",
        "linux-headers-6.18.44-fc-v669:", "  Installed: (none)", "  Candidate: (none)", "  Version table:",
    ]  # fmt: skip
    assert Available().process(lines) == {"linux-headers-amd64"}


# From the documented format (nvidia-smi(1), --query-gpu and --format=csv,noheader,nounits): no card was at hand.
GOOD = ["0, NVIDIA A100-SXM4-80GB, 580.95.05, Enabled, 100.00, 400.00, 1410", "1, NVIDIA GeForce GT 1030, 580.95.05, Disabled, [N/A], [N/A], [N/A]"]
# Seen with Debian's nvidia-smi 535.309.01 and 550.163.01 on hosts without a card.
NO_DRIVER = [
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA driver is installed and running.",
    "",
]
MISMATCH = ["Failed to initialize NVML: Driver/library version mismatch", "NVML library version: 580.95"]


def test_what_nvidia_smi_says():
    first, second = Smi().process([*GOOD, "exit=0"]).cards
    assert first == Card(0, "NVIDIA A100-SXM4-80GB", "580.95.05", True, (100.0, 400.0), 1410)
    assert second == Card(1, "NVIDIA GeForce GT 1030", "580.95.05", False, None, None)
    assert Smi().process([*NO_DRIVER, "exit=9"]) == Cards(error=NO_DRIVER[0])
    assert Smi().process(["exit=124"]).error == "nvidia-smi ended with exit=124"
    assert Smi().process(["exit=0"]) == Cards()


def test_why_a_driver_does_not_work():
    agree = DriverState("6.8.0-45-generic", loaded="580.95.05", module="580.95.05", libraries="580.95.05")
    assert explained(Smi().process([*GOOD, "exit=0"]), agree) == "" == reason(agree)
    old = DriverState("6.8.0-45-generic", loaded="580.65.06", module="580.95.05", libraries="580.95.05")
    # Where the kernel does not tell, nvidia-smi does.
    assert explained(Smi().process([*MISMATCH, "exit=18"]), DriverState(libraries="580.95.05")).startswith("Driver/library version mismatch")
    for found in (Smi().process([*MISMATCH, "exit=18"]), Smi().process([*GOOD, "exit=0"])):
        said = explained(found, old)
        assert said.startswith("Driver/library version mismatch: the kernel has the module of driver 580.65.06") and "gpu_reboot=True" in said
    assert reason(old) == "the kernel has the module of driver 580.65.06, and the libraries are of 580.95.05"
    none = DriverState("6.8.0-45-generic", libraries="580.95.05")
    assert "The module for kernel 6.8.0-45-generic is not there" in explained(Smi().process([*NO_DRIVER, "exit=9"]), none)
    assert reason(none) == "the kernel has no nvidia module loaded"
    assert reason(DriverState(nouveau=True)).startswith("nouveau")
    assert "finds no card" in explained(Cards(), agree)


def test_limits_are_looked_at_before_they_are_on_disk(make, monkeypatch):
    """Or the next boot would set what was refused."""
    done = []

    def recorded(name: str) -> None:
        module, operation = name.split(".")
        monkeypatch.setattr(getattr(task, module), operation, lambda **given: done.append((name, given)))

    for name in ("files.table", "driver.driver", "driver.effective", "driver.works", "driver.limits", "service.services"):
        recorded(name)
    monkeypatch.setattr(task, "_source", lambda *_: None)
    here = make(gpu_power_limit=250)
    inspect.unwrap(task.gpu)(here.settings(Settings), here)
    limits = next(n for n, (name, _) in enumerate(done) if name == "driver.limits")
    written = next(n for n, (name, given) in enumerate(done) if task.UNIT in given.get("rows", ()))
    assert limits < written


def test_limits_that_a_card_can_not_have():
    able, unable = Smi().process([*GOOD, "exit=0"]).cards
    assert list(out_of_range(able, 250, (210, 1410))) == []
    assert list(out_of_range(able, 450, None)) == ["gpu_power_limit: 450 W is not between 100 and 400 W, which card 0 (NVIDIA A100-SXM4-80GB) can have"]
    assert list(out_of_range(able, None, (210, 1500))) == ["gpu_clocks: 1500 MHz is more than the 1410 MHz that card 0 (NVIDIA A100-SXM4-80GB) can have"]
    [error] = out_of_range(unable, 100, None)
    assert "has no power limit that could be set" in error


def test_every_system_has_a_branch(make):
    for _, codename in SYSTEMS:
        assert wanted(make(codename)).branch >= 535


# The boot


@pytest.fixture
def boots(monkeypatch):
    """`boots([before, after loading], allowed)`: what `effective` would do on a host that says so, as texts."""

    def run(states: list[DriverState], allowed: bool = True) -> list[str]:
        answers = list(states)
        fake = SimpleNamespace(get_fact=lambda fact, **_: answers.pop(0), log=lambda text: None)
        monkeypatch.setattr(gpu, "host", fake)
        monkeypatch.setattr(operations.report, "host", fake)
        monkeypatch.setattr(gpu, "state", SimpleNamespace(is_executing=True))
        monkeypatch.setattr(reboot, "current", lambda: SimpleNamespace(data={}))
        return [str(command) for command in gpu.effective._inner(allowed, 600)]

    return run


LOADED = DriverState("k", loaded="580.95.05", module="580.95.05", libraries="580.95.05")
OLD = DriverState("k", loaded="580.65.06", module="580.95.05", libraries="580.95.05")
ON_DISK = DriverState("k", module="580.95.05", libraries="580.95.05")


def test_what_runs_is_left_alone(boots):
    assert boots([LOADED]) == []
    assert boots([LOADED], allowed=False) == []


def test_a_module_that_can_be_loaded_needs_no_reboot(boots):
    [loading] = boots([ON_DISK, LOADED], allowed=False)
    assert "modprobe nvidia" in loading


def test_a_reboot_where_only_that_helps_and_only_once(boots):
    for now in (OLD, DriverState("k", nouveau=True, module="580.95.05", libraries="580.95.05")):
        marked, rebooted = boots([now])
        assert REBOOTED in marked and "_reboot" in rebooted
        [stopped] = boots([now], allowed=False)
        assert "a reboot is needed" in stopped and "--data gpu_reboot=True" in stopped
        [again] = boots([replace(now, rebooted=reason(now))])
        assert "it still is so" in again and REBOOTED in again


@pytest.mark.parametrize("boot, counts", [("another", "why"), (Path(BOOT).read_text().strip(), "")])
def test_a_reboot_counts_once_it_was(tmp_path, monkeypatch, boot, counts):
    (tmp_path / "rebooted").write_text(f"why\n{boot}\n")
    monkeypatch.setattr(facts.gpu, "REBOOTED", str(tmp_path / "rebooted"))
    said = subprocess.run(["sh", "-c", Driver().command(str(tmp_path / "none"))], capture_output=True, text=True, check=True)
    assert Driver().process(said.stdout.splitlines()).rebooted == counts


def test_nouveau_goes_out_of_the_initramfs_first(boots):
    commands = boots([DriverState("k", nouveau=True, stale_initramfs=True)])
    assert commands[0] == "update-initramfs -u -k all" and "_reboot" in commands[-1]


def test_a_host_that_only_answers_again_is_not_up_yet(monkeypatch):
    clock, answers, connects = [0.0], ["before", "", None, "after"], []

    def connect(**_):
        connects.append(1)
        if answers[0] is None:
            answers.pop(0)
            raise ConnectError("refused")

    fake = SimpleNamespace(connect=connect)
    monkeypatch.setattr(reboot, "_hang_up", lambda host: None)
    monkeypatch.setattr(reboot, "_boot", lambda host: answers.pop(0))
    monkeypatch.setattr(reboot, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=lambda s: clock.__setitem__(0, clock[0] + s)))
    assert reboot._comes_up(fake, "before", 60) and len(connects) == 4
    answers[:] = ["before"] * 99
    assert not reboot._comes_up(fake, "before", 60)


def test_no_reboot_in_the_run_that_moves_sshd(boots, monkeypatch):
    boots([LOADED])
    for port, says in ((22, "moves sshd from port 22 to 2222"), (2222, "_reboot")):
        here = SimpleNamespace(data={"ssh_port": port, "base_ssh_port": 2222})
        monkeypatch.setattr(reboot, "current", lambda here=here: here)
        [command] = reboot.commands("why", 60)
        assert says in str(command)
