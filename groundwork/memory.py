"""What is remembered of a host between two runs: the questions that the last one asked, never an answer.

How they are used: groundwork/connector.py.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterable, Literal

from pydantic import BaseModel, ConfigDict
from pyinfra import __version__ as PYINFRA
from pyinfra import logger

from groundwork import cache
from groundwork.questions import WITH_OTHERS, Question

FORMAT = 1
"""Of the files with questions; another one's are not read."""

KEPT_DAYS = 90
"""After which the questions of a host that nobody has deployed to are forgotten."""


class _Stage(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    questions: list[tuple[str, str, str]]
    order: list[int]

    def listed(self) -> list[Question]:
        questions = [Question(*fields) for fields in self.questions]
        for question in questions:
            question.command.encode()
            if not isinstance(given := json.loads(question.arguments), dict) or not set(given) <= WITH_OTHERS:
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
            if why := cache.not_ours(self.path.parent, 0o700) or cache.not_ours(self.path, 0o600):
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


def _forget_old(directory: Path) -> None:
    for path in directory.iterdir():
        if path.stat().st_mtime < time.time() - KEPT_DAYS * 86400:
            path.unlink()
