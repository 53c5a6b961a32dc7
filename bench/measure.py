"""Run a program, bounded, and tell what it cost: seconds, processor time and memory of everything that it started."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lab import cgroups

SAMPLE_SECONDS = 0.5
"""How often memory is looked at; the largest process's peak is exact all the same, by the kernel's own book."""


@dataclass
class Cost:
    """What a run took."""

    status: int
    """Exit status; negative for a signal."""
    seconds: float
    cpu_seconds: float
    """User and system, of the program and all that it started, what it left behind included (ssh's masters)."""
    peak_mib: float
    """The largest process's peak, or the largest sum of shares of memory (PSS) seen, whichever is more."""
    output: str
    timed_out: bool = False


def run(command: list[str], cwd: Path, environment: dict[str, str], limit: float, given: str = "") -> Cost:
    """Run a program in a control group of its own, which ends with it.

    Args:
        limit: seconds after which it is killed.
        given: its standard input.
    """
    group = cgroups.root() / "groundwork-bench" / str(os.getpid())
    group.mkdir(parents=True, exist_ok=True)
    used = _cpu(group)
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as typed:
        typed.write(given)
        typed.seek(0)
        begin = time.monotonic()
        process = subprocess.Popen(
            cgroups.inside(group, command), cwd=cwd, env=environment, stdin=typed, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            memory, timed_out = _watch(process.pid, group, begin + limit)
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.monotonic() - begin
            cpu = _cpu(group) - used
        finally:
            cgroups.end(group)
        process.returncode = os.waitstatus_to_exitcode(status)  # or Popen would wait for it, too
        output.seek(0)
        said = output.read()
    peak = max(memory, usage.ru_maxrss / 1024)
    return Cost(process.returncode, round(seconds, 3), round(cpu, 3), round(peak, 1), said, timed_out)


def _watch(pid: int, group: Path, deadline: float) -> tuple[float, bool]:
    """Wait for a process's end, or end its group at the deadline. Gives MiB, and whether it was ended."""
    ended = os.pidfd_open(pid)
    memory, timed_out = 0.0, False
    try:
        while not select.select([ended], [], [], SAMPLE_SECONDS)[0]:
            memory = max(memory, _memory(group))
            if time.monotonic() > deadline and not timed_out:
                timed_out = True
                (group / "cgroup.kill").write_text("1")
    finally:
        os.close(ended)
    return memory, timed_out


def _memory(group: Path) -> float:
    """MiB that a group's processes have together; what several share counts once."""
    total = 0
    for pid in (group / "cgroup.procs").read_text().split():
        with suppress(OSError):  # it has just ended
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total / 1024


def _cpu(group: Path) -> float:
    """Seconds that a group has used: the kernel counts without any controller."""
    fields = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
    return int(fields["usage_usec"]) / 1e6


def calibration() -> float:
    """Seconds of a fixed piece of work in another Python: how fast this machine is just now."""
    work = "x = 0\nfor i in range(5_000_000): x += i * i"
    begin = time.monotonic()
    subprocess.run([sys.executable, "-c", work], check=True, timeout=300)
    return round(time.monotonic() - begin, 3)
