"""A role's files, declared together: one question, and a command for each that differs."""

from __future__ import annotations

import base64
import hashlib
import shlex
from typing import Iterable

from pyinfra import host, logger, state
from pyinfra.api import StringCommand, operation
from pyinfra.operations.util.files import generate_color_diff

from facts.files import Content, Path, Paths
from groundwork.context import current, secret_value
from groundwork.rows import Absent, Directory, File, Link, Row
from groundwork.settings import RoleSettings
from groundwork.templates import render
from operations.report import report

# The candidate is made in the target's directory, so that the last step is a rename; it is private
# until it has its owner and mode, and never survives a failure; what a power cut left is removed here.
_WRITE = """set -e; umask 077; rm -f -- {directory}/.{name}.??????
t=$(mktemp -- {directory}/.{name}.XXXXXX); trap 'rm -f -- "$t"' EXIT
base64 -d >"$t" || {{ echo {failed} >&2; exit 1; }}
chown {owner}:{group} "$t"; chmod {mode} "$t"
{check}sync "$t"; mv -fT -- "$t" {path}"""


@operation()
def table(rows: Iterable[Row], settings: RoleSettings):
    """Make a host's files agree with a table of rows.

    Rows are taken in order: a directory before what is in it. A file is written to a candidate,
    checked by its row's `check`, and renamed into place; its content travels on standard input, so
    that no command line, log or temporary file of pyinfra's ever holds it.

    Args:
        rows: Directory, File, Link and Absent rows.
        settings: the role's settings, for the templates.
    """
    rows = list(rows)
    found = host.get_fact(Paths, paths=[row.path for row in rows]) or {}
    # All at once: pyinfra asks only for the first command when it looks ahead, and --dry shall name all.
    yield from [command for row in rows for command in _agree(row, found.get(row.path), settings)]


def _agree(row: Row, now: Path | None, settings: RoleSettings):
    if isinstance(row, Directory):
        yield from _directory(row, now)
    elif isinstance(row, Link):
        yield from _link(row, now)
    elif isinstance(row, Absent):
        yield from _absent(row, now)
    elif isinstance(row, File):
        yield from _file(row, now, settings)


def _directory(row: Directory, now: Path | None):
    if now is None:
        report(f"{row.path}: new directory")
        yield (
            f"install -d -o {row.owner} -g {row.group} -m {_full(row.mode)} -- {shlex.quote(row.path)}"
        )
    elif now.kind != "directory":
        yield _refuse(f"{row.path} is a {now.kind}, and shall be a directory: move it away")
    else:
        yield from _ownership(row, now)


def _link(row: Link, now: Path | None):
    if now is not None and now.kind not in ("link", "file"):
        yield _refuse(f"{row.path} is a {now.kind}, and shall be a link: move it away")
    elif now is None or now.target != row.target:
        report(f"{row.path}: link to {row.target}")
        # ln -sf removes before it creates; a rename never leaves a moment with no link.
        new = shlex.quote(f"{row.path}.new")
        yield f"ln -sfn -- {shlex.quote(row.target)} {new} && mv -fT -- {new} {shlex.quote(row.path)}"


def _absent(row: Absent, now: Path | None):
    if now is not None:
        report(f"{row.path}: removed")
        remove = "rmdir" if now.kind == "directory" else "rm -f"
        yield f"{remove} -- {shlex.quote(row.path)}"


def _file(row: File, now: Path | None, settings: RoleSettings):
    if now is not None and now.kind not in ("file", "link"):
        yield _refuse(f"{row.path} is a {now.kind}, and shall be a file: move it away")
        return
    content = render(row, settings, current(), secret_value)
    if now is not None and now.sha256 == hashlib.sha256(content).hexdigest():
        yield from _ownership(row, now)
        return
    report(f"{row.path}: {'new' if now is None else 'changed'}")
    _show_diff(row, content)
    yield write(row, content)


def write(row: File, content: bytes) -> StringCommand:
    """The command that puts content at a row's path: a candidate, its check, a rename."""
    return StringCommand(_write_command(row), _stdin=base64.b64encode(content).decode())


def _ownership(row: File | Directory, now: Path):
    path = shlex.quote(row.path)
    if (now.owner, now.group) != (row.owner, row.group):
        report(f"{row.path}: owner {row.owner}:{row.group} (was {now.owner}:{now.group})")
        yield f"chown {row.owner}:{row.group} -- {path}"
    if now.mode != row.mode.lstrip("0"):
        report(f"{row.path}: mode {row.mode} (was {now.mode})")
        yield f"chmod {_full(row.mode)} -- {path}"


def _full(mode: str) -> str:
    """Five digits: with fewer, chmod leaves a directory's setuid and setgid bits as they are."""
    return mode.rjust(5, "0")


def _write_command(row: File) -> str:
    directory, name = row.path.rsplit("/", 1)
    check = f"{(row.check or '').replace('{}', '$t')} || {{ echo 'refused: {row.path}' >&2; exit 1; }}\n"
    return _WRITE.format(
        directory=shlex.quote(directory or "/"),
        name=shlex.quote(name),
        owner=row.owner,
        group=row.group,
        mode=row.mode,
        check=check if row.check else "",
        path=shlex.quote(row.path),
        failed=shlex.quote(f"{row.path} could not be written; what was there is as it was"),
    )


def _show_diff(row: File, content: bytes) -> None:
    if not state.config.DIFF or state.is_executing:
        return
    if row.secret:
        report(f"{row.path}: holds secrets, its difference is not shown")
        return
    now = [f"{line}\n" for line in host.get_fact(Content, path=row.path) or []]
    wanted = content.decode(errors="replace").splitlines(keepends=True)
    for line in generate_color_diff(now, wanted):
        logger.info(f"  {line}")


def _refuse(message: str) -> str:
    """A command that says why and fails: an exception here would end the run for every host."""
    return f"echo {shlex.quote(message)} >&2; exit 1"
