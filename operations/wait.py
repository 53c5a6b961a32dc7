"""Waiting for what has been started: acts only while executing, and is no change. What answers at once is not waited for."""

from __future__ import annotations

import shlex
from functools import partial
from typing import Callable

from pyinfra import host, state
from pyinfra.api import StringCommand, operation

from facts.answers import Holds, fetch, knock
from operations.files import ports_free
from operations.report import remind, report, stop


ATTEMPT_SECONDS = 5
"""For one attempt, of those who wait."""

SESSION_SECONDS = 180
"""A session of WireGuard's that is older than this is dead (its paper, 6.1: REJECT-AFTER-TIME)."""

FIRST_BOOT_LOGS = "`cloud-init status --long` and /var/log/cloud-init-output.log on the host"


@operation()
def http(url: str, unit: str, seconds: int = 60, unix_socket: str | None = None, contains: str = ""):
    """Wait until a URL answers with status 200.

    Args:
        url: as the host itself sees it.
        unit: the unit that answers; its last log lines are shown when it does not.
        seconds: how long to wait.
        unix_socket: path of a socket to ask through.
        contains: text that the answer must contain.
    """
    yield from _until(partial(fetch, url, unix_socket, contains), url, unit, seconds)


@operation()
def port(port: int, unit: str, seconds: int = 60, address: str = "127.0.0.1", log: str | None = None):
    """Wait until a unit takes connections at a TCP port of the host; another program that does so does not count.

    Args:
        port: TCP port.
        unit: the unit that listens; its last log lines are shown when it does not.
        seconds: how long to wait.
        address: where it listens.
        log: the file that it says its errors in, for a daemon that has its own and leaves the journal.
    """
    ours = ports_free(unit, {port: "it waits for it"})
    yield from _until(lambda **given: f"{ours} && {knock(port, address, **given)}", f"{address}:{port}", unit, seconds, log)


@operation()
def first_boot(booting: bool, seconds: int = 600):
    """Wait until cloud-init has done its work: it makes users, installs packages and writes what we write too.

    That it ended with errors is said, and is no failure: what it could not do may have nothing to do with us.

    Args:
        booting: it has something to tell (groundwork.topology.Machine.booting).
        seconds: how long to wait; package upgrades can be part of it.
    """
    if not (booting and state.is_executing):
        return
    report("first boot: waiting for cloud-init")
    _, output = host.run_shell_command(StringCommand(cloud_init(seconds)), _sudo=True)
    said = output.stdout_lines
    match said[-1:]:
        case ["exit 0" | "exit 2"]:  # 2: done with warnings, from 23.4 on
            report("first boot: cloud-init is done")
        case ["exit 1"]:
            report(f"first boot: cloud-init ended with errors; going on. {FIRST_BOOT_LOGS} tell more:")
            for line in said[:-1]:
                report(f"    {line}")
        case _:
            sentence = (
                f"first boot: cloud-init still works after {seconds} s. Nothing was changed: look at {FIRST_BOOT_LOGS}, "
                "and run this again when it is done"
            )
            yield stop(sentence)


def cloud_init(seconds: int) -> str:
    """The command that waits for cloud-init; its last line is `exit N`, those before what it said when N is not 0."""
    return (
        f"timeout {seconds} cloud-init status --wait >/dev/null 2>&1; code=$?; "
        "[ $code = 0 ] || timeout 10 cloud-init status --long 2>&1 | grep -v '^$' | tail -n 20; echo \"exit $code\""
    )


def _until(check: Callable[..., str], what: str, unit: str, seconds: int, log: str | None = None):
    """Wait for a check to succeed, where it does not at once.

    Args:
        check: gives the command; takes the `seconds` that one attempt may last.
    """
    if not state.is_executing or host.get_fact(Holds, check=check()):
        return
    ask = check(seconds=ATTEMPT_SECONDS)
    # A unit that systemd starts for the third time while we wait will not come.
    restarts = f"$(systemctl show -P NRestarts {unit})"
    loop = (
        f"end=$(($(date +%s) + {seconds})); most=$(({restarts} + 2)); until {{ {ask}; }} >/dev/null 2>&1; do "
        f"if [ $(date +%s) -ge $end ] || [ {restarts} -gt $most ] || systemctl is-failed --quiet {unit}; then "
        f"{ask}; exit 1; fi; sleep 0.1; done"
    )
    good, output = host.run_shell_command(StringCommand(loop), _sudo=True)
    if not good:
        # A command that fails is how an operation fails its host, and only its host.
        said = shlex.quote("\n".join(output.output_lines[-3:]))
        yield (
            f"echo {shlex.quote(f'{unit} did not answer at {what} (waited up to {seconds} s); its last words:')} >&2; "
            f"journalctl --no-pager -o cat -n 30 --since -{seconds + 60}s -u {unit} >&2; {_tail(log)}echo {said} >&2; exit 1"
        )


def _tail(log: str | None) -> str:
    """Errors and fatal errors in the end of MongoDB's kind of log, which is JSON."""
    return f"tail -n 200 {shlex.quote(log)} | grep -E '\"s\":\"[EF]\"' | tail -n 5 >&2; " if log else ""


@operation()
def handshakes(interface: str, peers: dict[str, str], seconds: int = 30):
    """Wait until WireGuard has heard from those whom this host dials; who is silent is named, and is no failure.

    Args:
        interface: WireGuard's.
        peers: a peer's address in the link -> how to name it.
        seconds: how long to wait; WireGuard tries every 5 (its paper, 6.1).
    """
    if not (peers and state.is_executing):
        return
    # Of a peer: key, preshared key, endpoint, allowed addresses, last handshake, …
    recent = f"NR > 1 && now - $5 < {SESSION_SECONDS} {{ sub(/\\/.*/, \"\", $4); print $4 }}"
    wanted = " ".join(f"-e {shlex.quote(address)}" for address in peers)
    heard = f"wg show {interface} dump | awk -v now=$(date +%s) {shlex.quote(recent)} | grep -xF {wanted}"
    if host.get_fact(Holds, check=f"[ \"$({heard} | grep -c .)\" = {len(peers)} ]"):
        return
    ask = f"for i in $(seq {2 * seconds}); do heard=$({heard}); [ $(echo \"$heard\" | grep -c .) = {len(peers)} ] && break; sleep 0.5; done; echo \"$heard\""
    _, output = host.run_shell_command(StringCommand(ask), _sudo=True)
    there = set(output.stdout_lines)
    for address, name in peers.items():
        if address not in there:
            remind(
                f"link: nothing heard from {name} in {seconds} s. Services start without it, and it comes by itself. Does that "
                "host run, with its UDP port open to this one (EC2: its security group), and has it been deployed?"
            )
    yield from ()
