"""A swap file, for a host with little memory."""

from __future__ import annotations

from pyinfra import host
from pyinfra.api import operation

from facts.swap import Swap
from groundwork.context import current
from operations.report import report

PATH = "/swapfile"

# btrfs swaps only to a file without copy-on-write; chattr says no on other file systems.
_MAKE = """set -e; umask 077; t={path}.new; trap 'rm -f "$t"' EXIT
rm -f "$t"; : >"$t"; chattr +C "$t" 2>/dev/null || true
fallocate -l {size}M "$t" || dd if=/dev/zero of="$t" bs=1M count={size} status=none
mkswap "$t" >/dev/null; mv -T "$t" {path}"""


@operation()
def file(size: int):
    """Swap to a file, unless the host already swaps elsewhere. A file that exists keeps its size.

    In a container the file and its line in /etc/fstab are written for boot and not applied.

    Args:
        size: MiB; 0 leaves swap as it is.
    """
    now = host.get_fact(Swap, path=PATH)
    machine = current().machine
    container = bool(machine and machine.container)
    elsewhere = (now.boot | (set() if container else now.active)) - {PATH}
    if not size or elsewhere:
        return
    if not now.exists:
        report(f"{PATH}: {size} MiB of swap" + (", written for boot, not applied here" if container else ""))
        yield _MAKE.format(path=PATH, size=size)
    if PATH not in now.boot:
        report(f"/etc/fstab: {PATH}")
        yield f"printf '%s\\n' '{PATH} none swap sw,nofail 0 0' >>/etc/fstab && systemctl daemon-reload"
    if PATH not in now.active and not container:
        report(f"{PATH}: in use")
        yield f"swapon {PATH}"
