"""A host's own name, and the names that it knows others by."""

from __future__ import annotations

import shlex
from typing import Mapping

from pyinfra import host
from pyinfra.api import operation

from facts.host import Names
from groundwork.rows import File
from operations.files import write
from operations.report import report

BEGIN = "# Groundwork: the hosts of the inventory (changes up to the end mark are overwritten)"
END = "# Groundwork: end"


@operation()
def names(hostname: str | None, addresses: Mapping[str, list[str]]):
    """Make the host bear its name and know the others by theirs, in a block of /etc/hosts.

    The rest of /etc/hosts is left alone, but for its 127.0.1.1 line: that is where Debian's installer
    puts the host's own name, which then would not be the address that the others use.

    Args:
        hostname: the host's name; None leaves it as it is.
        addresses: address -> names.
    """
    now = host.get_fact(Names)
    wanted = with_block(now.hosts, addresses)
    if now.hosts != wanted:
        report(f"/etc/hosts: {len(addresses)} host{'s' * (len(addresses) != 1)} by name")
        yield write(File("/etc/hosts"), "\n".join([*wanted, ""]).encode())
    if hostname and now.stored != hostname:
        report(f"/etc/hostname: {hostname} (was {now.stored})")
        yield write(File("/etc/hostname"), f"{hostname}\n".encode())
    if hostname and now.live != hostname:
        report(f"host name: {hostname} (was {now.live})")
        yield f"hostname {shlex.quote(hostname)}"


def with_block(lines: list[str], addresses: Mapping[str, list[str]]) -> list[str]:
    """Lines of /etc/hosts with our block at their end, in place of an earlier one."""
    kept, ours = [], False
    for line in lines:
        ours = ours or line == BEGIN
        if not ours and line.split()[:1] != ["127.0.1.1"]:
            kept.append(line)
        ours = ours and line != END
    return [*kept, BEGIN, *(f"{address} {' '.join(names)}" for address, names in addresses.items()), END]
