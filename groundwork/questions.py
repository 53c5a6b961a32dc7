"""Questions that are asked together: what they are, how many go in one script, and what is remembered of them.

Between two runs only the questions are kept, never an answer. How they are used: groundwork/connector.py.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shlex
import stat
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterable, Iterator, Literal, Mapping

from pydantic import BaseModel, ConfigDict
from pyinfra import __version__ as PYINFRA
from pyinfra import logger
from pyinfra.api import Host, StringCommand
from pyinfra.connectors.util import CommandOutput

from groundwork import cache

FORMAT = 1
"""Of the files with questions; another one's are not read."""

QUESTION_SECONDS = 20
"""How long a question may take beside others; what takes longer is asked by itself. The slowest of the stack's
took 0.3 s on a lab host."""

KEPT_DAYS = 90
"""After which the questions of a host that nobody has deployed to are forgotten."""

_WITH_OTHERS = {"_sudo", "_sudo_user", "_su_user", "_chdir", "_shell_executable"}
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
        if not set(given) <= _WITH_OTHERS or not plain or not given.get("_shell_executable", "sh"):
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


def script(lanes: list[list[Group]], mark: str) -> str:
    """A script for `sh` that asks questions, and frames the answers.

    Args:
        lanes: each is asked by itself, while the others are; what the later ones say waits in a pipe.
        mark: begins each frame; nobody can know it before.
    """
    number, both = 0, []
    for lane in lanes:
        lines = []
        for shell, asked in lane:
            lines += [f"{shell} <<'{mark}'", _frame(mark, 0)]
            for item in asked:
                number += 1
                lines += [_one(item), _frame(mark, number)]
            lines += [mark, _frame(mark, 0)]
        both = ["{", *lines, "} | {", *both, "cat", "}"] if both else lines
    return "\n".join(["exec 2>/dev/null", _frame(mark, 0), *both, ""])


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


def answers(output: bytes, mark: str) -> tuple[dict[int, list[str] | None], str]:
    """The lines of each question that came to its end, by its number from 1; and what somebody else said.

    An answer is one only if its command ended with status 0, its frame is whole and it is text: else it is None, and is
    left to be asked in the ordinary way, as are those that have no frame. What a command leaves running in the background must
    say nothing more: it would be in the next one's answer.

    Args:
        output: of `script`.
    """
    parts = re.split(rb"\n" + mark.encode() + rb" (\d+) (\d+)\n", output)
    found, noise, last = {}, b"", 0
    for content, number, status in zip(parts[0::3], parts[1::3], parts[2::3]):
        if number == b"0":
            noise += content
        elif int(number) <= last:
            break
        else:
            last = int(number)
            found[last] = None
            if status == b"0":
                with suppress(UnicodeDecodeError):
                    found[last] = _lines(content.decode())
    return found, noise.decode(errors="replace").strip()


def _lines(text: str) -> list[str]:
    """As pyinfra reads them: by newlines alone, whether the last line has one or not."""
    lines = text.split("\n")
    return lines[:-1] if not lines[-1] else lines


# What is remembered


class _Stage(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    questions: list[tuple[str, str, str]]
    order: list[int]

    def listed(self) -> list[Question]:
        questions = [Question(*fields) for fields in self.questions]
        for question in questions:
            question.command.encode()
            if not isinstance(given := json.loads(question.arguments), dict) or not set(given) <= _WITH_OTHERS:
                raise ValueError(question.arguments)
        return [questions[index] for index in self.order]

    @classmethod
    def of(cls, asked: Iterable[Question]) -> _Stage:
        asked = list(asked)
        distinct = list(dict.fromkeys(asked))
        index = {question: number for number, question in enumerate(distinct)}
        return cls(
            questions=[(item.command, item.arguments, item.secret) for item in distinct],
            order=[index[question] for question in asked],
        )


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    format: Literal[1]
    pyinfra: str
    of: list[str]
    stages: dict[str, _Stage]


@dataclass
class Memory:
    """The questions that the last run asked of a host, in a file of the user's cache.

    Args:
        of: what makes a run of a host the same one again: inventory, operations, name, address, port, user.
    """

    of: list[str]
    stages: dict[str, list[Question]] = field(default_factory=dict)
    """Stage -> its questions, in the order in which they were asked."""
    refused: bool = False
    """The file, or its directory, is not as it must be: it is neither read nor written."""

    @property
    def path(self) -> Path:
        name = hashlib.sha256(json.dumps(self.of).encode()).hexdigest()[:32]
        return _directory() / f"{name}.json"

    def load(self) -> None:
        """Read what is there. A file that may be somebody else's is told; one that is damaged is none."""
        try:
            if why := _not_ours(self.path.parent, 0o700) or _not_ours(self.path, 0o600):
                self.refused = True
                _warn(f"{why}: it is not used, and this run asks every question by itself")
                return
            with open(os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW)) as file:
                read = _File.model_validate_json(file.read())
            if read.of == self.of and read.pyinfra == PYINFRA:
                self.stages = {name: stage.listed() for name, stage in read.stages.items()}
        except (OSError, ValueError, IndexError, RuntimeError) as error:  # RuntimeError: there is no home
            logger.debug("no questions remembered: %s", error)

    def save(self) -> None:
        """Write it, whole or not at all. That it could not be written costs the next run some time, and nothing else."""
        if self.refused:
            return
        stages = {name: _Stage.of(asked) for name, asked in self.stages.items()}
        try:
            content = _File(format=FORMAT, pyinfra=PYINFRA, of=self.of, stages=stages).model_dump_json()
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.path.parent, delete=False) as file:  # 0600
                try:
                    file.write(content)
                    file.close()
                    os.replace(file.name, self.path)
                except OSError:
                    os.unlink(file.name)
                    raise
            _forget_old(self.path.parent)
        except (OSError, ValueError, RuntimeError) as error:
            logger.debug("questions not remembered: %s", error)


def _directory() -> Path:
    return cache.directory() / "questions"


@functools.cache
def _warn(message: str) -> None:
    """Once, and not for each host."""
    logger.warning(message)


def _not_ours(path: Path, mode: int) -> str:
    """Why a file can't be trusted: what is in it will be run on the hosts. Nothing where it can, or is not there."""
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


def _forget_old(directory: Path) -> None:
    for path in directory.iterdir():
        if path.stat().st_mtime < time.time() - KEPT_DAYS * 86400:
            path.unlink()
