"""Base roots: one unchanging tree per suite, as a cloud image would be; hosts are laid over it."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from . import cgroups, settings
from .controller import install
from .settings import ROOTS, LabError
from .shell import run, step

# What a cloud image has, and no more: a role that forgets a dependency must fail here too.
PACKAGES = (
    "systemd systemd-sysv dbus libpam-systemd openssh-server sudo passwd login python3 ca-certificates apt-utils gpgv "
    "iproute2 iputils-ping curl less nano procps netbase tzdata kmod cloud-init needrestart systemd-timesyncd"
).split()
# What newer releases have moved into packages of their own.
MORE = {"trixie": ["linux-sysctl-defaults"]}

# Units that wait for devices or kernel rights which no container has.
MASKED = ("systemd-udevd.service", "systemd-modules-load.service", "dev-hugepages.mount", "sys-kernel-debug.mount")

# What an image's maker writes for cloud-init. It makes the login user, as on EC2; the network is the lab's,
# and so are the ssh host keys, which are known beforehand. It rewrites /etc/hosts at each boot, as some clouds' images do.
CLOUD_INIT = """\
datasource_list: [NoCloud, None]
network: {config: disabled}
ssh_deletekeys: false
manage_etc_hosts: true
apt: {preserve_sources_list: true}
locale: C.UTF-8
growpart: {mode: "off"}
resize_rootfs: false
grub_dpkg: {enabled: false}
system_info:
  default_user:
    name: ubuntu
    gecos: Ubuntu
    groups: [adm, sudo]
    sudo: ["ALL=(ALL) NOPASSWD:ALL"]
    shell: /bin/bash
    lock_passwd: true
"""

SOURCES = Path("/etc/apt")
BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")


def ensure(suite: str) -> Path:
    """The base root of a suite, built if it isn't there yet or its recipe has changed."""
    root = ROOTS / f"{suite}-{_recipe(suite)}"
    if root.is_dir():
        return root
    partial = ROOTS / f".{root.name}.partial"
    discard(partial)
    with step(f"building the base root {suite} (once, about a minute)"):
        _bootstrap(suite, partial)
        _finish(suite, partial)
        partial.rename(root)  # complete or not there at all
    return root


def prune(used: set[str]) -> None:
    """Remove base roots of former recipes, but for those that a host still lies on."""
    for root in ROOTS.glob("*-*"):
        suite = root.name.partition("-")[0]
        if str(root) not in used and root.name != f"{suite}-{_recipe(suite)}":
            discard(root)


def discard(tree: Path) -> None:
    """Remove a tree, after unmounting whatever a killed build may have left mounted in it."""
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((m for m in mounted if Path(m).is_relative_to(tree)), reverse=True):
        run("umount", "--lazy", mount)
    if tree.exists():
        run("rm", "-rf", "--one-file-system", tree)


def sources(suite: str) -> str:
    """The suite's apt sources, in the form that images carry (deb822)."""
    archive, security = archives(suite)
    components = "main" if suite in settings.DEBIAN else "main universe restricted multiverse"
    entry = "Types: deb\nURIs: {}\nSuites: {}\nComponents: " + components + f"\nSigned-By: {_keyring(suite)}\n"
    return entry.format(archive, f"{suite} {suite}-updates") + "\n" + entry.format(security, f"{suite}-security")


def apt_settings() -> str:
    """The settings without which this controller's apt would not reach, or not trust, its archive."""
    shown = ("Acquire::Check-Valid-Until", "Acquire::Check-Date", "Acquire::http::Proxy", "Acquire::https::Proxy")
    lines = run("apt-config", "dump", *shown).splitlines()
    return "".join(f"{line}\n" for line in lines if '""' not in line)


def cacheable() -> list[str]:
    """The archives that the lab's server may cache for hosts: plain HTTP, secured by signatures."""
    found = set()
    for suite in settings.SUITES:
        with suppress(LabError):
            found.update(uri for uri in archives(suite) if uri.startswith("http://"))
    return sorted(f"{uri}/" for uri in found)


def apt_proxy() -> str:
    """apt settings that send a host's requests for the distribution's archive, and no other, through the cache."""
    if "Acquire::http::Proxy" in apt_settings():
        return ""  # this network has a proxy of its own, which hosts use too
    names = sorted({urlsplit(uri).hostname for uri in cacheable()})
    return "".join(f'Acquire::http::Proxy::{name} "{settings.REPOSITORY}";\n' for name in names)


