"""One voice for what an operation changes: named before it happens, and as it happens."""

import atexit
import shlex

import click
from pyinfra import host


def report(message: str) -> None:
    """Say, in the run's output, what this host's operation changes."""
    host.log(f"  {message}")


def remind(message: str) -> None:
    """Say what somebody should look at, here and once more at the end of the run."""
    report(message)
    atexit.register(click.echo, f"--> {host.name}: {message}", err=True)


def stop(*sentences: str) -> str:
    """A command that says why and fails: an exception would end the run for every host."""
    return f"printf '%s\\n' {' '.join(map(shlex.quote, sentences))} >&2; exit 1"
