"""Redis's users: loaded by the running server, and seen to log in.

Passwords go to redis-cli on its standard input: none is in a command line or an environment.
"""

from __future__ import annotations

import shlex
from typing import Any, Iterable

from pyinfra import host, state
from pyinfra.api import StringCommand, operation
from pyinfra.api.operation import OperationMeta

from facts.answers import SECONDS
from facts.units import STAMPS
from groundwork.context import secret_value
from groundwork.questions import SecretQuestion, ask
from operations import declared
from operations.report import report, stop

# Which login the running server takes: the one on standard input, or one of those that the host keeps.
WAY_IN = """wanted=$(cat)
for way in wanted {kept} {kept}.new; do
  case $way in wanted) login=$wanted;; *) [ -f $way ] || continue; login=$(cat $way);; esac
  answer=$(printf '%s\\n' "$login" | redis-cli -p {port} 2>&1)
  case $answer in OK) echo $way; exit;; *WRONGPASS*|*NOAUTH*) ;; *) echo "$answer"; exit 1;; esac
done
echo none"""

_LOAD = """answer=$({login} | redis-cli -p {port} 2>&1 || true)
[ "$answer" = "OK
OK" ] || {{ echo "Redis does not load {acl}: $answer" >&2; exit 1; }}"""

# Before the new one is loaded: from here on, the right one is among the two, wherever the run ends.
_ANNOUNCE = """umask 077; [ {way} = {kept} ] || mv -fT {way} {kept}
cat >{kept}.new; sync {kept}.new"""

_STAMP = """mkdir -p {stamps}; touch {stamps}/{unit}"""

_LOG_IN = """script=$(cat); end=$(($(date +%s) + {seconds}))
while :; do
  answer=$(printf '%s\\n' "$script" | redis-cli -p {port} 2>&1 | tr '\\n' ' ')
  [ "$answer" != {wanted} ] || exit 0
  case $answer in *WRONGPASS*) break;; esac
  if [ $(date +%s) -ge $end ] || systemctl is-failed --quiet {unit}; then break; fi
  sleep 0.2
done
echo "$answer"; exit 1"""


@operation()
def access(
    port: int,
    unit: str,
    acl: str,
    users: Iterable[str],
    kept: str,
    seconds: int = 120,
    after: Iterable[OperationMeta] = (),
):
    """Make the running server use its ACL file as it is on disk, and see each user log in.

    The ACL is loaded without a restart, with the administrator's login as it shall be, or as this host
    keeps it since it was last set. Where the server takes neither, only a restart makes it read the file.

    Args:
        port: where Redis listens on loopback.
        unit: its unit.
        acl: the ACL file.
        users: who must be able to log in; `redis/<user>` is the secret. "admin" may do all.
        kept: file of the administrator's login as last set on this host.
        seconds: how long to wait for the server, which reads its data first.
        after: operations of this run that may change the file, for `--dry`.
    """
    if not state.is_executing and any(meta.will_change for meta in after):
        yield "true"  # a prediction: the file will be newer than what the server has read
        return
    found = declared.units({unit: [acl]})[unit]
    if found.running and found.stale:
        yield _load(port, unit, acl, kept)
    if state.is_executing:
        yield from _logged_in(port, unit, list(users), seconds)


def _load(port: int, unit: str, acl: str, kept: str) -> StringCommand:
    """The command that makes the server read its ACL file, by the way in that there is."""
    wanted = _auth("admin")
    good, output = host.run_shell_command(
        StringCommand(WAY_IN.format(port=port, kept=kept)), _sudo=True, _stdin=wanted
    )
    way = output.stdout_lines[-1] if output.stdout_lines else output.stderr
    if not good:
        return StringCommand(stop(f"Redis does not take a login: {way}"))
    if way == "none":
        report(f"{unit}: restarted, because it takes neither the new redis/admin nor the one in {kept}")
        steps = [f"systemctl restart {unit}"]
    else:
        report(f"{unit}: loads {acl}, which is newer than what runs")
        announce = [] if way == "wanted" else [_ANNOUNCE.format(way=way, kept=kept)]
        login = "{ cat; echo; echo ACL LOAD; }" if way == "wanted" else f"{{ cat {kept}; echo; echo ACL LOAD; }}"
        steps = [*announce, _LOAD.format(login=login, port=port, acl=acl)]
    return StringCommand("\n".join(["set -e", *steps, _STAMP.format(stamps=STAMPS, unit=unit)]), _stdin=wanted)


class Logins(SecretQuestion):
    """Whether users can log in at this moment, on one connection."""

    @staticmethod
    def command(port: int, **_: Any) -> str:
        return f"timeout {SECONDS} redis-cli -p {port} 2>&1; true"

    @staticmethod
    def stdin(users: list[str], **_: Any) -> str:
        return "\n".join(f"{_auth(user)}\nPING" for user in users)


def _logged_in(port: int, unit: str, users: list[str], seconds: int):
    """See each user log in, and wait for it where they can't yet; a change of nothing."""
    good, output = ask(host, Logins, port=port, users=users)
    if good and output.stdout_lines == ["OK", "PONG"] * len(users):
        return
    wanted = shlex.quote("OK PONG " * len(users))
    good, output = host.run_shell_command(
        StringCommand(_LOG_IN.format(port=port, unit=unit, seconds=seconds, wanted=wanted)),
        _sudo=True,
        _stdin=Logins.stdin(users=users),
    )
    if not good:
        said = " ".join(output.output_lines[-3:])
        message = f"Redis does not let {' and '.join(users)} log in: {said} (wanted: {wanted})"
        yield (
            f"echo {shlex.quote(message)} >&2; journalctl --no-pager -o cat -n 20 -u {unit} >&2; exit 1"
        )


def _auth(user: str) -> str:
    return login(user, secret_value(f"redis/{user}"))


def login(user: str, password: str) -> str:
    """The line that logs in, as redis-cli takes it on standard input."""
    return f"AUTH {user} {quoted(password)}"


def quoted(value: str) -> str:
    """A value as redis-cli reads it in a line: in double quotes, with escapes by byte."""
    escaped = "".join(
        chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in value.encode()
    )
    return f'"{escaped}"'
