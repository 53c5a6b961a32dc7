"""NVIDIA's driver: its packages, the boot that it takes effect with, and whether it works."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import Iterable

from pyinfra import host, state
from pyinfra.api import StringCommand, operation
from pyinfra.api.operation import OperationMeta

from facts.gpu import REBOOTED, Available, Cards, Driver, DriverState, Smi
from facts.machine import BOOT
from operations import apt, reboot
from operations.report import report, stop

BLACKLIST = "/etc/modprobe.d/groundwork-nouveau.conf"


@dataclass(frozen=True)
class Wanted:
    """Which driver."""

    source: str
    """Whose packages: ubuntu, debian, or vendor for NVIDIA's own on Debian."""
    branch: int
    open: bool
    """The open kernel module, which is for Turing and newer, and the only one from Blackwell on."""
    version: str | None = None
    """Exact version such as 580.95.05; None for any of the branch."""

    @property
    def builds(self) -> bool:
        """Whether the host builds the module itself (DKMS); Ubuntu has it built and signed."""
        return self.source != "ubuntu"

    def packages(self, kernel: str, images: Iterable[str] = ()) -> dict[str, str | None]:
        """Packages without a desktop's, by name -> version.

        Args:
            kernel: `uname -r`.
            images: kernels' metapackages that are installed.
        """
        version = f"{self.version}-*" if self.version else None
        if not self.builds:
            server, module = f"{self.branch}-server", f"{self.branch}-server{'-open' if self.open else ''}"
            return {
                f"nvidia-headless-no-dkms-{module}": version,
                f"nvidia-utils-{server}": version,
                f"linux-modules-nvidia-{module}-{flavour(kernel, images)}": None,
            }
        headers = {f"linux-headers-{kernel}": None, f"linux-headers-{flavour(kernel)}": None}
        if self.source == "vendor":
            return {
                f"nvidia-driver-pinning-{self.version or self.branch}": None,
                "nvidia-driver-cuda": version,
                f"nvidia-kernel-{'open-' if self.open else ''}dkms": version,
                "nvidia-persistenced": None,
                **headers,
            }
        return {
            f"nvidia-{'open-' if self.open else ''}kernel-dkms": version,
            "libcuda1": version,
            "libnvidia-cfg1": version,
            "nvidia-smi": version,
            "nvidia-persistenced": None,
            **headers,
        }

    def held(self, packages: Iterable[str], images: Iterable[str]) -> list[str]:
        """Those that are upgraded by plan only. Where the host builds the module, kernels and their headers come as they
        do; where it does not, a kernel must not come without its module."""
        if self.builds:
            return [name for name in packages if not name.startswith("linux-")]
        return [*packages, *(f"linux-image-{image}" for image in images if not image[0].isdigit())]


def flavour(kernel: str, images: Iterable[str] = ()) -> str:
    """Which line of kernels a host follows: generic, aws, generic-hwe-22.04, cloud-amd64.

    Args:
        kernel: `uname -r`: 6.8.0-45-generic, 6.1.0-28-cloud-amd64, 6.12.43+deb13-amd64.
        images: kernels' metapackages that are installed; the one for the running kernel says more than its name.
    """
    found = re.match(r"[^-]+-(?:\d+-)?(.+)", kernel)
    name = found.group(1) if found else kernel
    own = [image.replace("virtual", "generic") for image in images]  # of the same kernel, for virtual machines
    return max((image for image in own if image.split("-")[0] == name.split("-")[0]), key=len, default=name)


@operation()
def driver(wanted: Wanted):
    """Install the driver's packages and hold them: those of the kernel that runs, or nothing.

    Args:
        wanted: which driver.
    """
    now = host.get_fact(Driver, blacklist=BLACKLIST) or DriverState()
    packages = wanted.packages(now.kernel, now.images)
    found = apt.known(packages)
    missing = [name for name in packages if name not in found.versions]
    if missing and state.is_executing:
        found = yield from apt.fresh_lists(found)
        available = host.get_fact(Available, packages=missing)
        if lacking := [name for name in missing if name not in available]:
            yield stop(_not_available(wanted, now.kernel, lacking))
            return
    held = wanted.held(packages, now.images)
    yield from list(apt.install(packages, found, held=held, setting="gpu_version", together=True))


def _not_available(wanted: Wanted, kernel: str, lacking: list[str]) -> str:
    headers = [name for name in lacking if name.startswith("linux-headers-")]
    if headers == lacking:
        return (
            f"kernel headers are missing: the module is built on the host for its kernel {kernel}, and no repository of it has "
            f"{' or '.join(headers)}. Nothing of NVIDIA was installed. Where apt has a newer kernel: `apt-get upgrade`, reboot, "
            "and run again; for a kernel of your own install its headers"
        )
    return (
        f"no repository of this host has {', '.join(lacking)} (driver {wanted.branch}, kernel {kernel}): see gpu_branch and "
        "gpu_repository. Nothing of NVIDIA was installed"
    )


