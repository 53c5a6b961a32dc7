"""What the lab asks of the machine it runs on, and how it leaves that machine."""

import json
import os
import platform
import re
import shutil
from pathlib import Path

from . import cgroups, settings
from .settings import LabError
from .shell import run, step, warn

#: program -> Debian package that brings it
PROGRAMS = {
    "systemd-nspawn": "systemd-container",
    "mmdebstrap": "mmdebstrap",
    "nft": "nftables",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "unshare": "util-linux",
}

INSTEAD = "Point an inventory at any host with SSH and sudo instead, a small cloud instance for example."


def available() -> str | None:
    """Why no lab can run here, or None."""
    if platform.system() != "Linux":
        return f"The lab needs Linux; this is {platform.system()}."
    if os.geteuid() != 0:
        return "The lab needs root, for bridges and containers."
    if not cgroups.root():
        return "The lab needs cgroup version 2, and none is mounted here."
    if not shutil.which("systemd-nspawn") and not shutil.which("apt-get"):
        return "The lab needs systemd-nspawn, and without apt-get it can't install it."
    return None


def require() -> None:
    """Stop with one sentence where no lab can run."""
    if reason := available():
        raise LabError(f"{reason} {INSTEAD}")
    settings.check()


def install_programs() -> None:
    """Install what the lab needs and this machine lacks."""
    missing = sorted({package for program, package in PROGRAMS.items() if not shutil.which(program)})
    if missing:
        install(*missing)


def install(*packages: str) -> None:
    """Install Debian packages on the controller, saying so."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    with step(f"installing {', '.join(packages)} on this machine"):
        try:
            run(*command, env=environment)
        except LabError:  # an index never fetched, or an old one
            run("apt-get", "update", env=environment)
            run(*command, env=environment)


# Counters and what comes and goes with interfaces; all else a host must not change.
_RESTLESS = re.compile(
    r"fs\.(dentry-state|inode|file-nr|quota|aio-nr|epoll|inotify)|kernel\.(random|ns_last_pid|pty\.nr|perf|sched|keys)"
    r"|net\.ipv[46]\.(conf|neigh|ip_forward|fib)|net\.ipv4\.(tcp_fastopen_key|tcp_mem|udp_mem)"
    r"|net\.netfilter\.nf_conntrack_count|user\.max_inotify_instances|vm\.stat|debug|dev"
)


def sysctls() -> dict[str, str]:
    """The kernel's settings that stay as they are unless somebody changes them."""
    pairs = (line.split(" = ", 1) for line in run("sysctl", "-a", "--ignore", check=False).splitlines() if " = " in line)
    return {key: value for key, value in pairs if not _RESTLESS.match(key)}


def remember_sysctls() -> dict[str, str]:
    """What the settings are before a host boots, kept for `down` to compare with."""
    if _snapshot().exists():
        return recall_sysctls()
    settings.CACHE.mkdir(parents=True, exist_ok=True)
    before = sysctls()
    _snapshot().write_text(json.dumps(before))
    return before


def recall_sysctls() -> dict[str, str]:
    return json.loads(_snapshot().read_text()) if _snapshot().exists() else {}


def forget_sysctls() -> None:
    _snapshot().unlink(missing_ok=True)


def compare_sysctls(before: dict[str, str]) -> None:
    """Warn of settings that changed while hosts ran: they share this kernel."""
    now = sysctls()
    for key in sorted(before.keys() & now.keys()):
        if before[key] != now[key]:
            warn(f"{key} was {before[key]} and is {now[key]}: a host, or something else, changed this machine.")


def _snapshot() -> Path:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    return settings.CACHE / f"sysctls-{boot}.json"
