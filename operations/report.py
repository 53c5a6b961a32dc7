"""One voice for what an operation changes: named before it happens, and as it happens."""

import shlex

from pyinfra import host


def report(message: str) -> None:
    """Say, in the run's output, what this host's operation changes."""
    host.log(f"  {message}")


def stop(*sentences: str) -> str:
    """A command that says why and fails: an exception would end the run for every host."""
    return f"printf '%s\\n' {' '.join(map(shlex.quote, sentences))} >&2; exit 1"
