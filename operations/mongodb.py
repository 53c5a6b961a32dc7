"""MongoDB's first administrator, users, collections and indexes.

All speak through scripts on mongosh's standard input: no password is in a command line.
"""

from __future__ import annotations

import json
import shlex
from typing import Any, Iterable, Mapping

from pyinfra import host, state
from pyinfra.api import FactBase, StringCommand, operation

from groundwork.context import secret_value
from groundwork.secrets import variable
from groundwork.templates import ROOT
from operations.report import report, stop

_SCRIPTS = ROOT / "files" / "mongodb"
MONGOSH = (
    'home=$(mktemp -d) && trap \'rm -rf "$home"\' EXIT && '
    "HOME=$home mongosh --quiet --norc --nodb --file /dev/stdin"
)
"""Runs the script on standard input, and leaves no history."""


class Started(FactBase):
    """Whether a data directory has been used: "yes", "no", or "half" where its first start was cut off."""

    def command(self, data_directory: str) -> str:
        return (
            "if [ -e /var/lib/groundwork/mongodb-administrator ]; then echo half; "
            f"elif [ -e {shlex.quote(data_directory)}/WiredTiger ]; then echo yes; else echo no; fi"
        )


@operation()
def administrator(data_directory: str, kept: str):
    """Make the first administrator of an empty data directory, before anybody else can knock.

    On a data directory that has been used it does nothing: whether the administrator's password is
    right is found by `content`, by logging in.

    Args:
        data_directory: `storage.dbPath`.
        kept: file of the administrator's password as last set on this host.
    """
    if host.get_fact(Started, data_directory=data_directory) == "yes":
        return
    report("MongoDB: first start, on a private socket; administrator admin made")
    yield StringCommand(
        "sh -c",
        shlex.quote((_SCRIPTS / "administrator.sh").read_text()),
        "administrator",
        shlex.quote(data_directory),
        _stdin=script(["kept.js", "administrator.js"], {"password": secret_value("mongodb/admin"), "kept": kept}),
    )


@operation()
def content(
    port: int, kept: str, users: Iterable[Mapping[str, Any]], collections: Iterable[Mapping[str, Any]]
):
    """Make passwords, users, collections and indexes agree; each user is checked by logging in.

    Args:
        port: where mongod listens on loopback.
        kept: file of the administrator's password as last set on this host: the way in when the
            secret has changed.
        users: dicts with name, database, roles, state.
        collections: dicts with database, name, timeseries, indexes.
    """
    wanted = {
        "port": port,
        "password": secret_value("mongodb/admin"),
        "kept": kept,
        "users": [_with_password(user) for user in users],
        "collections": list(collections),
        "apply": False,
    }
    good, output = host.run_shell_command(
        StringCommand(f"command -v mongosh >/dev/null || exit 0; {MONGOSH}"),
        _sudo=True,
        _stdin=script(["kept.js", "content.js"], wanted),
    )
    found = answer(output.stdout_lines) if good else {"problem": output.stderr or output.stdout}
    if "problem" in found:
        if state.is_executing:
            yield _stop(found["problem"], kept)
        else:
            yield "true"  # not running yet, or not as it will be: told when it is executed
        return
    for note in found["notes"]:
        host.log(f"  MongoDB: {note}")
    for change in found["changes"]:
        report(f"MongoDB: {change}")
    if found["changes"]:
        yield StringCommand(
            # Whatever else it prints, or nothing at all, is a failure.
            f"answer=$({MONGOSH} | tail -n 1); case $answer in '{{\"changes\"'*) ;; "
            '*) echo "mongosh: ${answer:-ended without an answer}" >&2; exit 1;; esac',
            _stdin=script(["kept.js", "content.js"], {**wanted, "apply": True}),
        )


def _with_password(user: Mapping[str, Any]) -> dict[str, Any]:
    password = {"password": secret_value(f"mongodb/{user['name']}")} if user["state"] == "present" else {}
    return {**user, **password}


def script(names: list[str], wanted: Mapping[str, Any]) -> str:
    """Scripts of files/mongodb for mongosh's standard input, after `wanted`, which may hold secrets."""
    return f"const wanted = {json.dumps(wanted)};\n" + "".join((_SCRIPTS / name).read_text() for name in names)


def answer(lines: list[str]) -> dict[str, Any]:
    """The last JSON document that a script printed; {problem} if there is none."""
    for line in reversed(lines):
        if line.startswith("{"):
            return json.loads(line)
    return {"problem": "mongosh gave no answer: " + " ".join(lines[-3:])}


def _stop(problem: str, kept: str) -> str:
    if problem == "refused":
        problem = (
            "MongoDB refuses the administrator: what the secret mongodb/admin has now is not its password, and "
            f"{kept} on this host does not hold it either. Nothing was changed. Give the password that it knows "
            f"for one run, in the environment variable {variable('mongodb/admin')} (an older secrets file, in git, "
            "has it); the run after that, without the variable, sets the new one"
        )
    return stop(problem)
