"""The 200 states, as bench/states.yml has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
FILE = HERE / "states.yml"
COUNT = 200


def read() -> dict[str, Any]:
    """The states by their kind.

    Raises:
        ValueError: where they are not 200, or where one is there twice.
    """
    states = yaml.safe_load(FILE.read_text())
    if (count := sum(map(len, states.values()))) != COUNT:
        raise ValueError(f"{FILE.name} has {count} states, and docs/speed.md speaks of {COUNT}")
    paths = [row["path"] for kind in ("files", "templates", "dropins", "directories", "links") for row in states[kind]]
    if twice := {path for path in paths if paths.count(path) > 1}:
        raise ValueError(f"{FILE.name} has {', '.join(sorted(twice))} twice")
    return states
