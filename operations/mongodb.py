"""MongoDB's first administrator, users, collections and indexes.

All speak through scripts on mongosh's standard input: no password is in a command line.
"""

from __future__ import annotations

import json
import shlex
from typing import Any, Iterable, Mapping

from pyinfra import host, state
from pyinfra.api import FactBase, StringCommand, operation

from groundwork.context import inventory_file, secret_value
from groundwork.templates import ROOT
from operations.report import report

_SCRIPTS = ROOT / "files" / "mongodb"
_MONGOSH = (
    'home=$(mktemp -d) && trap \'rm -rf "$home"\' EXIT && '
    "HOME=$home mongosh --quiet --norc --nodb --file /dev/stdin"
)


class Started(FactBase):
    """Whether a data directory has been used: "yes", "no", or "half" where its first start was cut off."""

    def command(self, data_directory: str) -> str:
        return (
            "if [ -e /var/lib/groundwork/mongodb-administrator ]; then echo half; "
            f"elif [ -e {shlex.quote(data_directory)}/WiredTiger ]; then echo yes; else echo no; fi"
        )


@operation()
def administrator(data_directory: str):
    """Make the first administrator of an empty data directory, before anybody else can knock.

    On a data directory that has been used it does nothing: whether the administrator's password is
    right is found by `content`, by logging in.

    Args:
        data_directory: `storage.dbPath`.
    """
    if host.get_fact(Started, data_directory=data_directory) == "yes":
        return
    report("MongoDB: first start, on a private socket; administrator admin made")
    yield StringCommand(
        "sh -c",
        shlex.quote((_SCRIPTS / "administrator.sh").read_text()),
        "administrator",
        shlex.quote(data_directory),
        _stdin=_script("administrator.js", {"password": secret_value("mongodb/admin")}),
    )


@operation()
def content(port: int, users: Iterable[Mapping[str, Any]], collections: Iterable[Mapping[str, Any]]):
    """Make users, collections and indexes agree; each user is checked by logging in.

    Args:
        port: where mongod listens on loopback.
        users: dicts with name, database, roles.
        collections: dicts with database, name, timeseries, indexes.
    """
    wanted = {
        "port": port,
        "password": secret_value("mongodb/admin"),
        "users": [{**user, "password": secret_value(f"mongodb/{user['name']}")} for user in users],
        "collections": list(collections),
        "apply": False,
    }
    good, output = host.run_shell_command(
        StringCommand(f"command -v mongosh >/dev/null || exit 0; {_MONGOSH}"),
        _sudo=True,
        _stdin=_script("content.js", wanted),
    )
    found = _answer(output.stdout_lines) if good else {"problem": output.stderr or output.stdout}
    if "problem" in found:
        if state.is_executing:
            yield _stop(found["problem"])
        else:
            yield "true"  # not running yet, or not as it will be: told when it is executed
        return
    for change in found["changes"]:
        report(f"MongoDB: {change}")
    if found["changes"]:
        yield StringCommand(
            # Whatever else it prints, or nothing at all, is a failure.
            f"answer=$({_MONGOSH} | tail -n 1); case $answer in '{{\"changes\"'*) ;; "
            '*) echo "mongosh: ${answer:-ended without an answer}" >&2; exit 1;; esac',
            _stdin=_script("content.js", {**wanted, "apply": True}),
        )


def _script(name: str, wanted: Mapping[str, Any]) -> str:
    return f"const wanted = {json.dumps(wanted)};\n{(_SCRIPTS / name).read_text()}"


def _answer(lines: list[str]) -> dict[str, Any]:
    for line in reversed(lines):
        if line.startswith("{"):
            return json.loads(line)
    return {"problem": "mongosh gave no answer: " + " ".join(lines[-3:])}


def _stop(problem: str) -> str:
    if problem == "refused":
        problem = (
            "MongoDB refuses the administrator: its data was made with another password than the secret "
            "mongodb/admin now has. Nothing was changed. Put the password that it knows back: "
            f"`python -m groundwork.secrets --inventory {inventory_file()} rotate mongodb/admin --no-generate` "
            "(an older secrets file, in git, has it)"
        )
    return f"echo {shlex.quote(problem)} >&2; exit 1"
