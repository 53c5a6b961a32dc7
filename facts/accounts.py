"""Users, groups and their keys: all, in one question."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Iterable

from pyinfra.api import FactBase

SUDOERS = "/etc/sudoers.d/groundwork"
"""Who may do everything, by us."""


@dataclass
class Account:
    """A user as the host knows it."""

    home: str
    shell: str
    uid: int = 0
    group: str = ""
    groups: set[str] = field(default_factory=set)
    home_owner: str | None = None
    """Owner of the home, "" where there is none; None for users whose keys were not asked for."""
    keys: list[str] | None = None
    """Lines of ~/.ssh/authorized_keys, None where there is no such file."""


@dataclass
class Found:
    """All accounts."""

    users: dict[str, Account] = field(default_factory=dict)
    groups: set[str] = field(default_factory=set)
    sudo: list[str] = field(default_factory=list)
    """Names that SUDOERS has."""


class Accounts(FactBase):
    """Every user and group, who has sudo by us, and the authorized keys of the users named."""

    default = Found

    def command(self, keys_of: Iterable[str] = ()) -> str:
        names = " ".join(shlex.quote(name) for name in keys_of)
        return (
            "getent passwd | sed 's/^/U|/'; getent group | sed 's/^/G|/'; "
            f"sed -n 's/^\\([^# ]*\\) ALL=.*/S|\\1/p' {SUDOERS} 2>/dev/null; "
            f"for user in {names}; do home=$(getent passwd \"$user\" | cut -d: -f6); "
            '[ -n "$home" ] && echo "O|$user|$(stat -L -c %U -- "$home" 2>/dev/null)"; '
            'file="$home/.ssh/authorized_keys"; '
            '[ -n "$home" ] && [ -f "$file" ] && { echo "F|$user"; sed "s/^/K|$user|/" "$file"; }; '
            # sshd reads this one too; it has no place beside a file that says who gets in.
            '[ -n "$home" ] && [ -e "${file}2" ] && echo "F|$user" && echo "K|$user|authorized_keys2"; done; true'
        )

    def process(self, output):
        found, members, gids = Found(), [], {}
        for line in output:
            tag, rest = line.split("|", 1)
            if tag == "U":
                name, _, uid, gid, _, home, shell = rest.split(":")
                found.users[name] = Account(home, shell, int(uid), gid)
            elif tag == "G":
                name, _, gid, users = rest.split(":")
                found.groups.add(name)
                gids[gid] = name
                members += [(user, name) for user in users.split(",") if user]
            elif tag == "S":
                found.sudo.append(rest)
            elif tag == "O":
                user, owner = rest.split("|", 1)
                found.users[user].home_owner = owner
            elif tag == "F":
                found.users[rest].keys = found.users[rest].keys or []
            elif tag == "K":
                user, key = rest.split("|", 1)
                found.users[user].keys.append(key)
        for account in found.users.values():
            account.group = gids.get(account.group, account.group)
        for user, group in members:
            if user in found.users:
                found.users[user].groups.add(group)
        return found
