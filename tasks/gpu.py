"""GPU: NVIDIA's driver without a desktop, the container toolkit, and the cards' limits."""

from __future__ import annotations

from typing import Annotated, Any, Iterable, Literal

from pydantic import Field

from groundwork import cuda
from groundwork.cuda import Build
from groundwork.roles import role
from groundwork.rows import Absent, Directory, File, Row
from groundwork.settings import RoleSettings, matching
from groundwork.sources import SourceError
from groundwork.takeover import Found, Met, asked, refused
from groundwork.topology import Here
from operations import apt, files, gpu as driver, service
from operations.repository import components, repository

OFFERED = {
    "jammy": (535, 570, 580),
    "noble": (535, 570, 580),
    "bookworm": (535,),
    "trixie": (550,),
}
"""Branches of the distribution's own packages to choose from: Ubuntu's -server ones (packages.ubuntu.com,
nvidia-graphics-drivers-*-server), Debian's one in non-free."""
BY_VENDOR = (580,)
"""The one to choose of NVIDIA's own packages, which has more."""
COMPONENTS = {"ubuntu": ("restricted",), "debian": ("contrib", "non-free", "non-free-firmware")}
"""Of the distribution's archive: where its packages of the driver are."""

CARDS = (
    (0x0000, "Kepler or older", None, 470, False),
    (0x1340, "Maxwell, Pascal or Volta", None, 580, False),
    (0x1E00, "Turing, Ampere, Hopper or Ada", None, None, None),
    (0x2900, "Blackwell or newer", 570, None, True),
)
"""First PCI device id of a range -> what the cards are called, their first and last driver branch among those that
there are packages of, and whether they need the open module (None: they may have either). NVIDIA numbers its chips
upwards (pci.ids). Last branches: NVIDIA, "UNIX graphics feature deprecation schedule"; open module: "Driver
Installation Guide", "Kernel Modules"."""
OPEN_FROM = 560
"""Branch from which NVIDIA recommends the open module for the cards that may have either ("Kernel Modules")."""

VENDOR = "https://developer.download.nvidia.com/compute/cuda/repos"
KEYS = {
    "bookworm": ("3bf863cc.pub", "EB693B3035CD5710E231E123A4B469963BF863CC"),
    "trixie": ("8793F200.pub", "02182E60104FCDC26EAE1B8597A5D4CB8793F200"),
}
"""File in NVIDIA's repository, and fingerprint of its key ("Driver Installation Guide", Debian)."""
RELEASES = {"bookworm": "debian12", "trixie": "debian13"}
ARCHITECTURES = {"amd64": "x86_64", "arm64": "sbsa"}

CONTAINERS = "https://nvidia.github.io/libnvidia-container"
CONTAINERS_FINGERPRINT = "C95B321B61E88C1809C4F759DDCAE044F796ECB0"
"""Of NVIDIA's key for its container toolkit ("Installing the NVIDIA Container Toolkit")."""

HELD = ("nvidia-", "libnv", "libcuda", "cuda-", "firmware-nvidia-", "xserver-xorg-video-nvidia")
"""How the names of the driver's and CUDA's packages begin."""
HELD_KERNEL = ("linux-image-", "linux-modules-")
"""On Ubuntu the kernel comes with its module built for one driver: both are upgraded together."""

UNIT = File("/etc/systemd/system/groundwork-gpu.service", template="gpu/groundwork-gpu.service.j2")

Url = Annotated[str, matching(r"https?://[^ ]+[^/ ]", "a URL without a / at its end")]
Clock = Annotated[int, Field(ge=1)]


