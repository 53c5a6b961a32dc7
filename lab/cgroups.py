"""Control groups: everything that the lab starts lives in one, so that nothing can escape its end.

The kernel keeps the book of what runs. A pid file could be stale, or name a stranger; a group can't.
"""

import os
import time
from pathlib import Path

from .settings import BRIDGE, LabError

#: The group of the programs that `up` builds with: if it is killed, the next lab command ends them.
BUILD = ".build"


def root() -> Path | None:
    """Where cgroup version 2 is mounted, alone or beside version 1."""
    mounts = Path("/proc/mounts")
    for line in mounts.read_text().splitlines() if mounts.exists() else []:
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    return None


def ours() -> Path:
    """The group that holds everything this lab runs."""
    return root() / "groundwork-lab" / BRIDGE


def make(group: Path, *parts: str) -> None:
    """Make a group with sub-groups, and give them the controllers that there are."""
    for part in parts or (".",):
        (group / part).mkdir(parents=True, exist_ok=True)
    for parent in (ours().parent, ours(), group) if parts else ():
        for controller in (parent / "cgroup.controllers").read_text().split():
            (parent / "cgroup.subtree_control").write_text(f"+{controller}")


def inside(group: Path, command: list) -> list[str]:
    """The command that runs another in a group."""
    join = 'echo 0 > "$1/cgroup.procs"; shift; exec "$@"'
    return ["sh", "-ec", join, "sh", *(str(word) for word in [group, *command])]


def building(command: list) -> list[str]:
    """The command that runs a building program in the build group."""
    make(ours() / BUILD)
    return inside(ours() / BUILD, command)


def populated(group: Path) -> bool:
    """Whether a process lives in a group or below it."""
    try:
        return "populated 1" in (group / "cgroup.events").read_text()
    except FileNotFoundError:
        return False


def end(group: Path) -> None:
    """Kill every process of a group, wait until they are gone, and remove the group."""
    if not group.exists():
        return
    (group / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + 20
    while populated(group):
        if time.monotonic() > deadline:
            raise LabError(f"{group.name}: processes did not end within 20 s; they are in {group}/cgroup.procs.")
        time.sleep(0.02)
    for directory in (group, _twin(group)):
        _remove_tree(directory)


def _twin(group: Path) -> Path | None:
    """Where version 1 is mounted too, nspawn makes a group of the same name in systemd's hierarchy."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup" and "name=systemd" in options.split(","):
            return Path(where) / group.relative_to(root())
    return None


def _remove_tree(top: Path | None) -> None:
    for directory, _, _ in os.walk(top, topdown=False) if top else ():
        os.rmdir(directory)


def remove() -> None:
    """Remove the lab's own groups, if nothing is in them any more."""
    for group in (ours(), ours().parent):
        if not _has_groups(group):
            for directory in (group, _twin(group)):
                # A twin may hold what an earlier lab left, which has no group of ours any more.
                _remove_tree(directory)


def _has_groups(group: Path) -> bool:
    return group.exists() and any(entry.is_dir() for entry in group.iterdir())
