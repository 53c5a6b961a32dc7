"""How each tool is started, and what it says that it changed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

from lab.settings import KNOWN_HOSTS, SSH_KEY

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "bench"
VENVS = BENCH / ".venv"
PYINFRA = str(Path(sys.executable).parent / "pyinfra")
STOCK = str(VENVS / "stock/bin/pyinfra")
ANSIBLE = str(VENVS / "ansible/bin/ansible-playbook")


class Wrong(Exception):
    """A run that failed, or whose output is not what it is known to be: nothing is to be concluded from it."""


@dataclass(frozen=True)
class Target:
    """A host, and the port at which the proxy stands for it."""

    name: str
    address: str
    port: int


@dataclass(frozen=True)
class Start:
    """A command line, where and with what it is run, and how its output is read."""

    command: list[str]
    cwd: Path
    changed: Callable[[str], int]
    """Output -> number of changes.

    Raises:
        Wrong: for a failure that it tells of.
    """
    environment: dict[str, str] = field(default_factory=dict)
    given: str = ""


def environment(more: dict[str, str]) -> dict[str, str]:
    """What a tool finds: nothing of ours, and no progress bars."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TERM", "USER") if name in os.environ}
    return {"LANG": "C.UTF-8", **kept, "PYINFRA_PROGRESS": "off", **more}


# The 200 states


def groundwork(targets: list[Target], scratch: Path, connector: str = "") -> Start:
    """Groundwork's way: our operations, from the repository's root."""
    more = ["--data", f"connector={connector}"] if connector else []
    command = [PYINFRA, "-y", "bench/with_groundwork/inventory.py", "bench/with_groundwork/deploy.py", *more]
    return Start(command, ROOT, pyinfra_changed, _pyinfra(targets, scratch))


def pyinfra(targets: list[Target], scratch: Path) -> Start:
    """Stock pyinfra, in an environment that has nothing of ours."""
    return Start([STOCK, "-y", "--sudo", "inventory.py", "deploy.py"], BENCH / "with_pyinfra", pyinfra_changed, _pyinfra(targets, scratch))


def ansible(targets: list[Target], scratch: Path) -> Start:
    """Ansible with pipelining and ControlPersist, all hosts at once."""
    settings = {
        "ANSIBLE_CONFIG": str(BENCH / "with_ansible/ansible.cfg"),
        "ANSIBLE_FORKS": str(max(5, len(targets))),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_HOME": str(scratch / "ansible"),
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(scratch / "cp"),
    }
    return Start([ANSIBLE, "-i", str(_ansible(targets, scratch)), "site.yml"], BENCH / "with_ansible", ansible_changed, settings)


def mitogen(targets: list[Target], scratch: Path) -> Start:
    """The same, by Mitogen's strategy."""
    start = ansible(targets, scratch)
    found = [path for path in (VENVS / "ansible/lib").glob("python3*/site-packages/ansible_mitogen/plugins/strategy")]
    return Start(
        start.command, start.cwd, start.changed,
        {**start.environment, "ANSIBLE_STRATEGY": "mitogen_linear", "ANSIBLE_STRATEGY_PLUGINS": str(found[0])},
    )  # fmt: skip


# The whole stack, and the floor


def stack(targets: list[Target], scratch: Path, connector: str = "", asked: bool = False, data: tuple[str, ...] = ()) -> Start:
    """deploy.py on the host that has everything; asked first, its answer is Enter."""
    words = [*([f"connector={connector}"] if connector else []), *data]
    more = [word for pair in words for word in ("--data", pair)]
    command = [PYINFRA, *([] if asked else ["-y"]), "--group-data", "inventories/group_data", "bench/inventories/stack.py", "deploy.py", *more]
    return Start(command, ROOT, pyinfra_changed, _pyinfra(targets, scratch), "\n" if asked else "")


