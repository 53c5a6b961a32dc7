"""What answers at this moment: asked before anybody waits for it."""

from __future__ import annotations

import shlex

from pyinfra.api import FactBase

SECONDS = 2
"""How long a question may take that has to wait for another program: it may stand before others in one batch."""


class Holds(FactBase):
    """Whether a check succeeds at this moment: True, or False.

    It asks with others in one batch. So the check must be quick, bounded (SECONDS) where it waits for another
    program, and harmless: it only looks.

    Args of the command:
        check: a shell command, by its exit status.
    """

    default = bool

    def command(self, check: str) -> str:
        return f"if ( {check} ) >/dev/null 2>&1 </dev/null; then echo yes; else echo no; fi"

    def process(self, output):
        return list(output)[-1:] == ["yes"]


def fetch(url: str, unix_socket: str | None = None, contains: str = "", seconds: int = SECONDS) -> str:
    """A check that a URL answers with status 200; what it says on failure is on standard output.

    Args:
        url: as the host itself sees it.
        unix_socket: path of a socket to ask through.
        contains: text that the answer must contain.
        seconds: how long it may take.
    """
    through = f"--unix-socket {shlex.quote(unix_socket)} " if unix_socket else ""
    ask = f"curl -sS --fail-with-body -m {seconds} {through}{shlex.quote(url)}"
    return f"{ask} 2>&1 | grep -qF -- {shlex.quote(contains)}" if contains else ask


def knock(port: int, address: str, seconds: int = SECONDS) -> str:
    """A check that somebody takes connections at a TCP port."""
    return f"timeout {seconds} bash -c {shlex.quote(f'exec 3<>/dev/tcp/{address}/{port}')}"
