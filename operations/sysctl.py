"""Kernel settings: stored for boot, and live where this host may set them."""

from __future__ import annotations

import fnmatch
import shlex
from typing import Mapping

from pyinfra import host
from pyinfra.api import operation

from facts.sysctl import Found, Sysctls
from groundwork.context import current
from groundwork.rows import File
from operations.files import write
from operations.report import report, stop


@operation()
def settings(role: str, values: Mapping[str, str | int]):
    """Make kernel settings effective, now and after a boot.

    A container shares its kernel: there only `net.`, which belongs to its network, is set now; the
    rest is written for boot and not applied. A setting of a module that is not loaded is written for boot
    too; one that does not exist beside others that do is a mistake, and refused.

    Args:
        role: whose they are; names the file /etc/sysctl.d/60-groundwork-<role>.conf.
        values: key, as sysctl.d has it, with `*` for any one part -> value.
    """
    file = f"/etc/sysctl.d/60-groundwork-{role}.conf"
    wanted = {key: " ".join(str(value).split()) for key, value in values.items()}
    lines = [f"# Managed by Groundwork (role {role}): changes here are overwritten."]
    lines += [f"{key} = {value}" for key, value in wanted.items()]
    now = host.get_fact(Sysctls, keys=list(wanted), file=file)
    settable = {key: value for key, value in wanted.items() if _is_ours(key)}
    hint = ": see base_sysctls" if role == "base" else ""
    if unknown := [key for key in wanted if _is_misspelled(now, key)]:
        refused = f"refused: this kernel knows no {', '.join(unknown)}, and nothing of {file} was changed{hint}"
        yield stop(refused)
        return
    commands = []
    for key, value in settable.items():
        differing = {path: old for path, old in _live(now.live, key).items() if old != value}
        if differing:
            report(f"{key}: {value} (was {', '.join(sorted(set(differing.values())))})")
            refused = f"refused: {key} = {value} is not what the kernel takes, and {file} is as it was{hint}"
            commands += [
                f"echo {shlex.quote(value)} >{shlex.quote(path)} || {{ {stop(refused)}; }}"
                for path in differing
            ]
    # Live first: what the kernel does not take is not stored.
    if commands:
        yield "; ".join(commands)
    if now.stored != lines:
        _report_changes(now.stored, lines, file)
        if later := [key for key in wanted if key not in settable or not _live(now.live, key)]:
            report(f"written for boot, not applied here: {', '.join(later)}")
        yield write(File(file), "\n".join([*lines, ""]).encode())


def _is_misspelled(now: Found, key: str) -> bool:
    """Whether a setting is none, though its neighbours are there.

    Not so in `net.`: its settings come with modules, and a container has only some of them.
    """
    parent = f"/proc/sys/{key.replace('.', '/')}".rsplit("/", 1)[0]
    return not key.startswith("net.") and parent in now.parents and not _live(now.live, key)


def _is_ours(key: str) -> bool:
    """Whether this host may set it: in a container, the kernel is not ours but its network is."""
    machine = current().machine
    return key.startswith("net.") or not (machine and machine.container)


def _live(live: Mapping[str, str], key: str) -> dict[str, str]:
    pattern = f"/proc/sys/{key.replace('.', '/')}"
    return {path: value for path, value in live.items() if fnmatch.fnmatchcase(path, pattern)}


def _report_changes(stored: list[str], lines: list[str], file: str) -> None:
    changed = [line for line in lines if line not in stored and not line.startswith("#")]
    gone = [line for line in stored if line not in lines and not line.startswith("#")]
    said = "; ".join([*changed, *(f"no {line}" for line in gone)]) or "its comment"
    report(f"{file}: {said if stored else 'new'}")
