"""What a host held before Groundwork came: kept, and handed over. Each does nothing where there was nothing."""

from __future__ import annotations

import json
import shlex

from pyinfra import host
from pyinfra.api import StringCommand, operation
from pyinfra.api.exceptions import PyinfraError

from facts.files import Paths
from groundwork import ROOT
from groundwork.context import current, secret_value
from groundwork.questions import asking
from groundwork.settings import HostSettings
from groundwork.takeover import BEFORE, Found
from operations import mongodb as database
from operations.report import report

MONGOSH = (
    'home=$(mktemp -d) && trap \'rm -rf "$home"\' EXIT && '
    "HOME=$home mongosh --quiet --norc --nodb --file /dev/stdin"
)
"""Runs the script on standard input, and leaves no history: on a host that is not ours yet there may be nothing else."""

_NO_ADMINISTRATOR = (
    "MongoDB has data, and no administrator admin with the secret mongodb/admin, nor can one be made. Its configuration was "
    "not touched, and it asks for no more passwords than before. Run again: now that mongosh is installed, the run says what "
    "to type. MongoDB's answer"
)

# The password is read where it lies: it never leaves the host, and is in no argument.
_APPEND_ONLY = """c=/etc/redis/redis.conf
ask() { { sed -n 's/^requirepass  */AUTH /p' $c | tail -n 1; echo "$1"; } | redis-cli -p __PORT__ | tr -d '\\r'; }
ask 'CONFIG SET appendonly yes' | tail -n 1 | grep -qx OK || { echo 'Redis does not turn its append-only file on' >&2; exit 1; }
end=$(($(date +%s) + 1800))
until ask 'INFO persistence' | grep -c -e '^aof_enabled:1' -e '^aof_rewrite_in_progress:0' -e '^aof_rewrite_scheduled:0' -e '^aof_last_bgrewrite_status:ok' | grep -qx 4; do
  [ $(date +%s) -lt $end ] || { echo 'Redis has not written its append-only file in 1800 s: nothing was changed' >&2; exit 1; }
  sleep 0.5
done"""


@operation()
def mongodb(found: Found | None):
    """Make the administrator in a MongoDB that asked nobody for a password; its data and users stay.

    It comes before the configuration, and after mongosh: nothing asks for passwords before somebody is known
    to have one that may make others.

    Args:
        found: what was there; None where the role was before.
    """
    if found is None or found.mongodb.ours or not found.mongodb.data or found.mongodb.login == "good":
        return
    report("MongoDB: administrator admin made on the data that is there, if it is not there yet")
    yield StringCommand(
        f"answer=$({MONGOSH} | tail -n 1); case $answer in '{{\"login\":\"good\"}}'|'{{\"login\":\"made\"}}') ;; "
        f"*) printf '%s: %s\\n' {shlex.quote(_NO_ADMINISTRATOR)} \"${{answer:-no answer}}\" >&2; exit 1;; esac",
        _stdin=mongodb_script(found.mongodb.port, apply=True),
    )


def mongodb_login(found: Found) -> str:
    """Whether admin with the secret gets into the MongoDB on the current host: see `MongoDB.login`."""
    command = StringCommand(f"mongosh --version >/dev/null 2>&1 || {{ echo absent; exit; }}; {MONGOSH}")
    good, output = host.run_shell_command(command, _sudo=True, _stdin=mongodb_script(found.mongodb.port))
    if "absent" in output.stdout_lines:
        return "unknown"
    return database.answer(output.stdout_lines).get("login", "silent") if good else "silent"


def mongodb_script(port: int, apply: bool = False) -> str:
    """The script for mongosh's standard input, with the secret mongodb/admin.

    Args:
        port: where mongod listens on loopback.
        apply: make the administrator.
    """
    wanted = {"port": port, "password": secret_value("mongodb/admin"), "apply": apply}
    return f"const wanted = {json.dumps(wanted)};\n{(ROOT / 'files/mongodb/takeover.js').read_text()}"


@operation()
def sources(found: Found | None, role: str):
    """Put aside apt's sources of a vendor's repository that the role declares itself, with its key.

    Args:
        found: what was there; None where the role was before.
        role: whose vendor.
    """
    paths = found.sources.get(role, []) if found is not None else []
    for path in (host.get_fact(Paths, paths=paths) or {}) if paths else ():
        report(f"{path}: kept as {path}{BEFORE}")
        yield f"mv -fT -- {shlex.quote(path)} {shlex.quote(path + BEFORE)}"


@operation()
def redis(found: Found | None):
    """Let the running Redis write the append-only file that it will be started from.

    With `appendonly yes` in its configuration alone, a Redis that had snapshots starts empty.

    Args:
        found: what was there; None where the role was before.
    """
    if found is None or found.redis.ours or not found.redis.databases:
        return
    report(f"Redis: what is in {', '.join(found.redis.databases)} goes to an append-only file")
    yield _APPEND_ONLY.replace("__PORT__", shlex.quote(found.redis.options.get("port", "6379")))


@operation()
def base(found: Found | None, mark: str):
    """Switch ufw off, whose work the rules of the flows do by now; and note that the role was here.

    Args:
        found: what was there; None where the role was before.
        mark: the file that says so.
    """
    if found is None or mark in (current().machine.marks if current().machine else ()):
        return
    # On a host from before the mark, ufw ran beside our rules: then that is for somebody to decide.
    if found.ufw is not None and (not found.firewall_written or "base" in current().settings(HostSettings).take_over):
        report("ufw: disabled; its rules stay in /etc/ufw")
        yield "ufw disable >/dev/null"
    report(f"{mark}: written, so that later runs know that Groundwork was here")
    yield f"mkdir -p /var/lib/groundwork && touch {shlex.quote(mark)}"


def ask(roles: list[str]) -> Found:
    """What is on the current host, in the way of roles that are new to it.

    Raises:
        PyinfraError: where it can't be asked.
    """
    from facts.found import Found as Fact

    fact = Fact()
    with asking(host):
        good, output = host.run_shell_command(StringCommand(fact.command(roles)), _sudo=True)
    if not good:
        raise PyinfraError(f"can't be asked what runs on it: {' '.join(output.stderr_lines[-1:])}")
    found = fact.process(output.stdout_lines)
    if "mongodb" in roles and found.mongodb.data and not found.mongodb.ours and found.runs("mongod.service"):
        found.mongodb.login = mongodb_login(found)
    return found
