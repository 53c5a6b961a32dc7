"""One module per service: its Settings, then its deploy in three stages: install, configure, run."""

import sys
from importlib.util import find_spec

from groundwork.errors import Refusal


def __getattr__(name: str):
    """Asked by pyinfra for the operation tasks.redis, which it would call missing."""
    if f"tasks.{name}" in sys.argv and find_spec(f"tasks.{name}"):
        raise Refusal(f"tasks.{name} is a module: one role alone is tasks.{name}.{name}")
    raise AttributeError(name)
