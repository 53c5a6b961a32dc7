"""Stages: barriers between tiers."""

from pyinfra.api import operation


@operation()
def _barrier():
    yield from ()


def stage(name: str) -> None:
    """Let no host pass before all have come here.

    pyinfra goes through operations level by level and not tier by tier; an operation that every host
    has, called from one line of deploy.py, is what makes the tiers wait for each other. It does nothing.

    Args:
        name: what follows; shown in the run's output.
    """
    _barrier(name=f"Stage: {name}")