def floor(targets: list[Target], scratch: Path) -> Start:
    """Stock pyinfra: start, connect, one command; from an empty directory."""
    empty = scratch / "empty"
    empty.mkdir(exist_ok=True)
    return Start([STOCK, "-y", str(BENCH / "with_pyinfra/inventory.py"), "exec", "--", "true"], empty, _floor_changed, _pyinfra(targets, scratch))


# What is said at the end


def pyinfra_changed(output: str) -> int:
    """Changes by pyinfra's last table."""
    lines = re.findall(r"^\s*Grand total\s+(\S+)\s+(\S+)\s+(\S+)\s+(\S+)", output, re.MULTILINE)
    if len(lines) < 1:
        raise Wrong("pyinfra printed no results")
    _, success, error, _ = lines[-1]
    if error != "-":
        raise Wrong(f"{error} operations failed")
    return 0 if success == "-" else int(success)


def _floor_changed(output: str) -> int:
    """`exec` counts as a change, always."""
    pyinfra_changed(output)
    return 0


def ansible_changed(output: str) -> int:
    """Changes by Ansible's recap."""
    lines = re.findall(r"^\S+\s*: ok=\d+\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", output, re.MULTILINE)
    if not lines:
        raise Wrong("Ansible printed no recap")
    if failed := [line for line in lines if line[1:] != ("0", "0")]:
        raise Wrong(f"{len(failed)} hosts failed")
    return sum(int(line[0]) for line in lines)


# What the tools read


def _pyinfra(targets: list[Target], scratch: Path) -> dict[str, str]:
    file = scratch / f"targets-{len(targets)}.json"
    known = str(known_hosts(targets, scratch))
    connection = {"ssh_hostname": "127.0.0.1", "user": "ubuntu", "key": str(SSH_KEY), "known_hosts": known}
    file.write_text(json.dumps([{"name": item.name, "address": item.address, "ssh_port": item.port, **connection} for item in targets]))
    return {"BENCH_TARGETS": str(file), "GROUNDWORK_EXCHANGES": str(scratch / "exchanges")}


def _ansible(targets: list[Target], scratch: Path) -> Path:
    file = scratch / f"hosts-{len(targets)}.yml"
    known = known_hosts(targets, scratch)
    hosts = {item.name: {"ansible_host": "127.0.0.1", "ansible_port": item.port} for item in targets}
    shared = {
        "ansible_user": "ubuntu",
        "ansible_ssh_private_key_file": str(SSH_KEY),
        "ansible_ssh_common_args": f"-o UserKnownHostsFile={known} -o IdentitiesOnly=yes -o LogLevel=ERROR",
    }
    file.write_text(json.dumps({"all": {"hosts": hosts, "vars": shared}}))  # JSON is YAML
    return file


def known_hosts(targets: list[Target], scratch: Path) -> Path:
    """The lab's known_hosts, by the proxy's ports: all tools check the hosts' keys."""
    keys: dict[str, list[str]] = {}
    for line in KNOWN_HOSTS.read_text().splitlines():
        names, key = line.split(" ", 1)
        keys.setdefault(names.split(",")[0], []).append(key)
    lines = [f"[127.0.0.1]:{item.port} {key}" for item in targets for key in keys[item.address]]
    file = scratch / f"known_hosts-{len(targets)}-{targets[0].port}"
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def versions() -> dict[str, Any]:
    """What is compared, as it says of itself."""
    words = "import sys; from importlib.metadata import version; print(sys.version.split()[0], *map(version, sys.argv[1:]))"

    def ask(python: str | Path, *names: str) -> dict[str, str]:
        done = subprocess.run([python, "-c", words, *names], capture_output=True, text=True, check=True, timeout=60)
        return dict(zip(("Python", *names), done.stdout.split()))

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    return {
        "Groundwork": {"commit": commit.stdout.strip(), **ask(sys.executable, "pyinfra", "paramiko")},
        "pyinfra": ask(VENVS / "stock/bin/python", "pyinfra", "paramiko"),
        "Ansible": ask(VENVS / "ansible/bin/python", "ansible-core", "mitogen"),
    }
