"""Hosts: systemd in a container of its own, on a base root, with an address and a key known beforehand."""

import fcntl
import ipaddress
import json
import os
import stat
import subprocess
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from . import cgroups, network, roots, settings
from .inventory import Wanted
from .settings import HOST_KEYS, HOSTS, KNOWN_HOSTS, LOCK, SSH_KEY, TRASH, LabError
from .shell import run, say, step

KEY_TYPES = ("ed25519", "ecdsa", "rsa")

# Docker lays its own overlays, which can't lie on an overlay: these are plain directories of the host.
PLAIN = ("docker", "containerd")

NSPAWN_STATE = Path("/run/systemd/nspawn")

BOOT_SECONDS = 60


@dataclass(frozen=True)
class Host:
    """A host that the lab has made: what host.json in its folder says."""

    name: str
    address: str
    suite: str
    inventory: str
    root: str
    options: dict = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return HOSTS / self.name

    @property
    def machine(self) -> str:
        """What nspawn calls the host. Short, so that nspawn names its interface after it: vb-MACHINE."""
        return f"gw{int(ipaddress.ip_address(self.address)):08x}"

    @property
    def cgroup(self) -> Path:
        return cgroups.ours() / self.name

    @property
    def running(self) -> bool:
        """Whether the host and what looks after it are alive. The kernel keeps this book: it can't be stale."""
        return all(cgroups.populated(self.cgroup / part) for part in ("supervisor", "host"))

    @property
    def state(self) -> str:
        """running; stopped: it powered itself off; dead: it was killed, but its files are there."""
        if self.running:
            return "running"
        exit_status = self.folder / "exit"
        return "stopped" if exit_status.exists() and exit_status.read_text() == "0\n" else "dead"


@contextmanager
def lock():
    """One lab command at a time: two that make the same bridge would trip over each other."""
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with LOCK.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another lab command to finish …")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def known() -> dict[str, Host]:
    """Every host that the lab has made and not removed, by name."""
    found = {}
    for file in sorted(HOSTS.glob("[!.]*/host.json")):
        with suppress(FileNotFoundError):  # another lab command has just removed it
            found[file.parent.name] = Host(**json.loads(file.read_text()))
    return found


def is_up(host: Host | None) -> bool:
    """Whether a host runs and has once answered over SSH since it was booted."""
    return host is not None and host.running and (host.folder / "answered").exists()


def up(wanted: list[Wanted]) -> None:
    """Boot the hosts that don't run yet, all at once, and return when each answers over SSH."""
    there = known()
    for want in wanted:
        _refuse_a_different_host(want, there)
        _note_inventory(want, there.get(want.name))
    starting = [want for want in wanted if not is_up(there.get(want.name))]
    if not starting:
        return
    _make_key(SSH_KEY, "ed25519", "groundwork-lab")
    roots.prune({host.root for host in there.values()})
    base = {suite: roots.ensure(suite) for suite in sorted({w.suite for w in starting if w.name not in there})}
    _make_host_keys([want.name for want in starting])
    with ThreadPoolExecutor(max_workers=16) as pool:
        made = list(pool.map(lambda want: there.get(want.name) or _make(want, base[want.suite]), starting))
        _write_known_hosts()
        list(pool.map(_boot, made))


def down(hosts: list[Host]) -> None:
    """Stop hosts and remove what they were. Their host keys stay, for a host of the same name."""
    with ThreadPoolExecutor(max_workers=16) as pool:
        list(pool.map(stop, hosts))
    for host in hosts:
        _throw_away(host.folder)
    _write_known_hosts()


def stop(host: Host) -> None:
    """End a host at once, as a power cut does; its files stay."""
    cgroups.end(host.cgroup)
    # The kernel would remove it too, but at leisure: the host's next boot could meet it.
    run("ip", "link", "delete", f"vb-{host.machine}", check=False)


def reset(host: Host, want: Wanted) -> None:
    """A fresh host in the place of this one, with its host keys."""
    down([host])
    up([want])


