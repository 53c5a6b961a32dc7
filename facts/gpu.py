"""NVIDIA's driver on a host: what is loaded, what is installed, and what the cards say."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

from pyinfra.api import FactBase

from facts.machine import BOOT

REBOOTED = "/var/lib/groundwork/gpu-rebooted"
"""Why the host was rebooted for its driver, and the id of the boot before; removed once the driver works."""


@dataclass
class DriverState:
    """What one question gives."""

    kernel: str = ""
    """`uname -r`: 6.8.0-45-generic."""
    images: list[str] = field(default_factory=list)
    """Kernels' metapackages, without linux-image-: generic, aws, generic-hwe-22.04."""
    nouveau: bool = False
    """The kernel's own driver is loaded, and has the card."""
    loaded: str = ""
    """Version of the module in the kernel; empty for none."""
    module: str = ""
    """Version of the module on disk for the running kernel."""
    libraries: str = ""
    """Version of the libraries on disk."""
    stale_initramfs: bool = False
    """An initramfs is older than what says that nouveau stays out."""
    rebooted: str = ""
    """Why it was rebooted, if that has not helped yet."""


class Driver(FactBase):
    """The driver's parts, by their versions.

    Args of the command:
        blacklist: the file that keeps nouveau out.
    """

    default = DriverState
    requires_command = None

    def command(self, blacklist: str) -> str:
        path = shlex.quote(blacklist)
        return (
            'kernel=$(uname -r); echo "kernel=$kernel"; '
            "dpkg-query -W -f='${db:Status-Status} ${Package}\\n' 'linux-image-*' 2>/dev/null | "
            "sed -n 's/^installed linux-image-\\([a-z]\\)/image=\\1/p'; "
            "[ -d /sys/module/nouveau ] && echo nouveau=yes; "
            "sed 's/^/loaded=/' /sys/module/nvidia/version 2>/dev/null; "
            # Debian's file has another name, which modprobe knows and modinfo does not.
            "PATH=$PATH:/usr/sbin:/sbin; for name in nvidia nvidia-current-open nvidia-current; do "
            "modinfo -F version $name 2>/dev/null && break; done | sed 's/^/module=/'; "
            # The soname is a link to the file that has the version in its name; on Debian by way of an alternative.
            "for link in /usr/lib/*-linux-gnu/libnvidia-ml.so.1; do readlink -e $link; done | "
            "sed -n 's/.*libnvidia-ml\\.so\\./libraries=/p'; "
            # Of kernels that are there: update-initramfs makes no copy (*.bak, *.old-dkms) anew.
            f"[ -e {path} ] && for image in /boot/vmlinuz-*; do find \"/boot/initrd.img-${{image#/boot/vmlinuz-}}\" ! -newer {path}; "
            "done 2>/dev/null | grep -q . && echo stale_initramfs=yes; "
            f"grep -qsxF $(cat {BOOT}) {REBOOTED} || sed -n '1s/^/rebooted=/p' {REBOOTED} 2>/dev/null; true"
        )

    def process(self, output):
        found = DriverState()
        for line in output:
            name, _, value = line.partition("=")
            if name == "image":
                if not value.startswith("unsigned-"):
                    found.images.append(value)
            elif name in ("nouveau", "stale_initramfs"):
                setattr(found, name, True)
            elif name in ("kernel", "loaded", "module", "libraries", "rebooted"):
                setattr(found, name, value)
        return found


class Available(FactBase):
    """Which of some packages apt could install, or has: {name}. Asks apt's lists as they are."""

    default = set
    requires_command = None

    def command(self, packages: list[str]) -> str:
        return f"LC_ALL=C apt-cache policy {' '.join(map(shlex.quote, packages))}"

    def process(self, output):
        found, name = set(), ""
        for line in output:
            if not line.startswith(" "):
                name = line.rstrip(":")
            elif line.startswith("  Candidate: ") and "(none)" not in line:
                found.add(name)
        return found


@dataclass(frozen=True)
class Card:
    """What nvidia-smi says of a card; None for what the card does not know ("[N/A]")."""

    index: int
    name: str
    driver: str
    persistence: bool
    power: tuple[float, float] | None
    """The least and the most that its limit may be: watts."""
    clock: int | None
    """The fastest that its graphics clock may be: MHz."""


@dataclass
class Cards:
    """All of them, or why nvidia-smi says nothing of them."""

    cards: list[Card] = field(default_factory=list)
    error: str = ""


class Smi(FactBase):
    """The cards as `nvidia-smi --query-gpu` has them: Cards. Its errors are on standard output, too."""

    default = Cards
    requires_command = None

    FIELDS = "index,name,driver_version,persistence_mode,power.min_limit,power.max_limit,clocks.max.graphics"

    def command(self) -> str:
        return (
            "command -v nvidia-smi >/dev/null || { echo 'there is no nvidia-smi'; echo exit=127; exit 0; }; "
            f"timeout 60 nvidia-smi --query-gpu={self.FIELDS} --format=csv,noheader,nounits 2>&1; echo \"exit=$?\""
        )

    def process(self, output):
        *lines, end = output
        if end != "exit=0":
            return Cards(error=" ".join(filter(None, map(str.strip, lines))) or f"nvidia-smi ended with {end}")
        return Cards([_card(line) for line in lines if line.strip()])


def _card(line: str) -> Card:
    # A name could hold a comma; the others are numbers, or words in brackets.
    index, rest = line.split(",", 1)
    name, driver, persistence, least, most, clock = (part.strip() for part in rest.rsplit(",", 5))
    known = _number(least) is not None and _number(most) is not None
    return Card(
        index=int(index),
        name=name,
        driver=driver,
        persistence=persistence == "Enabled",
        power=(float(least), float(most)) if known else None,
        clock=None if _number(clock) is None else int(float(clock)),
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
