"""Redis's users: loaded by the running server, and seen to log in.

Passwords go to redis-cli on its standard input: none is in a command line or an environment.
"""

from __future__ import annotations

import shlex
from typing import Iterable

from pyinfra import host, state
from pyinfra.api import StringCommand, operation
from pyinfra.api.operation import OperationMeta

from facts.units import STAMPS, Unit, Units
from groundwork.context import secret_value
from operations.report import report

# With the new administrator's password the running server refuses the login: only a restart makes
# it read the file then. What it does accept needs none, and keeps its clients' connections.
_LOAD = """answer=$(redis-cli -p {port} 2>&1 || true)
case $answer in
  "OK
OK") ;;
  *WRONGPASS*|*NOAUTH*|*NOPERM*) systemctl restart {unit} ;;
  *) echo "Redis does not load {acl}: $answer" >&2; exit 1 ;;
esac
mkdir -p {stamps}; touch {stamps}/{unit}"""

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
    seconds: int = 120,
    after: Iterable[OperationMeta] = (),
):
    """Make the running server use its ACL file as it is on disk, and see each user log in.

    The ACL is loaded without a restart, so a new password for an application closes only its
    connections. When the administrator's own password is new, the server is restarted.

    Args:
        port: where Redis listens on loopback.
        unit: its unit.
        acl: the ACL file.
        users: who must be able to log in; `redis/<user>` is the secret. "admin" may do all.
        seconds: how long to wait for the server, which reads its data first.
        after: operations of this run that may change the file, for `--dry`.
    """
    if not state.is_executing and any(meta.will_change for meta in after):
        yield "true"  # a prediction: the file will be newer than what the server has read
        return
    found = (host.get_fact(Units, reads={unit: [acl]}) or {}).get(unit) or Unit()
    if found.running and found.stale:
        report(f"{unit}: loads {acl}, which is newer than what runs")
        yield StringCommand(
            _LOAD.format(port=port, unit=unit, acl=acl, stamps=STAMPS),
            _stdin=f"{_auth('admin')}\nACL LOAD",
        )
    if state.is_executing:
        yield from _logged_in(port, unit, list(users), seconds)


def _logged_in(port: int, unit: str, users: list[str], seconds: int):
    """Log in as each user, on one connection; a change of nothing."""
    wanted = shlex.quote("OK PONG " * len(users))
    good, output = host.run_shell_command(
        StringCommand(_LOG_IN.format(port=port, unit=unit, seconds=seconds, wanted=wanted)),
        _sudo=True,
        _stdin="\n".join(f"{_auth(user)}\nPING" for user in users),
    )
    if not good:
        said = " ".join(output.output_lines[-3:])
        message = f"Redis does not let {' and '.join(users)} log in: {said} (wanted: {wanted})"
        yield (
            f"echo {shlex.quote(message)} >&2; journalctl --no-pager -o cat -n 20 -u {unit} >&2; exit 1"
        )


def _auth(user: str) -> str:
    return f"AUTH {user} {quoted(secret_value(f'redis/{user}'))}"


def quoted(value: str) -> str:
    """A value as redis-cli reads it in a line: in double quotes, with escapes by byte."""
    escaped = "".join(
        chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in value.encode()
    )
    return f'"{escaped}"'
