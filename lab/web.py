"""Start and end the lab's web server (server.py), a process of its own beside the hosts."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from . import cgroups, roots
from .repository import WWW
from .settings import CACHE, GATEWAY, REPOSITORY_PORT, LabError

LOG = CACHE / "server.log"


def up() -> None:
    """Start the server if it doesn't run."""
    if running():
        return
    group = _cgroup()
    cgroups.end(group)
    cgroups.make(group)
    command = [sys.executable, "-m", "lab.server", GATEWAY, str(REPOSITORY_PORT), str(WWW), str(CACHE / "archive")]
    with LOG.open("ab") as log:
        subprocess.Popen(
            cgroups.inside(group, [*command, *roots.cacheable()]),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            cwd=Path(__file__).resolve().parent.parent, env={"PATH": os.environ["PATH"]},
        )  # fmt: skip
    deadline = time.monotonic() + 10
    while not _answers():
        if time.monotonic() > deadline:
            raise LabError(f"The lab's web server did not start; see {LOG}.")
        time.sleep(0.05)


def down() -> None:
    """End the server."""
    cgroups.end(_cgroup())


def running() -> bool:
    """Whether the server's process is alive."""
    return cgroups.populated(_cgroup())


def _cgroup() -> Path:
    return cgroups.ours() / ".server"


def _answers() -> bool:
    try:
        socket.create_connection((GATEWAY, REPOSITORY_PORT), timeout=1).close()
    except OSError:
        return False
    return True
