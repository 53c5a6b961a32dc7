"""Users, their groups and keys, declared together."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from typing import Iterable

from pyinfra import host
from pyinfra.api import StringCommand, operation

from facts.accounts import Account, Accounts, Found
from operations.report import report, stop
from operations.unconfirmed import guarded


PEOPLE = 1000
"""User ids of people start here (UID_MIN in login.defs, on Debian and Ubuntu)."""


@dataclass(frozen=True)
class User:
    """A user, with a group of the same name."""

    name: str
    home: str
    system: bool = False
    shell: str = "/usr/sbin/nologin"
    groups: tuple[str, ...] = ()
    """More groups. Groups that the user has besides are left alone."""
    keys: tuple[str, ...] | None = None
    """All authorized keys: what else is in the file is removed. None leaves the file alone."""


@operation()
def users(users: Iterable[User], absent: Iterable[str] = (), before: str | None = None, administrators: bool = False):
    """Make users exist as declared. A user's home is made for a person, not for a service.

    Somebody who lives elsewhere stays there: their keys are in the home that they have.

    Args:
        users: the users, each once.
        absent: names of users who shall not exist. Their sessions end and their keys go; what else
            is in their homes stays.
        before: command to run before each change, in the same shell.
        administrators: they are all who have sudo by us: who loses it is named.
    """
    users, absent = list(users), list(absent)
    found = host.get_fact(Accounts, keys_of=[user.name for user in users if user.keys is not None])
    if homeless := [_not_theirs(user, found.users[user.name]) for user in users if _is_homeless(user, found)]:
        yield stop(*homeless)
        return
    users = [replace(user, home=_home(user, found.users.get(user.name))) for user in users]
    commands = [*_agree(users, absent, found)]
    if before:  # it knows only the homes that we give
        keys = [f"{user.home}/.ssh/authorized_keys" for user in users if user.keys is not None]
        before = f"{before} {shlex.join([*keys, *(f'{path}2' for path in keys)])}".strip()
    # Before the first command: pyinfra asks for no more when it looks ahead.
    for name in found.sudo if administrators else []:
        if name in found.users and name not in [*(user.name for user in users), *absent]:
            report(
                f"user {name}: is in base_administrators no more and loses the sudo that it gave, but still gets in; "
                f'{{"name": "{name}", "state": "absent"}} there removes them'
            )
    yield from guarded(before, commands)


def _home(user: User, now: Account | None) -> str:
    """Where a user lives: a person whose home is there and their own is not moved."""
    moves = user.system or now is None or now.home_owner != user.name
    return user.home if moves else now.home


def _is_homeless(user: User, found: Found) -> bool:
    """We write no keys into another's home: they would be that one's, too."""
    now = found.users.get(user.name)
    return bool(now and not user.system and now.home != user.home and now.home_owner not in (None, "", user.name))


def _not_theirs(user: User, now: Account) -> str:
    return (
        f"user {user.name}: their home {now.home} is {now.home_owner}'s, and nobody else's keys are written there. Nobody's "
        f"account was changed. To give them one of their own, {user.home}: `usermod --home {user.home} {user.name}`, then run again"
    )


def _agree(users: list[User], absent: Iterable[str], found: Found):
    for group in dict.fromkeys(group for user in users for group in user.groups):
        if group not in found.groups:
            report(f"group {group}: new")
            yield f"groupadd --system {group}"
    for user in users:
        yield from _user(user, found.users.get(user.name), user.name in found.groups)
        if user.keys is not None:
            yield from _keys(user, found.users.get(user.name))
    for name in absent:
        if name in found.users:
            yield from _removed(name, found.users[name])


@operation()
def members(group: str, users: Iterable[str]):
    """Make these users, and no others, members of a group that exists.

    Args:
        group: the group. Users whose first group it is are left alone.
        users: names of users; one who does not exist fails the host.
    """
    wanted = list(dict.fromkeys(users))
    found = host.get_fact(Accounts)
    now = sorted(name for name, account in found.users.items() if group in account.groups)
    if sorted(wanted) != now:
        report(f"group {group}: {', '.join(wanted) or 'nobody'} (was {', '.join(now) or 'nobody'})")
        yield f"gpasswd --members {shlex.quote(','.join(wanted))} {shlex.quote(group)} >/dev/null"


def _removed(name: str, now: Account):
    if now.uid < PEOPLE:
        yield (
            f"echo {shlex.quote(f'user {name} is a service (its id {now.uid} is below {PEOPLE}), and is not removed')} >&2; "
            "exit 1"
        )
        return
    report(f"user {name}: removed with their keys; the home {now.home} stays")
    user, home, ssh = shlex.quote(name), shlex.quote(now.home), shlex.quote(f"{now.home}/.ssh")
    # Locked first, so that nobody comes in between; userdel refuses while a process is left. Their systemd ends
    # by itself: killed, its unit would be left as failed. The home becomes root's, where it was theirs: the user
    # id will be another's one day. The user goes last, so that a run that was cut off is seen by the next.
    yield (
        f'[ "${{SUDO_USER:-}}" != {user} ] || {{ echo "user {name}: we are logged in as {name}, and so do not remove them" >&2; exit 1; }}; '
        f"set -e; usermod --lock --expiredate 1 {user}; "
        f'[ "$(stat -L -c %u {home} 2>/dev/null)" != {now.uid} ] || rm -f {ssh}/authorized_keys {ssh}/authorized_keys2; '
        f"loginctl terminate-user {user} 2>/dev/null || true; timeout 10 systemctl stop user@{now.uid}.service || true; "
        f"for n in 1 2 3 4 5; do pkill -KILL -u {user} || break; sleep 0.2; done; "
        f"systemctl stop user@{now.uid}.service || true; systemctl reset-failed user@{now.uid}.service 2>/dev/null || true; "
        f'[ "$(stat -L -c %u {home} 2>/dev/null)" != {now.uid} ] || {{ chown root:root {home}; chmod 700 {home}; }}; userdel {user}'
    )


def _user(user: User, now: Account | None, has_group: bool):
    name, groups = shlex.quote(user.name), ",".join(user.groups)
    home = shlex.quote(user.home)
    # Somebody who comes back finds the home that was kept, which is root's by now.
    own = f"{{ [ -d {home} ] || cp -rT /etc/skel {home}; }} && chown -hR {name}: {home} && chmod 755 {home}"
    if now is None:
        report(f"user {user.name}: new")
        kind = "--system --no-create-home" if user.system else "--create-home"
        more = f" --groups {groups}" if groups else ""
        # One whose user was removed without it, or that a package has made.
        group = f"--gid {name}" if has_group else "--user-group"
        after = "" if user.system else f" && {own}"
        yield f"useradd {kind} {group} --home-dir {home} --shell {user.shell}{more} {name}{after}"
        return
    # What a useradd that was cut off has not come to.
    if now.group.isdigit():
        report(f"group {user.name}: new, for the user of that name")
        yield f"groupadd --gid {now.group} {name}"
    if not user.system and now.home_owner not in (None, user.name):
        report(f"{user.home}: made the home of {user.name}")
        yield own
    if now.shell != user.shell or now.home != user.home:
        report(f"user {user.name}: shell {user.shell}, home {user.home}")
        yield f"usermod --shell {user.shell} --home {shlex.quote(user.home)} {name}"
    if missing := [group for group in user.groups if group not in now.groups | {now.group}]:
        report(f"user {user.name}: joins {', '.join(missing)}")
        yield f"usermod --append --groups {','.join(missing)} {name}"


def _keys(user: User, now: Account | None):
    wanted = list(user.keys or ())
    if now is not None and now.keys == wanted:
        return
    report(f"user {user.name}: {len(wanted)} authorized key{'s' * (len(wanted) != 1)}")
    ssh, name = shlex.quote(f"{user.home}/.ssh"), shlex.quote(user.name)
    yield StringCommand(
        f"set -e; umask 077; group=$(id -gn {name}); install -d -o {name} -g $group -m 700 {ssh}; "
        f"t=$(mktemp {ssh}/.keys.XXXXXX); trap 'rm -f \"$t\"' EXIT; cat >\"$t\"; "
        f'chown {name}:$group "$t"; chmod 600 "$t"; mv -fT "$t" {ssh}/authorized_keys; rm -f {ssh}/authorized_keys2',
        _stdin="\n".join(wanted) + "\n" if wanted else "",
    )
