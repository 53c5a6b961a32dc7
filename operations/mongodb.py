"""MongoDB's first administrator, users, collections and indexes.

All speak through scripts on mongosh's standard input: no password is in a command line.
"""

from __future__ import annotations

import json
import shlex
from typing import Any, Iterable, Mapping

from pyinfra import host, state
from pyinfra.api import FactBase, StringCommand, operation

from facts.certificate import Served
from groundwork import certificates
from groundwork.context import secret_value
from groundwork.secrets import Secret, variable
from groundwork.templates import ROOT
from operations.report import report, stop

_SCRIPTS = ROOT / "files" / "mongodb"
MONGOSH = (
    'home=$(mktemp -d) && trap \'rm -rf "$home"\' EXIT && '
    "HOME=$home mongosh --quiet --norc --nodb --file /dev/stdin"
)
"""Runs the script on standard input, and leaves no history."""


_CONTENT = ["connect.js", "kept.js", "content.js"]

_EMPTY = "groundwork mongodb is empty"
"""In a host's connector_data: this run has made the administrator, and there is nothing else in MongoDB."""


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
    if state.is_executing:
        host.connector_data[_EMPTY] = True


@operation()
def content(
    port: int, tls: bool, kept: str, users: Iterable[Mapping[str, Any]], collections: Iterable[Mapping[str, Any]]
):
    """Make passwords, users, collections and indexes agree; each user is checked by logging in.

    Args:
        port: where mongod listens on loopback.
        tls: it speaks TLS there.
        kept: file of the administrator's password as last set on this host: the way in when the
            secret has changed.
        users: dicts with name, database, roles, state.
        collections: dicts with database, name, timeseries, indexes.
    """
    wanted = {
        "port": port,
        "tls": tls,
        "password": secret_value("mongodb/admin"),
        "kept": kept,
        "users": [_with_password(user) for user in users],
        "collections": list(collections),
        "apply": False,
    }
    if state.is_executing and host.connector_data.pop(_EMPTY, False):
        # mongosh takes a second or more to start: it is not asked about what can't be there.
        names = [f"user {user['name']}" for user in users if user["state"] == "present"]
        names += [f"collection {item['database']}.{item['name']}" for item in collections]
        if names:
            report(f"MongoDB: new: {', '.join(names)}")
            yield _applied(wanted)
        return
    good, output = host.run_shell_command(
        StringCommand(f"command -v mongosh >/dev/null || exit 0; {MONGOSH}"),
        _sudo=True,
        _stdin=script(_CONTENT, wanted),
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
        yield _applied(wanted)


def _applied(wanted: Mapping[str, Any]) -> StringCommand:
    return StringCommand(
        # Whatever else it prints, or nothing at all, is a failure.
        f"answer=$({MONGOSH} | tail -n 1); case $answer in '{{\"changes\"'*) ;; "
        '*) echo "mongosh: ${answer:-ended without an answer}" >&2; exit 1;; esac',
        _stdin=script(_CONTENT, {**wanted, "apply": True}),
    )


@operation()
def certificate(port: int, secret: str, kept: str):
    """Make mongod serve the certificate that a secret holds: without a restart where it can.

    A mongod that does not run, or speaks no TLS yet, will read it as it starts.

    Args:
        port: where mongod listens on loopback.
        secret: name of the secret with the chain.
        kept: file of the administrator's password as last set on this host.
    """
    chain = secret_value(secret)
    left = certificates.days_left(chain)
    if left < certificates.SOON_DAYS:
        host.log(f"  MongoDB: {Secret(secret)} ends on {certificates.ends(chain):%Y-%m-%d}, in {left} days: get a new one")
    served, wanted = host.get_fact(Served, port=port), certificates.fingerprints(chain)
    # mongod sends the authority's own after the chain.
    if served is None or served[: len(wanted)] == wanted:
        return
    report("MongoDB: takes the new certificate (rotateCertificates; a restart if it does not)")
    yield StringCommand(
        f"answer=$({MONGOSH} | tail -n 1); case $answer in '{{\"rotated\"'*) exit 0;; esac; "
        'echo "rotateCertificates: ${answer:-ended without an answer}; mongod is restarted" >&2; systemctl restart mongod.service && '
        f"timeout 120 sh -c 'until echo | openssl s_client -connect 127.0.0.1:{port} >/dev/null 2>&1; do sleep 0.2; done'",
        _stdin=script(
            ["connect.js", "kept.js", "certificate.js"],
            {"port": port, "tls": True, "password": secret_value("mongodb/admin"), "kept": kept},
        ),
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
