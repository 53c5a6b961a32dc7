"""A role's files, declared together: one question, and a command for each that differs."""

from __future__ import annotations

import base64
import hashlib
import shlex
from typing import Iterable, Mapping

from pyinfra import host, logger, state
from pyinfra.api import StringCommand, operation
from pyinfra.operations.util.files import generate_color_diff

from facts.files import Content, Path
from groundwork.context import current, secret_value
from groundwork.rows import Absent, Directory, File, Link, Row
from groundwork.settings import RoleSettings, key
from groundwork.takeover import BEFORE
from groundwork.templates import render
from operations import declared
from operations.report import report, stop
from operations.unconfirmed import guarded

LIB = "/usr/local/lib/groundwork"
"""Where our own scripts are on a host."""

# The candidate is made in the target's directory, so that the last step is a rename; it is private
# until it has its owner and mode, and never survives a failure; what a power cut left is removed here.
_WRITE = """set -e; umask 077; rm -f -- {directory}/.{name}.??????
t=$(mktemp -- {directory}/.{name}.XXXXXX); trap 'rm -f -- "$t"' EXIT
base64 -d >"$t" || {{ echo {failed} >&2; exit 1; }}
chown {owner}:{group} "$t"; chmod {mode} "$t"
{check}sync "$t"; mv -fT -- "$t" {path}"""

# The daemon's own words, with the file's name for the candidate's; then where the file comes from.
_CHECK = """said=$({{ set +e; {check}
}} 2>&1) || {{ printf '%s\\n' "$said" | sed "s|$t|{path}|g" >&2; echo {refused} >&2; exit 1; }}
"""

# systemd warns of what it does not understand, goes on without it, and calls that a success. Of
# programs, the application's come later than its unit.
_SYSTEMD = """d=$(mktemp -d); install -D -m 644 {} "$d/$unit"; name=${unit%.d/*}
wrong=$(SYSTEMD_UNIT_PATH="$d:" systemd-analyze verify --man=no "$name" 2>&1 |
  grep -F -e "$d/" -e "$name: " | grep -v 'is not executable' | sed "s|$d/|/etc/systemd/system/|g")
rm -rf "$d"; echo "$wrong"; [ -z "$wrong" ]"""

# It ignores a line that it does not understand, and calls that a success (an error in bookworm's words, a
# warning in trixie's).
_LOGROTATE = """wrong=$(logrotate -d {} 2>&1 || echo error: refused by logrotate); ! echo "$wrong" | grep -e ^error: -e "{}:[0-9]" """

# A port at an address that is not ours is no trouble, unless one of the two is "everywhere".
_PORT = """{{ taken=$(ss -Hltnp 'sport = :{port}' | while read -r state in out at peer who; do
  case '{ours}' in ' '|*" ${{at%:*}} "*) ;; *) case $at in 0.0.0.0:*|'[::]:'*|'*:'*) ;; *) continue ;; esac ;; esac
  pid=${{who#*pid=}}; grep -qs '/{unit}$' "/proc/${{pid%%,*}}/cgroup" || echo "$at $who"
done); [ -z "$taken" ] || {{ echo "{unit} can't have port {port} ({where}), which another program has: $taken"; false; }}; }}"""

# modprobe, too, ignores a line that it does not understand, with a warning.
_MODPROBE = "[ ! -e /sbin/modprobe ] || ! modprobe -C {} -c 2>&1 >/dev/null | grep ."

PLACES = {
    "/etc/systemd/system/": _SYSTEMD,
    "/etc/logrotate.d/": _LOGROTATE,
    "/etc/modprobe.d/": _MODPROBE,
    "/etc/apt/apt.conf.d/": "APT_CONFIG={} apt-config dump >/dev/null",
    f"{LIB}/": "sh -n {}",
}
"""Directory -> how a file in it is checked when its row says nothing."""


@operation()
def table(rows: Iterable[Row], settings: RoleSettings | None, before: str | None = None):
    """Make a host's files agree with a table of rows.

    Rows are taken in order: a directory before what is in it. A file is written to a candidate,
    checked by its row's `check`, and renamed into place; its content travels on standard input, so
    that no command line, log or temporary file of pyinfra's ever holds it.

    Args:
        rows: Directory, File, Link and Absent rows.
        settings: the role's settings, for the templates.
        before: command to run before each change, in the same shell.
    """
    rows = list(rows)
    found = declared.paths(row.path for row in rows)
    machine = current().machine
    new_here = machine is not None and settings is not None and settings.mark not in machine.marks
    # All at once: pyinfra asks only for the first command when it looks ahead, and --dry shall name all.
    commands = [
        command
        for row in rows
        for command in _agree(row, found.get(row.path), settings, new_here)
    ]
    yield from guarded(before, commands)


def _agree(row: Row, now: Path | None, settings: RoleSettings, new_here: bool = False):
    if isinstance(row, Directory):
        yield from _directory(row, now)
    elif isinstance(row, Link):
        yield from _link(row, now, settings)
    elif isinstance(row, Absent):
        yield from _absent(row, now)
    elif isinstance(row, File):
        yield from _file(row, now, settings, new_here)


