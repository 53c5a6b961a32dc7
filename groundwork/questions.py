"""Questions that are asked together: what they are, and the script that asks them.

How they are used: groundwork/connector.py; what is kept of them between two runs: groundwork/memory.py.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Iterator, Mapping

from pyinfra import logger
from pyinfra.api import Host, StringCommand
from pyinfra.connectors.util import CommandOutput

QUESTION_SECONDS = 20
"""How long a question may take beside others; what takes longer is asked by itself. The slowest of the stack's
took 0.3 s on a lab host."""

WITH_OTHERS = {"_sudo", "_sudo_user", "_su_user", "_chdir", "_shell_executable"}
"""pyinfra's arguments with which a question can be asked together with others."""

_WITHOUT_EFFECT = {"_retries", "_retry_delay", "_temp_dir"}
"""pyinfra's arguments that mean nothing for a question."""


class SecretQuestion:
    """A question whose standard input holds secrets. What is remembered is its class and arguments: no secret's value."""

    @staticmethod
    def command(**arguments: Any) -> str:
        """The command, harmless and quick, which reads `stdin`."""
        raise NotImplementedError

    @staticmethod
    def stdin(**arguments: Any) -> str:
        """What the command reads, with the secrets' values as they are now."""
        raise NotImplementedError


def ask(item: Host, question: type[SecretQuestion], **arguments: Any) -> tuple[bool, CommandOutput]:
    """Ask what takes secrets to ask, as root.

    Args:
        item: the host.
        question: what to ask.
        arguments: the question's, as JSON knows them; no secret's value.
    Returns:
        As Host.run_shell_command.
    """
    if hasattr(item.connector, "ask_secret"):
        return item.connector.ask_secret(question, arguments)
    command, stdin = question.command(**arguments), question.stdin(**arguments)
    return item.run_shell_command(StringCommand(command), _sudo=True, _stdin=stdin)


@contextmanager
def asking(item: Host) -> Iterator[None]:
    """What is run in this block by `item.run_shell_command` changes nothing, and may be answered with others."""
    before = getattr(item.connector, "is_question", False)
    item.connector.is_question = True
    try:
        yield
    finally:
        item.connector.is_question = before


@dataclass(frozen=True)
class Question:
    """A command that changes nothing, as pyinfra would run it."""

    command: str
    arguments: str
    """pyinfra's connector arguments, as JSON."""
    secret: str = ""
    """A SecretQuestion with its arguments, as JSON; `command` is empty then."""

    @classmethod
    def of(cls, command: StringCommand | str, arguments: Mapping[str, Any]) -> Question | None:
        """None where it can't be asked together with others: it has a secret in it, or a terminal, a time or an input of its own."""
        given = {name: value for name, value in arguments.items() if value and name not in _WITHOUT_EFFECT}
        if given.get("_success_exit_codes") in ([0], (0,)):
            del given["_success_exit_codes"]
        plain = all(isinstance(value, (str, bool)) for value in given.values())
        if not set(given) <= WITH_OTHERS or not plain or not given.get("_shell_executable", "sh"):
            return None
        command = StringCommand(command)
        if command.get_raw_value() != command.get_masked_value():
            return None
        return cls(command.get_raw_value(), json.dumps(given, sort_keys=True))

    @classmethod
    def of_secret(cls, question: type[SecretQuestion], arguments: Mapping[str, Any]) -> Question:
        """A question with secrets, asked with sudo."""
        named = {"class": f"{question.__module__}:{question.__qualname__}", "arguments": dict(arguments)}
        return cls("", json.dumps({"_sudo": True}), json.dumps(named, sort_keys=True))

    @property
    def around(self) -> dict[str, Any]:
        """pyinfra's arguments but for the shell: questions with the same ones are asked by one sudo."""
        return {name: value for name, value in json.loads(self.arguments).items() if name != "_shell_executable"}

    def text(self) -> tuple[str, str | None]:
        """The command, and what it reads.

        Raises:
            LookupError: the class of a secret question is not there any more.
            Exception: whatever it raises where its arguments are not those any more.
        """
        if not self.secret:
            return self.command, None
        named = json.loads(self.secret)
        module, _, name = named["class"].partition(":")
        # Not imported: a file of remembered questions names only what this run has loaded itself.
        found = getattr(sys.modules.get(module), name, None)
        if not (isinstance(found, type) and issubclass(found, SecretQuestion)):
            raise LookupError(named["class"])
        return found.command(**named["arguments"]), found.stdin(**named["arguments"])


