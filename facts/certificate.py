"""A certificate, as the host sees it."""

from __future__ import annotations

import ipaddress
import shlex
from dataclasses import dataclass, field
from typing import Iterable

from pyinfra.api import FactBase


@dataclass
class CertificateState:
    """What is in a PEM file that holds a certificate."""

    subject: str = ""
    names: set[str] = field(default_factory=set)
    """Subject alternative names: host names and addresses."""
    lasts: bool = False
    """It is still valid after the time asked about."""
    mode: str = ""


class Certificate(FactBase):
    """The first certificate of a PEM file; None where there is none.

    Args of the command:
        path: the PEM file.
        seconds: how long it shall last.
    """

    def command(self, path: str, seconds: int) -> str:
        quoted = shlex.quote(path)
        return (
            f"stat -c 'mode=%a' {quoted} 2>/dev/null; "
            f"openssl x509 -in {quoted} -noout -subject -ext subjectAltName -checkend {seconds} 2>/dev/null; true"
        )

    def process(self, output: Iterable[str]):
        found = CertificateState()
        for line in (line.strip() for line in output):
            if line.startswith("mode="):
                found.mode = line[5:]
            elif line.startswith("subject="):
                found.subject = line[8:].strip()
            elif line.startswith(("DNS:", "IP Address:")):
                found.names = {_plain(item.split(":", 1)[1].strip()) for item in line.split(",")}
            elif line == "Certificate will not expire":
                found.lasts = True
        return found if found.subject else None


def _plain(name: str) -> str:
    """A name in the form in which it is declared: openssl writes FD00:0:0:0:0:0:0:5 for fd00::5."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name.lower()
