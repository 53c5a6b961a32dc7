"""A first run of the whole stack on one bare lab host, beside the floor: what floor.sh there costs.

    python -m bench.first_run [--runs 3] [--cold]

The two take turns, each time on a host made anew. Timed is the command that an operator types; not the host's boot (the
lab waits for cloud-init), nor the wait for another apt. The lab's server has the packages, and uv's cache is
on the host (filled by a floor run that does not count), unless --cold has uv fetch from its index.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from groundwork import context
from groundwork.topology import Here, Machine
from lab import hosts
from lab.settings import CACHE
from operations import uv
from operations.apt import WAIT_FOR_LOCKS
from operations.repository import source
from tasks import chromadb

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "bench"
RESULTS = BENCH / "results/first_run.json"
INVENTORIES = {"groundwork": BENCH / "inventories/first.py", "floor.sh": BENCH / "inventories/floor.py"}
HOSTS = {"groundwork": "first", "floor.sh": "floor"}
IDLE = f"systemctl is-system-running --wait; {WAIT_FOR_LOCKS}"
"""Nothing is at work on a host any more: neither its boot nor an apt."""


def stack() -> Here:
    """The host of the stack, as a run that knows its machine sees it."""
    here = next(iter(context.load(INVENTORIES["groundwork"]).hosts.values()))
    here.machine = Machine("debian", here.data["lab_suite"], "amd64", here.memory, here.cores)
    return here


def packages(here: Here) -> list[str]:
    """What the host's roles install."""
    return sorted({name for role in here.roles for name in here.settings(here.topology.roles[role]).installs(here)})


def luggage(here: Here) -> bytes:
    """A tar file with floor.sh and what it needs beside it."""
    mongodb = here.settings(here.topology.roles["mongodb"]).repositories(here)["mongodb-org"]
    sources = source("/etc/apt/keyrings/mongodb-org.asc", mongodb["uris"], mongodb["suites"], mongodb["components"], "", "")
    packed, _ = uv._program("amd64", uv._PLATFORMS["amd64"])
    texts = {
        "floor.sh": (BENCH / "floor.sh").read_bytes(),
        "key.asc": Path(mongodb["key"]).read_bytes(),
        "mongodb-org.sources": sources.encode(),
        "chromadb.txt": chromadb.LOCK.read_bytes(),
        "app.txt": here.settings(here.topology.roles["app"]).lock().encode(),
        "uv.gz": packed,
    }
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name, content in texts.items():
            entry = tarfile.TarInfo(f"floor/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        archive.add(ROOT / "examples/app/app", "floor/app/app")
    return tar.getvalue()


def on(name: str, command: str, given: bytes = b"") -> bytes:
    """What a command on a host prints."""
    line = hosts.ssh_command(hosts.known()[name], f"sudo sh -c {json.dumps(command)}")
    done = subprocess.run(line, input=given, capture_output=True)
    if done.returncode:
        sys.exit(f"{name}: {command}\n{done.stdout.decode()}{done.stderr.decode()}")
    return done.stdout


def fresh(tool: str, cache: bytes | None) -> None:
    """The tool's host, made anew, with uv's cache on it and nothing at work."""
    subprocess.run([sys.executable, "-m", "lab", "up", "--fresh", str(INVENTORIES[tool])], cwd=ROOT, check=True, stdout=sys.stderr)
    on(HOSTS[tool], "sh -s", IDLE.encode())
    if cache:
        on(HOSTS[tool], f"mkdir -p {Path(uv.CACHE).parent} && tar -x -C {Path(uv.CACHE).parent} && sync", cache)


def floor(here: Here) -> int:
    """floor.sh; 0, since it counts no changes."""
    on(HOSTS["floor.sh"], f"tar -x -C /root && exec sh /root/floor/floor.sh {' '.join(packages(here))}", luggage(here))
    return 0


def filled(here: Here) -> bytes:
    """uv's cache as a floor run leaves it; kept in the lab's cache, by the locks that it is for."""
    locks = chromadb.LOCK.read_text() + here.settings(here.topology.roles["app"]).lock()
    kept = CACHE / f"bench/uv-{hashlib.sha256(locks.encode()).hexdigest()[:16]}.tar"
    if not kept.exists():
        fresh("floor.sh", None)
        floor(here)
        kept.parent.mkdir(exist_ok=True)
        partial = kept.with_suffix(".partial")
        partial.write_bytes(on(HOSTS["floor.sh"], f"tar -c -C {Path(uv.CACHE).parent} {Path(uv.CACHE).name}"))
        partial.rename(kept)
    return kept.read_bytes()


def groundwork() -> int:
    """A first run, and how many of its operations changed something."""
    done = subprocess.run(
        [sys.executable, "-m", "pyinfra", "-y", "--json", str(INVENTORIES["groundwork"]), "deploy.py"],
        cwd=ROOT, env={**os.environ, "PYINFRA_PROGRESS": "off"}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr)
    return sum(bool(item["success"]) for item in json.loads(done.stdout)["results"]["operations"])


def cpu(tool: str) -> float:
    """CPU seconds so far, of the tool's host and of what this process has run."""
    used = (hosts.known()[HOSTS[tool]].cgroup / "host/cpu.stat").read_text().split()[1]
    here = resource.getrusage(resource.RUSAGE_CHILDREN)
    return int(used) / 1e6 + here.ru_utime + here.ru_stime


def main() -> None:
    """Measure, tell, and append to the results."""
    parser = argparse.ArgumentParser(description="A first run beside floor.sh, on lab hosts.")
    parser.add_argument("--runs", type=int, default=3, help="of each")
    parser.add_argument("--cold", action="store_true", help="uv has no cache on the host")
    options = parser.parse_args()

    here = stack()
    cache = None if options.cold else filled(here)
    seconds: dict[str, list[float]] = {tool: [] for tool in HOSTS}
    cpus: dict[str, list[float]] = {tool: [] for tool in HOSTS}
    changed = {tool: 0 for tool in HOSTS}
    for number in range(options.runs):
        for tool in HOSTS:
            fresh(tool, cache)
            begin, used = time.monotonic(), cpu(tool)
            changed[tool] = groundwork() if tool == "groundwork" else floor(here)
            seconds[tool].append(round(time.monotonic() - begin, 2))
            cpus[tool].append(round(cpu(tool) - used, 2))
            told = f"{seconds[tool][-1]:6.1f} s, {cpus[tool][-1]:5.1f} s of CPU, load {os.getloadavg()[0]:.1f}"
            print(f"{number + 1}/{options.runs} {tool:<12} {told}", flush=True)
    ratio = statistics.median(seconds["groundwork"]) / statistics.median(seconds["floor.sh"])
    print(f"medians: {', '.join(f'{tool} {statistics.median(taken):.1f} s' for tool, taken in seconds.items())}: {ratio:.2f} x the floor")

    note = f"bookworm, one host, uv's cache {'cold' if options.cold else 'warm'}, runs in turn"
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    rows += [
        {
            "what": "first run", "tool": tool, "rtt_ms": 0, "hosts": 1, "seconds": taken,
            "cpu_seconds": cpus[tool], "peak_mib": [], "changed": changed[tool], "note": note,
        }
        for tool, taken in seconds.items()
    ]  # fmt: skip
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
