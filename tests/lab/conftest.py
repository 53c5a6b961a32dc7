"""Scenarios on lab hosts: each reads as a story, on a fresh host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

import pytest

import lab

ROOT = Path(__file__).resolve().parents[2]


def pytest_collection_modifyitems(config, items):
    """Where no lab can run the scenarios are skipped, with the reason."""
    if os.environ.get("CI") == "true" or not (why := lab.available()):
        return
    for item in items:
        if Path(item.fspath).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.skip(reason=f"no lab here: {why}"))


@pytest.fixture(scope="session", autouse=True)
def lab_can_run():
    """In CI a lab that can't run is a failure."""
    if why := lab.available():
        pytest.fail(f"CI must run the lab's scenarios, and no lab can run here: {why}", pytrace=False)


@dataclass
class Lab:
    """An inventory of lab hosts, and what is done with it."""

    inventory: str

    @classmethod
    def made(cls, path: Path, text: str) -> Lab:
        """An inventory of a test's own, written to `path`, and every host of it made anew."""
        path.write_text(text)
        stack = cls(str(path))
        stack.fresh()
        return stack

    def up(self) -> None:
        python("-m", "lab", "up", self.inventory)

    def fresh(self) -> None:
        """Every host of the inventory, made anew."""
        python("-m", "lab", "up", "--fresh", self.inventory)

    def reset(self, host: str) -> None:
        python("-m", "lab", "reset", host)

    def ssh(self, host: str, command: str, check: bool = True) -> subprocess.CompletedProcess:
        """Run a command on a host, as the login user."""
        done = subprocess.run(
            [sys.executable, "-m", "lab", "ssh", host, command],
            cwd=ROOT, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"{command}\n{done.stdout}{done.stderr}"
        return done

    @contextmanager
    def sampled(self, host: str) -> Iterator[list[str]]:
        """Every process's arguments and environment, and what is in /tmp, as root sees them all the while; a list that grows."""
        loop = "while sleep 0.05; do ps -eww -o args; cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'; head -c 65536 /tmp/* 2>/dev/null; done"
        process = subprocess.Popen(
            [sys.executable, "-m", "lab", "ssh", host, f"sudo sh -c {json.dumps(loop)}"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True, errors="replace",
        )  # fmt: skip
        samples: list[str] = []
        reader = threading.Thread(target=lambda: samples.extend(process.stdout), daemon=True)
        reader.start()
        try:
            yield samples
        finally:
            process.terminate()
            process.wait()

    def deploy(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
        """`pyinfra -y INVENTORY deploy.py ARGUMENTS`."""
        return self.pyinfra("-y", self.inventory, "deploy.py", *arguments, check=check)

    def pyinfra(self, *arguments: str, check: bool = True, where: Path = ROOT) -> subprocess.CompletedProcess:
        """Run pyinfra.

        Args:
            where: the checkout that is deployed from.
        """
        done = subprocess.run(
            [sys.executable, "-m", "pyinfra", *arguments],
            cwd=where, capture_output=True, text=True, timeout=1800, stdin=subprocess.DEVNULL,
            env={**os.environ, "PYINFRA_PROGRESS": "off"},
        )  # fmt: skip
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done

    def changes(self) -> list[str]:
        """Operations that changed something in a run."""
        done = self.pyinfra("-y", "--json", self.inventory, "deploy.py")
        return changed(json.loads(done.stdout))


def changed(report: dict) -> list[str]:
    """Names of the operations that changed a host, from pyinfra's --json."""
    assert report["results"] is not None and not report["results"]["failed_hosts"]
    return [item["name"] for item in report["results"]["operations"] if item["success"]]


def python(*arguments: str) -> str:
    """Output of a Python command that must succeed."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=1800, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def demo() -> Lab:
    """The inventory of `make demo`."""
    return Lab("inventories/lab.py")
