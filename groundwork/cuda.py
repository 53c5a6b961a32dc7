"""CUDA builds in locks, and the NVIDIA drivers that they need."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Iterable, Mapping

DRIVERS = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
"""CUDA's major version -> the oldest driver on Linux for all its minor versions (NVIDIA, "CUDA Toolkit Release
Notes", table "CUDA Toolkit and Minimum Required Driver Version for CUDA Minor Version Compatibility"; the same in
"CUDA Compatibility", "Minor Version Compatibility", and in uv's own table for --torch-backend)."""

LONG_TERM = (535, 580)
"""Branches that NVIDIA supports for three years ("Supported Drivers and CUDA Toolkit Versions": 535 to June 2026,
580 to August 2028)."""

_PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^]]*])?\s*(?:===?|@)\s*([^\s;\\#,]+)", re.MULTILINE)
_TAG = re.compile(r"(?:\+|%2[Bb])(cu[0-9]{2,3}|cpu|xpu|rocm[0-9.]+)(?=-|$)")
"""A local version, at the end of a version, or within a wheel's URL."""
FRAMEWORKS = ("torch", "tensorflow", "jax")
"""Those whose packages on the default index come with CUDA as packages of its own."""

_VERSION = re.compile(r"(?:^|-)([0-9]+\.[0-9]+)")
"""The first two numbers of a version, or of a wheel's in a URL."""
_RUNTIME = re.compile(r"nvidia-cuda-runtime(-cu[0-9]+)?")


@dataclass(frozen=True)
class Build:
    """What a lock's packages were built for."""

    package: str
    """The package that says so: torch."""
    cuda: str | None
    """CUDA's version, such as "12.8"; None for what knows no CUDA (cpu, rocm6.4)."""
    torch_backend: str | None = None
    """uv's name for PyTorch's index: cu128, cpu; None where the lock has no tag, and the default index does."""


def build_of(lock: str) -> Build | None:
    """Which CUDA build a lock pins: by a local version (`torch==2.9.0+cu128`), or by CUDA's runtime beside it.

    Args:
        lock: the text of a requirements file, as uv or pip writes it.
    Returns:
        None where it pins none. Where several do (a lock for several platforms), that of the newest CUDA.
    """
    pins = [(re.sub(r"[-_.]+", "-", name).lower(), version) for name, version in _PIN.findall(lock)]
    tags = [(name, tag.group(1)) for name, version in pins if (tag := _TAG.search(version))]
    tagged = [Build(name, _of_tag(tag), tag) for name, tag in tags]
    # The packages of CUDA that come with a framework say as much as its tag, and more than none.
    framework = next((name for name in FRAMEWORKS if name in dict(pins)), None)
    others = [
        Build(framework or name, number.group(1))
        for name, version in pins
        if _RUNTIME.fullmatch(name) and (number := _VERSION.search(version))
    ]
    return max(tagged or others, key=lambda build: _numbers(build.cuda or "0"), default=None)


def _of_tag(tag: str) -> str | None:
    """12.8 of cu128; None of another."""
    return f"{tag[2:-1]}.{tag[-1]}" if tag.startswith("cu") else None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def driver_needed(cuda: str) -> str | None:
    """The oldest driver for a CUDA version, such as 525.60.13; None for a CUDA that nobody here knows yet."""
    major = max(_numbers(cuda)[0], min(DRIVERS))  # newer drivers run what was built for any older CUDA
    return DRIVERS.get(major)


def is_enough(driver: str, cuda: str) -> bool:
    """Whether a driver's version (or branch, such as "580") runs what was built for a CUDA version."""
    needed = driver_needed(cuda)
    if needed is None:
        return False
    parts = _numbers(driver)
    return parts >= _numbers(needed)[: len(parts)]


def branch(offered: Iterable[int], builds: Iterable[Build] = (), newest: int | None = None) -> int | None:
    """The driver branch to install: of those that fit, the newest with long-term support, else the newest.

    Args:
        offered: branches that there are packages of.
        builds: what shall run on it.
        newest: the last branch that knows the host's card; None for any.
    Returns:
        None where none fits.
    """
    wanted = [build.cuda for build in builds if build.cuda]
    fitting = [
        number
        for number in offered
        if (newest is None or number <= newest) and all(is_enough(str(number), cuda) for cuda in wanted)
    ]
    return max([number for number in fitting if number in LONG_TERM] or fitting, default=None)


def errors(builds: Mapping[str, Build], chosen: int | str) -> Iterable[str]:
    """What a driver can't run, a sentence for each role: "training: its lock has torch for CUDA 13.0, which …".

    Args:
        builds: role -> what its lock has.
        chosen: its branch, or its whole version.
    """
    for role, build in builds.items():
        if build.cuda and not is_enough(str(chosen), build.cuda):
            needed = driver_needed(build.cuda)
            # The first numbers are enough for a branch.
            least = needed if needed is None or "." in str(chosen) else needed.split(".")[0]
            asks = f"needs driver {least} or newer" if least else "is newer than the drivers known here (groundwork/cuda.py)"
            yield f"{role}: its lock has {build.package} for CUDA {build.cuda}, which {asks}"
