"""Where the controller keeps what it would otherwise fetch again."""

from __future__ import annotations

import os
from pathlib import Path


def directory() -> Path:
    """The user's cache for Groundwork, as the XDG base directories have it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "groundwork"