def ssh_command(host: Host, *command: str) -> list[str]:
    """The ssh command that logs into a host with the lab's key."""
    options = ["IdentitiesOnly=yes", f"UserKnownHostsFile={KNOWN_HOSTS}", "StrictHostKeyChecking=yes", "LogLevel=ERROR"]
    flags = [word for option in options for word in ("-o", option)]
    return ["ssh", "-F", "none", "-i", str(SSH_KEY), *flags, f"ubuntu@{host.address}", *command]


def clean() -> None:
    """Put away what killed lab commands have left: their programs, and what was half made or half removed."""
    if cgroups.ours().exists():
        for group in [entry for entry in cgroups.ours().iterdir() if entry.is_dir()]:
            if group.name == cgroups.BUILD or not group.name.startswith(".") and group.name not in known():
                cgroups.end(group)
    for leftover in [*HOSTS.glob(".*"), *TRASH.glob("*"), *settings.ROOTS.glob(".*")]:
        roots.discard(leftover)


def remove_traces() -> None:
    """Remove the empty directories outside the cache; no host is left."""
    cgroups.remove()
    if not cgroups.ours().parent.exists() and NSPAWN_STATE.exists() and not any(NSPAWN_STATE.iterdir()):
        NSPAWN_STATE.rmdir()


def remove_cache() -> None:
    """Remove the whole cache; the base roots are built anew next time."""
    roots.discard(settings.CACHE)


def _refuse_a_different_host(want: Wanted, there: dict[str, Host]) -> None:
    host = there.get(want.name)
    for what in ("address", "suite"):
        if host and getattr(host, what) != getattr(want, what):
            raise LabError(
                f"{want.name} was made with the {what} {getattr(host, what)}, and {getattr(want, what)} is asked for: "
                f"python -m lab reset {want.name} makes it anew (what is on it goes)."
            )
    if host and host.options != want.options:
        raise LabError(
            f"{want.name} was made with other options than {' and '.join(sorted({*host.options, *want.options}))} of now: "
            f"python -m lab reset {want.name} makes it anew (what is on it goes)."
        )
    for other in there.values():
        if other.address == want.address and other.name != want.name:
            raise LabError(f"{want.name} cannot have the address {want.address}: {other.name} has it.")


def _note_inventory(want: Wanted, host: Host | None) -> None:
    """Whose host it is now: the checkout that asked for it last."""
    if host and host.inventory != want.inventory:
        host = replace(host, inventory=want.inventory)
        new = host.folder / ".host.json"
        new.write_text(json.dumps(asdict(host), indent=2) + "\n")
        new.rename(host.folder / "host.json")


def _make(want: Wanted, root: Path) -> Host:
    """Lay out a host's folder; it appears under its name only when it is complete."""
    host = Host(**asdict(want), root=str(root))
    new = HOSTS / f".{host.name}"
    roots.discard(new)
    for name in ("upper", "work", "root", *PLAIN):
        (new / name).mkdir(parents=True)
    (new / "docker").chmod(0o710)
    _populate(host, root, new / "upper")
    (new / "host.json").write_text(json.dumps(asdict(host), indent=2) + "\n")
    new.rename(host.folder)
    return host


def _populate(host: Host, root: Path, upper: Path) -> None:
    """What makes this host different from its base root."""

    def write(name: str, text: str, mode: int = 0o644) -> None:
        file = upper / name
        _directory(root, upper, file.parent.relative_to(upper))
        file.write_text(text)
        file.chmod(mode)

    write("etc/hostname", f"{host.name}\n")
    write("etc/machine-id", f"{uuid.uuid4().hex}\n", 0o444)
    write("etc/resolv.conf", "".join(f"nameserver {server}\n" for server in network.nameservers()))
    write("etc/apt/apt.conf.d/99lab", roots.apt_proxy())
    # Debian's 80-container-host0.network would win against a name that sorts behind it.
    write("etc/systemd/network/10-host0.network", _network_file(host))
    for kind in KEY_TYPES:
        key = HOST_KEYS / host.name / kind
        write(f"etc/ssh/ssh_host_{kind}_key", key.read_text(), 0o600)
        write(f"etc/ssh/ssh_host_{kind}_key.pub", _public(key))
    # YAML, of which JSON is a part: what a cloud tells of an instance, and what its owner wants at the first boot.
    about = {"instance-id": f"i-{uuid.uuid4().hex}", "local-hostname": host.name, "public-keys": [_public(SSH_KEY)]}
    write("var/lib/cloud/seed/nocloud/meta-data", json.dumps(about))
    write("var/lib/cloud/seed/nocloud/user-data", host.options.get("user_data") or "#cloud-config\n{}\n")
    if host.options.get("ssh_socket"):
        _listen_by_systemd(root, upper)