def _kept(row: File, now: Path | None, new_here: bool):
    """A copy of what was there before the role came to the host; made once."""
    if row.keep and new_here and now is not None:
        path, copy = shlex.quote(row.path), shlex.quote(row.path + BEFORE)
        report(f"{row.path}: what was there is kept as {row.path}{BEFORE}")
        # Ours is there where an earlier run was cut off.
        yield (
            f"[ -e {copy} ] || grep -qs 'Managed by Groundwork' {path} || "
            f"{{ cp -aLT -- {path} {copy}.new && mv -fT -- {copy}.new {copy}; }}"
        )


def _directory(row: Directory, now: Path | None):
    if now is None:
        report(f"{row.path}: new directory")
        yield (
            f"install -d -o {row.owner} -g {row.group} -m {_full(row.mode)} -- {shlex.quote(row.path)}"
        )
    elif now.kind != "directory":
        yield stop(f"{row.path} is a {now.kind}, and shall be a directory: move it away")
    else:
        yield from _ownership(row, now)


def _link(row: Link, now: Path | None, settings: RoleSettings):
    if now is not None and now.kind not in ("link", "file"):
        yield stop(f"{row.path} is a {now.kind}, and shall be a link: move it away")
    elif now is None or now.target != row.target:
        report(f"{row.path}: link to {row.target}")
        # ln -sf removes before it creates; a rename never leaves a moment with no link.
        new = shlex.quote(f"{row.path}.new")
        refused = stop(f"refused: {row.path} would lead to {row.target}, which is not there. {_origin(row, settings)}")
        yield (
            f"[ -e {shlex.quote(row.target)} ] || {{ {refused}; }}; "
            f"ln -sfn -- {shlex.quote(row.target)} {new} && mv -fT -- {new} {shlex.quote(row.path)}"
        )


def _absent(row: Absent, now: Path | None):
    if now is not None and row.aside:
        report(f"{row.path}: put aside as {row.path}{row.aside}")
        yield f"mv -fT -- {shlex.quote(row.path)} {shlex.quote(row.path + row.aside)}"
    elif now is not None:
        report(f"{row.path}: removed")
        remove = "rmdir" if now.kind == "directory" else "rm -f"
        yield f"{remove} -- {shlex.quote(row.path)}"


def _file(row: File, now: Path | None, settings: RoleSettings, new_here: bool = False):
    if now is not None and now.kind not in ("file", "link"):
        yield stop(f"{row.path} is a {now.kind}, and shall be a file: move it away")
        return
    content = render(row, settings, current(), secret_value)
    if now is not None and now.sha256 == hashlib.sha256(content).hexdigest():
        yield from _ownership(row, now)
        return
    yield from _kept(row, now, new_here)
    report(f"{row.path}: {'new' if now is None else 'changed'}")
    _show_diff(row, content)
    yield write(row, content, settings)


def write(row: File, content: bytes, settings: RoleSettings | None = None) -> StringCommand:
    """The command that puts content at a row's path: a candidate, its check, a rename.

    Args:
        settings: of the role, to tell what to edit when the candidate is refused.
    """
    return StringCommand(_write_command(row, settings), _stdin=base64.b64encode(content).decode())


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


def _write_command(row: File, settings: RoleSettings | None) -> str:
    directory, name = row.path.rsplit("/", 1)
    return _WRITE.format(
        directory=shlex.quote(directory or "/"),
        name=shlex.quote(name),
        owner=row.owner,
        group=row.group,
        mode=row.mode,
        check=_check(row, settings),
        path=shlex.quote(row.path),
        failed=shlex.quote(f"{row.path} could not be written; what was there is as it was"),
    )


def _check(row: File, settings: RoleSettings | None) -> str:
    """The lines that try the candidate, and refuse it in words."""
    place = next((place for place in PLACES if row.path.startswith(place)), "")
    check = row.check or PLACES.get(place)
    if not check:
        return ""
    unit = f"unit={shlex.quote(row.path.removeprefix(place))}\n" if check == _SYSTEMD else ""
    refused = shlex.quote(f"refused: {row.path} is as it was, and so is what runs. {_origin(row, settings)}")
    return unit + _CHECK.format(check=check.replace("{}", "$t"), path=row.path, refused=refused)


def _origin(row: File | Link, settings: RoleSettings | None) -> str:
    """What to edit: the template, and the role's settings that the inventory sets."""
    source = row.source if isinstance(row, File) else None
    template = row.template if isinstance(row, File) else None
    places = [f"templates/{template}"] if template else [f"files/{source}"] if source else []
    if settings and not source:
        places += [key(type(settings), name) for name in sorted(settings.model_fields_set)]
    return f"It comes from {', '.join(places)}" if places else ""


def ports_free(unit: str, ports: Mapping[int, str], addresses: Iterable[str] = ()) -> str:
    """A check that no other program has the ports on which a unit is to listen; it says who has them.

    Args:
        unit: whose own processes don't count.
        ports: TCP port -> where it is set, for the message.
        addresses: where the unit listens; none for everywhere.
    """
    ours = "".join(f" [{address}]" if ":" in address else f" {address}" for address in addresses) + " "
    checks = [_PORT.format(unit=unit, port=port, where=where, ours=ours) for port, where in ports.items()]
    return " && ".join(checks)


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
