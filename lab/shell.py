"""Run programs, and say what takes time."""

import subprocess
import sys
import time
from contextlib import contextmanager

from .settings import LabError


def run(*command, check=True, **options) -> str:
    """Run a program and return what it printed; if it fails, its last line becomes the error."""
    options.setdefault("stdin", subprocess.DEVNULL if "input" not in options else None)
    done = subprocess.run(
        [str(word) for word in command], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )
    if check and done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        raise LabError(f"{_program(command)} failed: {lines[-1]}")
    return done.stdout


def _program(command) -> str:
    """Whose failure it is: the program that a group's shell became (cgroups.inside), or the command itself."""
    return command[5] if command[0] == "sh" else command[0]


def say(line: str) -> None:
    """One line for the reader, at once."""
    print(line, flush=True)


def warn(line: str) -> None:
    """A line that should not be lost in a pipe."""
    print(f"warning: {line}", file=sys.stderr, flush=True)


@contextmanager
def step(what: str):
    """Announce a slow step when it begins, and its duration when it is done."""
    print(f"{what} …", end="", flush=True)
    begin = time.monotonic()
    try:
        yield
    except BaseException:
        print(flush=True)
        raise
    print(f" {time.monotonic() - begin:.1f} s", flush=True)
