"""A role's files as a table: what shall be at which path, with which owner and mode.

Rows are plain declarations. `operations.files.table` makes a host agree with them; `preflight` and
the unit tests render them with no host at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Mapping


@dataclass(frozen=True)
class Row:
    """What every row has."""

    path: str


@dataclass(frozen=True)
class Directory(Row):
    """A directory. Its content is left alone."""

    owner: str = "root"
    group: str = "root"
    mode: str = "755"


@dataclass(frozen=True)
class Link(Row):
    """A symbolic link."""

    target: str = ""


@dataclass(frozen=True)
class Absent(Row):
    """No file here. (A directory is removed only when it is empty.)"""

    aside: str = ""
    """Instead of being removed it gets this suffix, and stays."""


@dataclass(frozen=True)
class File(Row):
    """A regular file, from a template, a file of the repository, or a text.

    Its content is written to a candidate beside it, checked, and renamed over it.
    """

    template: str | None = None
    """Path under templates/."""
    source: str | None = None
    """Path under files/, or an absolute path on the controller."""
    content: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    """More names for the template, besides `settings`, `here` and `secret`."""
    owner: str = "root"
    group: str = "root"
    mode: str = "644"
    check: str | None = None
    """Shell command that must succeed before the file lands; `{}` stands for the candidate."""
    keep: bool = False
    """What was there before its role came to the host is kept beside it, as PATH.before-groundwork."""
    secret: bool = False
    """Holds a secret: its diff says no more than "changed"."""