# What Ubuntu's own does, near enough: where sshd's port is not 22, it tells the socket.
SOCKET_GENERATOR = """\
#!/bin/sh
port=$(sed -n 's/^Port //p' /etc/ssh/sshd_config.d/*.conf /etc/ssh/sshd_config | head -n 1)
[ "${port:-22}" = 22 ] && exit 0
mkdir -p "$1/ssh.socket.d"
printf '[Socket]\\nListenStream=\\nListenStream=%s\\n' "$port" >"$1/ssh.socket.d/addresses.conf"
"""


def _listen_by_systemd(root: Path, upper: Path) -> None:
    """As Ubuntu 24.04 has it: ssh.socket enabled (WantedBy=sockets.target, RequiredBy=ssh.service), ssh.service not."""
    units = upper / "etc/systemd/system"
    for directory in ("sockets.target.wants", "ssh.service.requires", "multi-user.target.wants"):
        _directory(root, upper, (units / directory).relative_to(upper))
    for link in (units / "sockets.target.wants/ssh.socket", units / "ssh.service.requires/ssh.socket"):
        link.symlink_to("/usr/lib/systemd/system/ssh.socket")
    for gone in (units / "multi-user.target.wants/ssh.service", units / "sshd.service"):
        os.mknod(gone, stat.S_IFCHR)  # how an overlay's upper layer says that a file of the lower is gone
    generator = upper / "etc/systemd/system-generators/sshd-socket-generator"
    _directory(root, upper, generator.parent.relative_to(upper))
    generator.write_text(SOCKET_GENERATOR)
    generator.chmod(0o755)


def _directory(root: Path, upper: Path, path: Path) -> None:
    """Make a directory in the upper layer as the base root has it: the upper one's mode and owner win."""
    for part in [*reversed(path.parents), path]:
        (upper / part).mkdir(exist_ok=True)
        if (root / part).is_dir():
            below = (root / part).stat()
            (upper / part).chmod(below.st_mode & 0o7777)
            os.chown(upper / part, below.st_uid, below.st_gid)


def _network_file(host: Host) -> str:
    return f"""\
[Match]
Name=host0

[Network]
LinkLocalAddressing=ipv6
IPv6AcceptRA=no
LLDP=no
EmitLLDP=no

[Address]
Address={host.address}/24

[Address]
Address={settings.address6(host.address)}/64
DuplicateAddressDetection=none

[Route]
Gateway={settings.gateway(host.address)}
"""


def _boot(host: Host) -> None:
    begin = time.monotonic()
    if not host.running:
        _start(host)
    _wait_for_ssh(host)
    if not host.options.get("user_data"):
        _wait_for_cloud_init(host)
    (host.folder / "answered").touch()
    say(f"{host.name} runs {host.suite} at {host.address} ({time.monotonic() - begin:.1f} s)")


def _start(host: Host) -> None:
    """Start the container, detached: it outlives this command, and ends by its control group."""
    stop(host)  # a host that died hard leaves its services' groups, or some of its processes
    cgroups.make(host.cgroup, "supervisor", "host")
    for stale in ("exit", "answered"):
        (host.folder / stale).unlink(missing_ok=True)
    NSPAWN_STATE.mkdir(parents=True, exist_ok=True)
    overlay = f"lowerdir={host.root},upperdir={host.folder}/upper,workdir={host.folder}/work"
    arguments = [str(host.cgroup), str(NSPAWN_STATE), overlay, str(host.folder)]
    with (host.folder / "console.log").open("ab") as console:
        subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-ec", _SUPERVISOR, "sh", *arguments, *_nspawn(host)],
            stdin=subprocess.DEVNULL, stdout=console, stderr=console, cwd="/", start_new_session=True,
            env={"PATH": os.environ["PATH"], "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
        )  # fmt: skip


