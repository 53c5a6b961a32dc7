"""`fab status`, `logs`, `train` and `progress`: what runs on the hosts, asked by ssh."""

from __future__ import annotations

import re
import shlex
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator

from groundwork.logins import openssh_config
from groundwork.errors import Refusal
from groundwork.people import host_of
from groundwork.topology import LINK, LINK_INTERFACE, Here, Topology

_SHOW = "systemctl show -p Id -p LoadState -p ActiveState -p SubState -p StatusText -p Result"
_OPTIONS = ("ConnectTimeout 10", "ServerAliveInterval 5", "ServerAliveCountMax 3", "ControlMaster no", "ControlPath none")
_FOLLOW = f"""{_SHOW} {{unit}}; echo
while systemctl show -p ActiveState -p Job {{unit}} | grep -q -e =active -e ing$ -e Job=[1-9]; do sleep 1; {_SHOW} {{unit}}; echo; done"""
"""Looks at a unit every second, until it has ended and nobody waits for it to start; systemd calls the wait for
another try activating."""
_HEARD = f"""peers=$(sudo -n wg show {LINK_INTERFACE} dump) && echo "$peers" |
awk -v now=$(date +%s) 'NR > 1 {{ print $4, ($5 ? now - $5 : "") }}'"""
"""Of WireGuard's peers the addresses, and for how many seconds they are silent; the first line, with the host's own key, stays there."""
SILENT_SECONDS = 180
"""WireGuard gives up a session that is older (REJECT_AFTER_TIME); with keepalive a new one is made before."""


@contextmanager
def _ssh(here: Here, command: str, **more: Any) -> Iterator[subprocess.Popen]:
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "ssh_config"
        config.write_text(openssh_config(here.topology.hosts.values(), _OPTIONS))
        process = subprocess.Popen(
            ["ssh", "-F", str(config), "-T", here.name, command],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", **more,
        )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def ask(here: Here, command: str, seconds: int = 30) -> str:
    """Standard output of a command on a host. Raises Refusal, with the last thing that was said."""
    with _ssh(here, command) as process:
        try:
            output, said = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise Refusal(f"{here.name}: no answer within {seconds} s") from None
    if process.returncode:
        raise Refusal(f"{here.name}: {' '.join(said.strip().splitlines()[-1:]) or f'{command} ended with {process.returncode}'}")
    return output


def states(output: str) -> list[dict[str, str]]:
    """Units, by what `systemctl show` prints of them."""
    blocks = [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in output.split("\n\n")]
    return [block for block in blocks if "Id" in block]


def words(state: dict[str, str]) -> str:
    """A unit's state in words."""
    if state["LoadState"] == "not-found":
        return "is not installed"
    result = f", {state.get('Result')}" if state["ActiveState"] == "failed" else ""
    status = f": {state['StatusText']}" if state.get("StatusText") else ""
    return f"{state['ActiveState']} ({state['SubState']}{result}){status}"


# What runs


def status(topology: Topology, tell: Callable[[str], None]) -> bool:
    """Tell of each unit of each host, and of others that have failed there; returns whether all is well."""
    hosts = list(topology.hosts.values())
    with ThreadPoolExecutor(len(hosts)) as pool:
        found = [line for lines in pool.map(_status, hosts) for line in lines]
    for line, _ in found:
        tell(line)
    return all(well for _, well in found)


def _status(here: Here) -> list[tuple[str, bool]]:
    # (What listens for WireGuard is the kernel, which is told as init.scope.)
    further = {role: here.settings(here.topology.roles[role]).further_units() for role in here.roles}
    own = [unit for role in here.roles for unit in here.topology.roles[role].units if unit.endswith((".service", ".socket"))]
    units = [*own, *(unit for role in here.roles for unit in further[role])]
    shown = f"{_SHOW} {shlex.join(units)}; echo; " if units else ""
    try:
        output, failed = ask(here, f"{shown}echo ---; systemctl list-units --failed --plain --no-legend").split("---\n")
    except Refusal as error:
        return [(str(error), False)]
    found = {state["Id"]: state for state in states(output)}
    lines = []
    for role in here.roles:
        alternatives = [unit for unit in here.topology.roles[role].units if unit in found]
        for group in (alternatives, *([unit] for unit in further[role])):
            lines += _role(here, [found[unit] for unit in group])
    others = [unit for unit in (line.split()[0] for line in failed.splitlines() if line.strip()) if unit not in units]
    return [*lines, *((f"{here.name:<12} {unit:<24} failed", False) for unit in others), *(_link(here) if LINK in here.roles else [])]


