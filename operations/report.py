"""One voice for what an operation changes: named before it happens, and as it happens."""

from pyinfra import host


def report(message: str) -> None:
    """Say, in the run's output, what this host's operation changes."""
    host.log(f"  {message}")
