"""Kernel settings: stored for boot, and live where this host may set them."""

from __future__ import annotations

import difflib
import fnmatch
import re
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
    too; one that does not exist beside others that do is a mistake, and refused. Where a container can't know,
    that is said.

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
    container = _is_container()
    if unknown := [f"{key}{_nearest(now, key)}" for key in wanted if _is_misspelled(now, key, container)]:
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
            report(f"written for boot, not applied here: {', '.join(f'{key}{_nearest(now, key)}' for key in later)}")
        yield write(File(file), "\n".join([*lines, ""]).encode())


def _is_misspelled(now: Found, key: str, container: bool) -> bool:
    """Whether a setting is none, though its neighbours are there."""
    wanted = f"/proc/sys/{key.replace('.', '/')}"
    there = any(fnmatch.fnmatchcase(path, wanted.rsplit("/", 1)[0]) for path in now.parents)
    return there and _shows_all(key.rsplit(".", 1)[0], container) and wanted in now.missing


def _shows_all(section: str, container: bool) -> bool:
    """Whether what is not in a directory of /proc/sys, such as net.ipv4, does not exist."""
    if re.match(r"net(\.netfilter|\.bridge|$)", section):
        return False  # more comes with modules
    # Of net.core, net.ipv4 and net.ipv6 a container sees what each network has of its own.
    return not (container and section.startswith("net.")) or bool(re.match(r"net\.ipv[46]\.conf\.", section))


def _nearest(now: Found, key: str) -> str:
    """A question, where a setting that is not there is nearly called as one that is."""
    names = [] if _live(now.live, key) else [path.removeprefix("/proc/sys/").replace("/", ".") for path in now.names]
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.9)
    return f" (did you mean {close[0]}?)" if close else ""


def _is_container() -> bool:
    machine = current().machine
    return bool(machine and machine.container)


def _is_ours(key: str) -> bool:
    """Whether this host may set it: in a container, the kernel is not ours but its network is."""
    return key.startswith("net.") or not _is_container()


def _live(live: Mapping[str, str], key: str) -> dict[str, str]:
    pattern = f"/proc/sys/{key.replace('.', '/')}"
    return {path: value for path, value in live.items() if fnmatch.fnmatchcase(path, pattern)}


def _report_changes(stored: list[str], lines: list[str], file: str) -> None:
    changed = [line for line in lines if line not in stored and not line.startswith("#")]
    gone = [line for line in stored if line not in lines and not line.startswith("#")]
    said = "; ".join([*changed, *(f"no {line}" for line in gone)]) or "its comment"
    report(f"{file}: {said if stored else 'new'}")
