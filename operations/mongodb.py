"""MongoDB's first administrator, users, collections and indexes.

All speak through scripts on Python's standard input, with the distribution's pymongo: no password is in a command line,
and a script that logs everybody in is done before mongosh has started.
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
from groundwork.questions import SecretQuestion, ask
from groundwork.secrets import Secret, variable
from groundwork import ROOT
from operations.report import report, stop

_SCRIPTS = ROOT / "files" / "mongodb"
PYTHON = "/usr/bin/python3 -I -S -"
"""Runs the script on standard input, with nothing that anybody but the distribution has installed."""

CONTENT_SECONDS = 15
"""After which who asks for the content gives up; a login takes a hundredth of a second."""

PRIVATE_SOCKET = "/run/groundwork-mongodb-administrator/mongod.sock"
"""Where administrator.sh has mongod listen, and nobody but root can knock."""

CERTIFICATES_ROLE = "groundworkCertificates"
"""The administrator's for a moment, to bring a certificate."""


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
        _stdin=script("administrator", {"socket": PRIVATE_SOCKET, "password": secret_value("mongodb/admin"), "kept": kept}),
    )


class Content(SecretQuestion):
    """Whether users, collections and indexes are as they shall be; each user is logged in by it. It has the arguments of `content`."""

    @staticmethod
    def command(**_: Any) -> str:
        """It ends well and says nothing where there is no Python."""
        return f"command -v {PYTHON.split()[0]} >/dev/null || exit 0; timeout {CONTENT_SECONDS} {PYTHON}"

    @staticmethod
    def stdin(users: list[dict[str, Any]], **given: Any) -> str:
        return _content(users, **given, apply=False)


def _content(users: Iterable[Mapping[str, Any]], **given: Any) -> str:
    """content.py with all that it has to know, passwords too."""
    users = [_with_password(user) for user in users]
    return script("content", {**given, "role": CERTIFICATES_ROLE, "password": secret_value("mongodb/admin"), "users": users})


# Whatever else it prints, or nothing at all, is a failure.
_APPLY = (
    f"answer=$({PYTHON} | tail -n 1); case $answer in '{{\"changes\"'*) ;; "
    '*) echo "MongoDB: ${answer:-the script ended without an answer}" >&2; exit 1;; esac'
)


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
    wanted = {"port": port, "tls": tls, "kept": kept, "users": list(users), "collections": list(collections)}
    good, output = ask(host, Content, **wanted)
    found = answer(output.stdout_lines) if good else {"problem": output.stderr or output.stdout or f"MongoDB did not answer in {CONTENT_SECONDS} s"}
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
        yield StringCommand(_APPLY, _stdin=_content(**wanted, apply=True))


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
        f"answer=$({PYTHON} | tail -n 1); case $answer in '{{\"rotated\"'*) exit 0;; esac; "
        'echo "rotateCertificates: ${answer:-ended without an answer}; mongod is restarted" >&2; systemctl restart mongod.service && '
        f"timeout 120 sh -c 'until echo | openssl s_client -connect 127.0.0.1:{port} >/dev/null 2>&1; do sleep 0.2; done'",
        _stdin=script(
            "certificate",
            {"port": port, "tls": True, "password": secret_value("mongodb/admin"), "kept": kept, "role": CERTIFICATES_ROLE},
        ),
    )


def _with_password(user: Mapping[str, Any]) -> dict[str, Any]:
    password = {"password": secret_value(f"mongodb/{user['name']}")} if user["state"] == "present" else {}
    return {**user, **password}


def script(name: str, wanted: Mapping[str, Any]) -> str:
    """A script of files/mongodb for Python's standard input, after `wanted`, which may hold secrets, and login.py."""
    given = f"import json\nwanted = json.loads({json.dumps(wanted)!r})\n"
    return given + "".join((_SCRIPTS / f"{part}.py").read_text() for part in ("login", name))


def answer(lines: list[str]) -> dict[str, Any]:
    """The last JSON document that a script printed; {problem} if there is none."""
    for line in reversed(lines):
        if line.startswith("{"):
            return json.loads(line)
    return {"problem": "MongoDB could not be asked: " + " ".join(lines[-3:])}


def _stop(problem: str, kept: str) -> str:
    if problem == "refused":
        problem = (
            "MongoDB refuses the administrator: what the secret mongodb/admin has now is not its password, and "
            f"{kept} on this host does not hold it either. Nothing was changed. Give the password that it knows "
            f"for one run, in the environment variable {variable('mongodb/admin')} (an older secrets file, in git, "
            "has it); the run after that, without the variable, sets the new one"
        )
    return stop(problem)
