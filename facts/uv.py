"""Python environments made by uv: what is there, in one question."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

from pyinfra.api import FactBase

STAMP = ".complete"
"""File in an environment, written last: the version of Python that it was made for."""


@dataclass
class EnvironmentsState:
    """What is at a place for environments."""

    uv: bool = False
    """The uv asked for is there."""
    architecture: str = ""
    """dpkg's word: amd64, arm64."""
    python: str = ""
    """`Python 3.11` of the interpreter asked for; empty where there is none."""
    complete: dict[str, str] = field(default_factory=dict)
    """Environment's directory name -> the Python version in its stamp, newest first."""
    incomplete: set[str] = field(default_factory=set)
    """Directories without a stamp: a run was killed in them."""
    current: str | None = None
    """What the link `current` names."""


class Environments(FactBase):
    """The environments in a directory, and what it takes to make another.

    Args of the command:
        path: directory of the environments.
        uv: path of the uv program.
        python: interpreter, a path or a name.
    """

    default = EnvironmentsState

    def command(self, path: str, uv: str, python: str) -> str:
        return (
            f"echo \"arch=$(dpkg --print-architecture)\"; [ -x {shlex.quote(uv)} ] && echo uv=yes; "
            f"echo \"python=$({shlex.quote(python)} -V 2>/dev/null | cut -d. -f1,2)\"; "
            f"cd {shlex.quote(path)} 2>/dev/null || exit 0; "
            'echo "current=$(readlink current)"; '
            'for name in $(ls -t); do [ -d "$name" ] && [ ! -L "$name" ] || continue; '
            f'if [ -f "$name/{STAMP}" ]; then echo "complete=$name $(cat "$name/{STAMP}")"; '
            'else echo "incomplete=$name"; fi; done; true'
        )

    def process(self, output):
        found = EnvironmentsState()
        for line in output:
            tag, _, value = line.partition("=")
            if tag == "arch":
                found.architecture = value
            elif tag == "uv":
                found.uv = True
            elif tag == "python":
                found.python = value
            elif tag == "current":
                found.current = value or None
            elif tag == "complete":
                name, _, python = value.partition(" ")
                found.complete[name] = python
            elif tag == "incomplete":
                found.incomplete.add(value)
        return found