def _link(here: Here) -> list[tuple[str, bool]]:
    """When each peer of the private link was last heard: who is dialed is there always, of those who dial in at least one."""
    settings = here.settings(here.topology.roles[LINK])
    try:
        heard = {network.partition("/")[0]: seconds for network, seconds in (line.split(" ") for line in ask(here, _HEARD).splitlines())}
    except Refusal as error:
        why = ": it takes sudo without a password" if "sudo: " in str(error) else ""
        return [(f"{error} (who is heard on the link can't be told{why})", False)]
    silent = {peer: heard.get(str(peer.link_address), "") for peer in settings.peers(here)}
    recent = {peer for peer, seconds in silent.items() if seconds and int(seconds) <= SILENT_SECONDS}
    return [
        (
            f"{here.name:<12} link: {peer.name} {f'heard {seconds} s ago' if seconds else 'never'}",
            peer in recent if settings.endpoint_of(peer) else bool(recent),
        )
        for peer, seconds in silent.items()
    ]


def _role(here: Here, units: list[dict[str, str]]) -> list[tuple[str, bool]]:
    """Of a role's units, which may be alternatives (ssh.service, ssh.socket): those that are active, or else all."""
    active = [state for state in units if state["ActiveState"] == "active"]
    return [(f"{here.name:<12} {state['Id']:<24} {words(state)}", bool(active)) for state in active or units]


def place(topology: Topology, service: str, host: str | None) -> Here:
    """The host whose service is meant. Raises Refusal where that may be any of several."""
    if not service:
        roles = [role for role in topology.roles if topology.with_role(role) and _units(topology, role)]
        raise Refusal(f"which service? fab logs ROLE, one of {', '.join(roles)}, or a unit: fab logs UNIT --host HOST")
    if service in topology.roles:
        return host_of(topology, service, host)
    if host is None and len(topology.hosts) > 1:
        raise Refusal(f"{service}: on which host? --host, one of {', '.join(topology.hosts)}")
    return host_of(topology, "base", host)


def _units(topology: Topology, role: str) -> list[str]:
    """A role's units that have a journal of their own: what the kernel does is called init.scope."""
    return [unit for unit in topology.roles[role].units if unit.endswith((".service", ".socket"))]


def logs(here: Here, service: str, lines: int) -> str:
    """The last lines of the journal of a service.

    Args:
        service: a role, or a unit.
    """
    units = _units(here.topology, service) if service in here.topology.roles else [service]
    if not units or not all(re.fullmatch(r"[A-Za-z0-9@:_.-]+", unit) and unit[0] != "-" for unit in units):
        raise Refusal(f"{service}: is no service: name a role that has one, or a unit such as training-forecast")
    named = " ".join(f"-u {unit}" for unit in units)
    return ask(here, f"sudo -n journalctl --no-pager -o short-iso -n {lines} {named}")


# Training


def unit_of(here: Here, job: str) -> str:
    """The unit of a job of training_jobs. Raises Refusal for another."""
    jobs = {item.name: item.unit for item in here.settings(here.topology.roles["training"]).jobs}
    if not job:
        raise Refusal(f"which job? training_jobs of {here.name}: {', '.join(jobs) or 'there are none'}")
    if job not in jobs:
        raise Refusal(f"{job}: is none of training_jobs of {here.name} ({', '.join(jobs) or 'there are none'})")
    return f"{jobs[job]}.service"


def progress(here: Here, tell: Callable[[str], None]) -> None:
    """Tell of each job of a host."""
    jobs = here.settings(here.topology.roles["training"]).jobs
    if not jobs:
        raise Refusal(f"training_jobs of {here.name} is empty")
    for state in states(ask(here, f"{_SHOW} {shlex.join(f'{job.unit}.service' for job in jobs)}")):
        tell(f"{here.name:<12} {state['Id']:<32} {words(state)}")


def start(here: Here, job: str) -> None:
    """Start a job, unless it runs: then it is left alone."""
    ask(here, f"sudo -n systemctl start --no-block {shlex.quote(unit_of(here, job))}")


def follow(here: Here, job: str, tell: Callable[[str], None]) -> bool:
    """Tell how a job comes along, until it has ended; returns whether it ended well."""
    unit, said, state = unit_of(here, job), "", {}
    with _ssh(here, _FOLLOW.format(unit=shlex.quote(unit))) as process:
        block = ""
        for line in process.stdout:
            block += line
            if line.strip():
                continue
            for state in states(block):
                if words(state) != said:
                    said = words(state)
                    tell(f"{job}: {said}")
            block = ""
        process.wait()
        if process.returncode:
            last = " ".join(process.stderr.read().strip().splitlines()[-1:])
            raise Refusal(f"{here.name}: the connection was lost ({last}), and {job} goes on: fab progress {job}")
    well = state.get("Result") == "success" and state.get("ActiveState") == "inactive"
    if not well:
        tell(f"{job} did not end well; its log says why: fab logs {unit.removesuffix('.service')} --host {here.name}")
    return well