class Settings(RoleSettings):
    """The host's NVIDIA cards."""

    role = "gpu"
    mark = "/etc/apt/apt.conf.d/53groundwork-gpu"

    card: bool = True
    """There is an NVIDIA card in the host. False: none of NVIDIA's packages is installed, and everything runs on
    the CPU."""
    branch: int | None = Field(default=None, ge=470)
    """Driver branch such as 580; by default the newest with long-term support that the distribution has, the
    cards know, and the CUDA builds of the host's roles run on. A newer one upgrades."""
    version: Annotated[str, matching(r"[0-9]+(\.[0-9]+){1,2}", 'numbers such as "580.95.05"')] | None = None
    """Exact version of the driver, such as "580.95.05"; by default the newest when it is installed, then held. A
    newer one upgrades."""
    module: Literal["open", "proprietary"] | None = None
    """NVIDIA's open kernel module or the other; by default as NVIDIA recommends for branch and cards."""
    reboot: bool = False
    """Reboot the host when only that makes the installed driver the one that runs: nouveau is loaded, or another
    version's module. False: the run stops there, and says so."""
    reboot_seconds: int = Field(default=600, ge=30)
    """How long the host may take for that; servers test their memory first."""
    repository: Literal["distribution", "vendor"] = "distribution"
    """Where the driver comes from: the distribution's archive, or, on Debian, NVIDIA's repository for CUDA, which
    has newer branches."""
    repository_url: Url = VENDOR
    """NVIDIA's repository, or a company mirror of it: what stands before /debian12/x86_64."""
    repository_key: str | None = None
    """Its key: a URL, or a file on the controller; by default NVIDIA's, known by its fingerprint."""
    container_repository: Url = CONTAINERS
    """Where NVIDIA's container toolkit comes from, for hosts with the role docker, or a company mirror of it: what
    stands before /stable/deb."""
    container_repository_key: str | None = None
    """Its key: a URL, or a file on the controller; by default NVIDIA's, known by its fingerprint."""
    power_limit: int | None = Field(default=None, ge=1)
    """Watts that each card may take; by default the card's own limit."""
    clocks: tuple[Clock, Clock] | None = None
    """Least and most of the graphics clock in MHz: (210, 1410). By default the card's own."""

    def meets(self, found: Found, here: Here) -> Iterable[Met]:
        if not self.card:
            return
        if found.nvidia_program:
            yield refused("NVIDIA's driver was installed by its own program, beside which its packages don't work: `nvidia-uninstall`, reboot")
        if there := sorted(name for name in found.packages if name.startswith("nvidia-")):
            yield asked(
                f"NVIDIA's driver is there ({', '.join(there)}): what can't be beside gpu_branch's packages for servers is removed, a "
                "desktop's among them, and what uses the GPU is cut off by the reboot that it takes"
            )

    # Which driver

    def builds(self, here: Here) -> dict[str, Build]:
        """Role -> the CUDA build that its lock has."""
        found = {}
        for name in here.roles:
            try:
                build = here.settings(here.topology.roles[name]).cuda_build(here)
            except SourceError:
                continue  # that role says so itself
            if build is not None:
                found[name] = build
        return found

    def offered(self, here: Here) -> tuple[int, ...]:
        """Branches to choose from."""
        if self.repository == "vendor":
            return BY_VENDOR
        return OFFERED.get(here.machine.codename if here.machine else "", ())

    def branch_for(self, here: Here) -> int | None:
        """The branch to install; None where none fits."""
        if self.branch is not None:
            return self.branch
        last = min((branch for card in _cards(here) if (branch := _range(card)[3])), default=None)
        return cuda.branch(self.offered(here), self.builds(here).values(), last)

    def wanted(self, here: Here) -> driver.Wanted:
        """The driver to install."""
        branch = self.branch_for(here) or 0
        needs = {_range(card)[4] for card in _cards(here)}
        recommended = True if True in needs else branch >= OPEN_FROM and False not in needs
        machine = here.machine
        return driver.Wanted(
            source="vendor" if self.repository == "vendor" else machine.distribution if machine else "debian",
            branch=branch,
            open=recommended if self.module is None else self.module == "open",
            version=self.version,
        )

    # What is wrong

    def errors(self, here: Here) -> Iterable[str]:
        if not self.card:
            return
        if self.clocks and self.clocks[0] > self.clocks[1]:
            yield f"gpu_clocks: {self.clocks[0]} MHz, the least, is more than {self.clocks[1]}, the most"
        branch = self.branch_for(here)
        if self.version and branch and not self.version.startswith(f"{branch}."):
            yield f"gpu_version: {self.version} is not of the driver branch {branch}: set gpu_branch = {self.version.split('.')[0]}"
        elif chosen := self.version or self.branch:
            name = "gpu_version" if self.version else "gpu_branch"
            yield from (f"{error}, and {name} = {chosen}" for error in cuda.errors(self.builds(here), chosen))
        if here.machine:
            yield from self._card_errors(here)
            yield from self._source_errors(here)

    def _card_errors(self, here: Here) -> Iterable[str]:
        if not _cards(here):
            yield (
                f"gpu_card: {here.name} has no NVIDIA card (no display or 3D controller of the vendor 10de in "
                "/sys/bus/pci/devices). Where that is right, set gpu_card = False: all runs on the CPU then; else see that the "
                "card sits well, and is passed through to the machine"
            )
        there = f"gpu_branch = {self.branch}" if self.branch else f"{self._name(here)} has {_listed(self.offered(here))}"
        choices = (self.branch,) if self.branch else self.offered(here)
        for card in _cards(here):
            _, name, first, last, only_open = _range(card)
            who = f"the card 10de:{card} ({name})"
            if last and min(choices, default=last) > last:
                yield f"gpu_branch: {who} has no driver newer than {last}, and {there}: put another card in, or set gpu_card = False"
            if first and max(choices, default=first) < first:
                yield f"gpu_branch: {who} needs driver {first} or newer, and {there}{self._elsewhere(here)}"
            if self.module and only_open is not None and only_open != (self.module == "open"):
                yield f"gpu_module: {who} has no {self.module} kernel module"

    def _source_errors(self, here: Here) -> Iterable[str]:
        machine, offered = here.machine, self.offered(here)
        assert machine is not None
        if self.repository == "vendor" and machine.codename not in RELEASES:
            yield 'gpu_repository: on Ubuntu the distribution\'s own packages are used, whose modules are signed: take "vendor" out'
            return
        if self.branch and machine.distribution == "debian" and self.repository == "distribution" and self.branch not in offered:
            yield f"gpu_branch: {self._name(here)} has {_listed(offered)}, and gpu_branch = {self.branch}{self._elsewhere(here)}"
        if self.branch is None:
            for error in cuda.errors(self.builds(here), max(offered, default=0)):
                yield f"{error}, and {self._name(here)} has {_listed(offered)}{self._elsewhere(here)}"
        if machine.secure_boot and self.wanted(here).builds:
            yield (
                f"gpu_card: Secure Boot is on in {here.name}, and {machine.distribution}'s module is built on the host, where "
                "nobody signs it: the kernel would not load it. Switch Secure Boot off in the firmware, or take Ubuntu, whose "
                "modules are signed"
            )

    def _name(self, here: Here) -> str:
        """Whose packages."""
        machine = here.machine
        return "NVIDIA's repository" if self.repository == "vendor" or not machine else f"{machine.distribution} {machine.codename}"

    def _elsewhere(self, here: Here) -> str:
        """Where there are newer branches."""
        newer = here.machine and here.machine.codename in RELEASES and self.repository == "distribution"
        return f'. NVIDIA\'s own repository has {max(BY_VENDOR)}: gpu_repository = "vendor"' if newer else ""

    # What is on the host

    def further_units(self) -> list[str]:
        return ["groundwork-gpu.service", "nvidia-persistenced.service"] if self.card else []

    def container_runtimes(self, here: Here) -> dict[str, str]:
        return {"nvidia": "nvidia-container-runtime"} if self.card else {}

    def services(self, here: Here) -> list[service.Service]:
        return [
            # First: on Ubuntu the other runs only for those who want it.
            service.Service("groundwork-gpu.service"),
            service.Service("nvidia-persistenced.service", reads=("/usr/bin/nvidia-persistenced",)),
        ]

    def files(self, here: Here) -> list[Row]:
        return [*self.early_files(here), *([UNIT] if self.card else [])]

    def early_files(self, here: Here) -> list[Row]:
        """Those that must be there before the driver is."""
        ubuntu = bool(here.machine and here.machine.distribution == "ubuntu")
        held = [*HELD, *(HELD_KERNEL if ubuntu and self.card else ())]
        rows: list[Row] = [File(self.mark, template="gpu/apt.conf.j2", variables={"packages": held})]
        if self.card:
            pin = "/etc/apt/preferences.d/groundwork-gpu"
            rows += [
                Directory("/etc/modprobe.d"),
                File(driver.BLACKLIST, template="gpu/modprobe.conf.j2"),
                File(pin, template="gpu/preferences.j2") if self.version else Absent(pin),
            ]
        return rows

    def repository_for(self, here: Here) -> dict[str, Any]:
        """Arguments for operations.repository: NVIDIA's for this distribution."""
        machine = here.machine
        assert machine is not None
        url = f"{self.repository_url}/{RELEASES[machine.codename]}/{ARCHITECTURES[machine.architecture]}"
        name, fingerprint = KEYS[machine.codename]
        return {
            "uris": [f"{url}/"],
            "suites": ["/"],
            "key": self.repository_key or f"{url}/{name}",
            "fingerprint": None if self.repository_key else fingerprint,
        }

    def containers_for(self) -> dict[str, Any]:
        """Arguments for operations.repository: NVIDIA's container toolkit, the same for all distributions."""
        return {
            "uris": [f"{self.container_repository}/stable/deb/$(ARCH)"],
            "suites": ["/"],
            "key": self.container_repository_key or f"{self.container_repository}/gpgkey",
            "fingerprint": None if self.container_repository_key else CONTAINERS_FINGERPRINT,
        }