def extra_authorities() -> list[str]:
    """Certificates that the controller trusts beyond its distribution's: a TLS-inspecting proxy's, say."""
    known = set()
    for file in Path("/usr/share/ca-certificates").rglob("*.crt"):
        known.update(_certificates(file))
    return [pem for pem in _certificates(BUNDLE) if pem not in known]


def _recipe(suite: str) -> str:
    """A short name for all that a base root is made from."""
    parts = [sources(suite), apt_settings(), *PACKAGES, *MASKED, *extra_authorities(), Path(__file__).read_text()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _bootstrap(suite: str, root: Path) -> None:
    scratch = ROOTS / ".scratch"  # cleaned away by the next lab command, should this one be killed
    scratch.mkdir(parents=True, exist_ok=True)
    if not Path(_keyring(suite)).exists():
        install("debian-archive-keyring" if suite in settings.DEBIAN else "ubuntu-keyring")
    packages = ",".join([*PACKAGES, *MORE.get(suite, [])])
    command = ["mmdebstrap", "--mode=root", "--variant=minbase", f"--include={packages}", suite, root, "-"]
    run(*cgroups.building(command), input=sources(suite), env={**os.environ, "TMPDIR": str(scratch)})


def _finish(suite: str, root: Path) -> None:
    def write(name: str, text: str, mode: int = 0o644) -> None:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    for old in [root / "etc/apt/sources.list", *(root / "etc/apt/sources.list.d").iterdir()]:
        old.unlink(missing_ok=True)
    write(f"etc/apt/sources.list.d/{_family(suite)}.sources", sources(suite))
    if apt_settings():
        write("etc/apt/apt.conf.d/99controller", apt_settings())

    for number, pem in enumerate(extra_authorities()):
        write(f"usr/local/share/ca-certificates/controller-{number}.crt", pem)
    run("chroot", root, "update-ca-certificates")

    write("etc/cloud/cloud.cfg.d/95_lab.cfg", CLOUD_INIT)
    write("etc/ssh/sshd_config.d/60-cloudimg-settings.conf", "PasswordAuthentication no\n")
    run("chroot", root, "passwd", "--lock", "root")

    run("chroot", root, "systemctl", "enable", "systemd-networkd.service")
    run("chroot", root, "systemctl", "mask", *MASKED)
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()  # every host has its own
    for name in ("etc/hostname", "etc/resolv.conf", "etc/machine-id", "var/lib/dbus/machine-id"):
        (root / name).unlink(missing_ok=True)


def archives(suite: str) -> tuple[str, str]:
    """The archive's address for a suite, and that of its security updates."""
    family = _family(suite)
    here, codename = settings.distribution()
    if here != family:
        if not settings.MIRROR:
            raise LabError(
                f"This machine runs {here}, so its sources do not lead to {family}'s {suite}; "
                f"name a mirror of {family} in GROUNDWORK_LAB_MIRROR."
            )
        mirror = settings.MIRROR.rstrip("/")
        return mirror, f"{mirror}-security" if family == "debian" else mirror
    entries = _own_sources(family)
    archive = next((uri for uri, suites in entries if codename in suites), None)
    security = next((uri for uri, suites in entries if f"{codename}-security" in suites), archive)
    if not archive:
        raise LabError(f"/etc/apt has no source for {codename}, so the lab does not know where to get {suite}.")
    return archive, security


def _own_sources(family: str) -> list[tuple[str, list[str]]]:
    """The distribution's own sources on the controller, without third parties': (URI, suites)."""
    found = []
    deb822 = SOURCES / "sources.list.d" / f"{family}.sources"
    if deb822.exists():
        for paragraph in deb822.read_text().split("\n\n"):
            lines = [line for line in paragraph.splitlines() if ": " in line and not line.startswith("#")]
            fields = dict(line.split(": ", 1) for line in lines)
            if "deb" in fields.get("Types", "").split():
                found += [(uri.rstrip("/"), fields.get("Suites", "").split()) for uri in fields["URIs"].split()]
    one_line = SOURCES / "sources.list"
    if one_line.exists():
        for line in one_line.read_text().splitlines():
            words = [word for word in line.split() if not (word.startswith("[") or word.endswith("]"))]
            if words[:1] == ["deb"] and len(words) > 2:
                found.append((words[1].rstrip("/"), [words[2]]))
    return found


def _keyring(suite: str) -> str:
    return f"/usr/share/keyrings/{_family(suite)}-archive-keyring.gpg"


def _family(suite: str) -> str:
    return "debian" if suite in settings.DEBIAN else "ubuntu"


def _certificates(file: Path) -> list[str]:
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----\n"
    if not file.exists():
        return []
    return [begin + part.split(end)[0] + end for part in (file.read_text() + "\n").split(begin)[1:]]