# The script


@dataclass(frozen=True)
class Asked:
    """A question as it was sent."""

    question: Question
    command: str
    stdin: str | None

    @classmethod
    def now(cls, question: Question) -> Asked | None:
        """None for a remembered question that can't be asked any more."""
        try:
            return cls(question, *question.text())
        except Exception as error:  # what was remembered may be of another version, and costs no more than this
            logger.debug("not asked: %s (%s)", question.secret, error)
            return None


Group = tuple[str, list[Asked]]
"""The command that starts a shell as somebody, with the questions to be asked there."""


def script(lanes: list[list[Group]], mark: str, first: Asked | None = None) -> str:
    """A script for `sh` that asks questions, and frames the answers.

    Args:
        lanes: each is asked by itself, while the others are; what the later ones say waits in a pipe.
        mark: begins each frame; nobody can know it before.
        first: is asked before all others, as whoever is logged in.
    """
    number, both = int(first is not None), []
    begin = [_one(first), _frame(mark, number)] if first else []
    for lane in lanes:
        lines = []
        for shell, asked in lane:
            lines += [f"{shell} <<'{mark}'", _frame(mark, 0)]
            for item in asked:
                number += 1
                lines += [_one(item), _frame(mark, number)]
            lines += [mark, _frame(mark, 0)]
        both = ["{", *lines, "} | {", *both, "cat", "}"] if both else lines
    return "\n".join(["exec 2>/dev/null", _frame(mark, 0), *begin, *both, ""])


def _one(item: Asked) -> str:
    shell = json.loads(item.question.arguments).get("_shell_executable", "sh")
    command = f"timeout -k 2 {QUESTION_SECONDS} {shlex.quote(shell)} -c {shlex.quote(item.command)}"
    if item.stdin is None:
        return f"{command} </dev/null"
    # The shell's own printf: what is secret is in no process's arguments.
    given = item.stdin if item.stdin.endswith("\n") else f"{item.stdin}\n"
    return f"printf %s {shlex.quote(given)} | {command}"


def _frame(mark: str, number: int) -> str:
    return f"printf '\\n%s %s %s\\n' {mark} {number} $?"


class Reader:
    """Reads what a script says, as it comes.

    An answer is one only if its command ended with status 0, its frame is whole and it is text: else it is None, and is
    left to be asked in the ordinary way, as are those that have no frame. What a command leaves running in the background must
    say nothing more: it would be in the next one's answer.

    Args:
        mark: `script`'s.
    """

    def __init__(self, mark: str):
        self._frame = re.compile(rb"\n" + mark.encode() + rb" (\d+) (\d+)\n")
        self._rest = b""
        self.last = 0
        """Number of the last answer that was read, from 1."""
        self.noise = ""
        """What somebody else said: nothing that comes after it is an answer."""

    def read(self, received: bytes) -> Iterator[tuple[int, list[str] | None]]:
        """The number and the lines of each question that has come to its end."""
        self._rest += received
        while not self.noise and (frame := self._frame.search(self._rest)):
            content, self._rest = self._rest[: frame.start()], self._rest[frame.end() :]
            number, status = map(int, frame.groups())
            if number == 0:
                self.noise = content.decode(errors="replace").strip()
            elif number <= self.last:
                self.noise = f"answer {number} after {self.last}"
            else:
                self.last = number
                yield number, _text(content) if status == 0 else None


def _text(content: bytes) -> list[str] | None:
    try:
        return _lines(content.decode())
    except UnicodeDecodeError:
        return None


def _lines(text: str) -> list[str]:
    """As pyinfra reads them: by newlines alone, whether the last line has one or not."""
    lines = text.split("\n")
    return lines[:-1] if not lines[-1] else lines