# The boot that it takes effect with


def reason(now: DriverState) -> str:
    """Why the installed driver is not the one that runs; empty where it is."""
    if now.nouveau:
        return "nouveau, the kernel's own driver, is loaded and has the card"
    if not now.loaded:
        return "the kernel has no nvidia module loaded"
    if now.libraries and now.loaded != now.libraries:
        return f"the kernel has the module of driver {now.loaded}, and the libraries are of {now.libraries}"
    return ""


@operation()
def effective(allowed: bool, seconds: int, after: Iterable[OperationMeta] = ()):
    """Make the installed driver the one that runs: by loading it, or by a reboot where that must be.

    Args:
        allowed: a reboot is; without it the run stops and says what to do.
        seconds: how long the reboot may take.
        after: operations of this run that may change the driver.
    """
    if not state.is_executing and any(meta.will_change for meta in after):
        yield "true"  # a prediction: what was just installed will have to be loaded
        return
    now = host.get_fact(Driver, blacklist=BLACKLIST) or DriverState()
    if now.stale_initramfs:
        report("initramfs: made anew, without nouveau")
        yield "update-initramfs -u -k all"
    if not now.nouveau and not now.loaded and now.module:
        report(f"module of driver {now.module}: loaded")
        yield "modprobe nvidia 2>/dev/null || true"
        now = host.get_fact(Driver, blacklist=BLACKLIST) or DriverState()
    why = reason(now)
    if not why:
        return
    if now.rebooted == why:
        yield stop(
            f"the host was rebooted because {why}, and it still is so. On the host: `dkms status`, `modprobe -v nvidia`, "
            f"`journalctl -k -g 'nvidia|NVRM|nouveau'`. To have it rebooted once more: `rm {REBOOTED}`"
        )
    elif not allowed:
        yield stop(
            f"a reboot is needed: {why}. It was not done, because gpu_reboot is False. Reboot the host when it suits, and run "
            "again; or --data gpu_reboot=True"
        )
    else:
        yield f"mkdir -p $(dirname {REBOOTED}) && {{ echo {shlex.quote(why)}; cat {BOOT}; }} >{REBOOTED}"
        yield from reboot.commands(why, seconds)


# Whether it works


@operation()
def works():
    """Stop where the cards can't be used; is never a change."""
    if not state.is_executing:
        return
    now = host.get_fact(Driver, blacklist=BLACKLIST) or DriverState()
    if problem := explained(host.get_fact(Smi) or Cards(), now):
        yield stop(problem)
    elif now.rebooted:
        host.run_shell_command(StringCommand("rm", "-f", REBOOTED), _sudo=True)


def explained(found: Cards, now: DriverState) -> str:
    """What is wrong with the driver, in words; empty for nothing."""
    mismatch = "Driver/library version mismatch" in found.error
    if mismatch or (now.loaded and now.libraries and now.loaded != now.libraries):
        return (
            f"Driver/library version mismatch: the kernel has the module of driver {now.loaded or 'unknown'}, and the libraries "
            f"on disk are of {now.libraries or 'unknown'}: packages were upgraded, and the module goes on until a reboot. What "
            "runs on the GPU goes on; what is started now gets none. Reboot the host, or run again with --data gpu_reboot=True"
        )
    if found.error:
        return (
            f"nvidia-smi says: {found.error}. The module for kernel {now.kernel} is {now.module or 'not there'}, loaded is "
            f"{now.loaded or 'none'}, the libraries are of {now.libraries or 'none'}. On the host: `dkms status`, `journalctl -k -g NVRM`"
        )
    if not found.cards:
        return "nvidia-smi finds no card: `journalctl -k -g NVRM` on the host says why the driver does not take it"
    return ""


@operation()
def limits(power: int | None, clocks: tuple[int, int] | None):
    """Stop where a card can't have the limits that are set; is never a change. Says nothing where there is no driver yet.

    Args:
        power: watts.
        clocks: least and most of the graphics clock: MHz.
    """
    found = (host.get_fact(Smi) or Cards()).cards if power or clocks else []
    if wrong := [problem for card in found for problem in out_of_range(card, power, clocks)]:
        yield stop(*wrong, "Nothing was changed on the cards")


def out_of_range(card, power: int | None, clocks: tuple[int, int] | None) -> Iterable[str]:
    """What a card can't have, a sentence each."""
    who = f"card {card.index} ({card.name})"
    if power and card.power is None:
        yield f"gpu_power_limit: {who} has no power limit that could be set: take it out"
    elif power and not card.power[0] <= power <= card.power[1]:
        yield f"gpu_power_limit: {power} W is not between {card.power[0]:g} and {card.power[1]:g} W, which {who} can have"
    if clocks and card.clock is not None and clocks[1] > card.clock:
        yield f"gpu_clocks: {clocks[1]} MHz is more than the {card.clock} MHz that {who} can have"
