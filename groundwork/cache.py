"""Where the controller keeps what it would otherwise fetch again."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def directory() -> Path:
    """The user's cache for Groundwork, as the XDG base directories have it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "groundwork"


def not_ours(path: Path, mode: int) -> str:
    """Why a file can't be trusted, where what is in it will be run. Nothing where it can, or is not there.

    Args:
        mode: 0o700 for a directory, 0o600 for a file.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return ""
    if found.st_uid != os.getuid():
        return f"{path} belongs to user id {found.st_uid}, not to you ({os.getuid()})"
    wanted = stat.S_IFDIR if mode == 0o700 else stat.S_IFREG
    # (A directory has its parent's setgid bit, and chmod leaves it.)
    if stat.S_IFMT(found.st_mode) != wanted or stat.S_IMODE(found.st_mode) & ~stat.S_ISGID != mode:
        return f"{path} is {stat.filemode(found.st_mode)}, and must be {stat.filemode(wanted | mode)} (remove it, or chmod {mode:o})"
    return ""