# The mounts, and nspawn's locks, lie in a mount namespace of the host's own: they go when it goes, however
# it ends. nspawn exits with 133 to be started again when its host reboots.
_SUPERVISOR = """
cgroup=$1 state=$2 overlay=$3 folder=$4
shift 4
echo 0 > "$cgroup/supervisor/cgroup.procs"
mount -t tmpfs tmpfs "$state"
mount -t overlay overlay -o "$overlay" "$folder/root"
while (echo 0 > "$cgroup/host/cgroup.procs"; exec "$@"); code=$?; [ $code = 133 ]; do :; done
echo $code > "$folder/exit"
"""


def _nspawn(host: Host) -> list[str]:
    binds = [f"--bind={host.folder}/{name}:/var/lib/{name}" for name in PLAIN]
    return [
        "systemd-nspawn", "--quiet", "--boot", f"--machine={host.machine}", f"--hostname={host.name}",
        f"--directory={host.folder}/root", f"--network-bridge={settings.bridge(host.address)}", *binds,
        "--register=no", "--keep-unit", "--resolv-conf=off", "--timezone=off", "--link-journal=no",
        "--capability=all", "--drop-capability=CAP_SYS_TIME,CAP_SYS_MODULE", "--system-call-filter=@known",
    ]  # fmt: skip


def _wait_for_ssh(host: Host) -> None:
    deadline = time.monotonic() + BOOT_SECONDS
    command = ssh_command(host, "true")
    command[1:1] = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=2"]
    while subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True).returncode:
        if not host.running:
            raise LabError(f"{host.name} stopped while it booted: {_last_words(host)}")
        if time.monotonic() > deadline:
            raise LabError(f"{host.name} does not answer over SSH after {BOOT_SECONDS} s; see {host.folder}/console.log.")
        time.sleep(0.1)


def _wait_for_cloud_init(host: Host) -> None:
    """Until the first boot's work is done. Exit status 2 is "done" with warnings, from cloud-init 23.4 on."""
    command = ssh_command(host, f"timeout {BOOT_SECONDS} cloud-init status --wait --long")
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode not in (0, 2):
        raise LabError(f"cloud-init did not finish on {host.name}; on it, /var/log/cloud-init.log: {done.stdout.strip()}")


def _last_words(host: Host) -> str:
    log = host.folder / "console.log"
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing.") + f" ({log})"


def _make_host_keys(names: list[str]) -> None:
    """Make the host keys of hosts that never were before; a host of the same name gets the same again."""
    new = [(HOST_KEYS / name / kind, kind, f"root@{name}") for name in names for kind in KEY_TYPES]
    if new := [key for key in new if not key[0].exists()]:
        with step(f"making {len(new)} ssh host keys"), ThreadPoolExecutor() as pool:
            list(pool.map(lambda key: _make_key(*key), new))


def _make_key(file: Path, kind: str, comment: str) -> None:
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = file.with_name(f".{file.name}.partial")
        for half_made in (partial, partial.with_name(partial.name + ".pub")):
            half_made.unlink(missing_ok=True)
        run("ssh-keygen", "-q", "-t", kind, "-N", "", "-C", comment, "-f", partial)
        partial.with_name(partial.name + ".pub").unlink()
        partial.rename(file)


def _public(key: Path) -> str:
    return run("ssh-keygen", "-y", "-f", key)


def _write_known_hosts() -> None:
    lines = [
        f"{host.address},{host.name} {_public(HOST_KEYS / host.name / kind)}"
        for host in known().values()
        for kind in KEY_TYPES
    ]
    partial = KNOWN_HOSTS.with_name(".known_hosts.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text("".join(lines))
    partial.rename(KNOWN_HOSTS)


def _throw_away(folder: Path) -> None:
    """Remove a folder in a way that leaves no half host behind, even when killed."""
    TRASH.mkdir(parents=True, exist_ok=True)
    gone = TRASH / f"{folder.name}-{uuid.uuid4().hex[:8]}"
    folder.rename(gone)
    roots.discard(gone)