def _cards(here: Here) -> tuple[str, ...]:
    return here.machine.cards if here.machine else ()


def _listed(branches: Iterable[int]) -> str:
    return ", ".join(map(str, branches)) or "no driver"


def _range(card: str) -> tuple[int, str, int | None, int | None, bool | None]:
    """The entry of CARDS for a PCI device id."""
    return next(item for item in reversed(CARDS) if int(card, 16) >= item[0])


@role(Settings, "GPU")
def gpu(settings: Settings, here: Here) -> None:
    """The driver, the boot that it takes effect with, what containers need, and the cards' limits."""
    early = files.table(name="Upgrades and nouveau", rows=settings.early_files(here), settings=settings)
    if not settings.card:
        return
    _source(settings, here)
    packages = driver.driver(name="Driver", wanted=settings.wanted(here))
    if "docker" in here.roles:
        repository(name="Repository of the container toolkit", repository="nvidia-container-toolkit", **settings.containers_for())
        apt.packages(name="Container toolkit", present=["nvidia-container-toolkit"], held=["nvidia-container-toolkit"])
    # Loaded, and seen to work, before anything is started that uses it.
    driver.effective(name="Boot", allowed=settings.reboot, seconds=settings.reboot_seconds, after=[early, packages])
    driver.works(name="Driver works")
    # Before they are on disk, where the next boot would find them.
    driver.limits(name="Limits", power=settings.power_limit, clocks=settings.clocks)
    configured = files.table(name="Configuration", rows=[UNIT], settings=settings)
    service.services(
        name="Services",
        services=settings.services(here),
        after=[configured],
    )


def _source(settings: Settings, here: Here) -> None:
    """Where the driver's packages come from."""
    assert here.machine is not None
    if settings.repository == "vendor":
        repository(name="Repository", repository="nvidia-cuda", **settings.repository_for(here))
    else:
        wanted = COMPONENTS[here.machine.distribution]
        components(name="Repository", repository="groundwork-gpu", codename=here.machine.codename, components=wanted)
