"""Questions that hold a secret: it goes in by standard input, where no command line, log or list of questions has it."""

from __future__ import annotations

from pyinfra import host
from pyinfra.api import StringCommand
from pyinfra.connectors.util import CommandOutput


def ask(command: str, stdin: str) -> tuple[bool, CommandOutput]:
    """Ask the current host, as root: whether the command succeeded, and what it said.

    Args:
        command: it only looks, changes nothing, waits for nobody for long, and is the same in each run.
        stdin: what it reads; may hold secrets.
    """
    return host.run_shell_command(StringCommand(command), _sudo=True, _stdin=stdin)
