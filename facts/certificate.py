"""Certificates, as the host sees them: that of a file, and what certbot keeps."""

from __future__ import annotations

import ipaddress
import shlex
from dataclasses import dataclass, field
from typing import Iterable

from pyinfra.api import FactBase

from groundwork.certificates import fingerprints, names_of
from groundwork.late import x509

LETSENCRYPT = "/etc/letsencrypt"
"""certbot's directory, whichever authority it asks."""
LINEAGE = "groundwork"
"""certbot's name for nginx's certificate. It stays when the domains change, and is no name that a
certificate of the host's own would have."""
OFF = ".off"
"""What is added to the name of a renewal configuration that certbot shall not see."""


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

    The host only reads it out (openssl takes 20 ms to come to a certificate), with its own clock.

    Args of the command:
        path: the PEM file. Of what else is in it, such as a key, nothing is read out.
        seconds: how long it shall last.
    """

    def command(self, path: str, seconds: int) -> str:
        self.seconds = seconds
        quoted = shlex.quote(path)
        return (
            f"stat -c 'mode=%a' {quoted} 2>/dev/null; date +now=%s; "
            f"sed -n '/-BEGIN CERTIFICATE-/,/-END CERTIFICATE-/p; /-END CERTIFICATE-/q' {quoted} 2>/dev/null; true"
        )

    def process(self, output: Iterable[str]):
        lines = [line.strip() for line in output]
        said = dict(line.split("=", 1) for line in lines if line.startswith(("mode=", "now=")))
        try:
            own = x509.load_pem_x509_certificate("\n".join(lines).encode())
            names = {name.lower() for name in names_of(own)}
        except ValueError:
            return None
        # An authority may leave the subject empty, and say all in the names.
        lasts = own.not_valid_after_utc.timestamp() > int(said["now"]) + self.seconds
        return CertificateState(own.subject.rfc4514_string(), names, lasts, said["mode"])


class Served(FactBase):
    """SHA-256 of each certificate that a TLS server on loopback serves, in order; None where none answers.

    Args of the command:
        port: where it listens on 127.0.0.1.
    """

    def command(self, port: int) -> str:
        return (
            f"echo | timeout 10 openssl s_client -connect 127.0.0.1:{port} -showcerts 2>/dev/null "
            "| sed -n '/-BEGIN CERTIFICATE-/,/-END CERTIFICATE-/p'"
        )

    def process(self, output: Iterable[str]):
        return fingerprints("\n".join(output)) or None


@dataclass
class LineageState:
    """What certbot keeps of nginx's certificate."""

    server: str = ""
    """URL of the directory of the authority that issued it."""
    names: set[str] = field(default_factory=set)
    lasts: bool = False
    """It is still valid after the time asked about."""
    pair: bool = False
    """Certificate and key belong together."""
    off: bool = False
    """Its renewal was switched off when another certificate took its place."""
    left: bool = False
    """Something of it is there."""
    installed: bool = False
    """nginx's file holds exactly this certificate, chain and key, closed to others."""

    @property
    def whole(self) -> bool:
        return bool(self.server and self.names and self.pair)


class Lineage(FactBase):
    """certbot's certificate for nginx.

    Args of the command:
        path: nginx's PEM file.
        seconds: how long the certificate shall last.
    """

    default = LineageState

    def command(self, path: str, seconds: int) -> str:
        live, renewal, quoted = f"live/{LINEAGE}", f"renewal/{LINEAGE}.conf", shlex.quote(path)
        return (
            f"if cd {LETSENCRYPT} 2>/dev/null; then "
            f"ls -d {live} archive/{LINEAGE} {renewal} {renewal}{OFF} 2>/dev/null | sed -n '1s/.*/left=yes/p'; "
            f"c={renewal}; [ -s $c ] || {{ c=$c{OFF}; [ ! -s $c ] || echo off=yes; }}; "
            "sed -n 's/^server *= */server=/p' $c 2>/dev/null; "
            f"openssl x509 -in {live}/fullchain.pem -noout -ext subjectAltName -checkend {seconds} 2>/dev/null; "
            f"k=$(openssl pkey -in {live}/privkey.pem -pubout 2>/dev/null) && "
            f'[ "$(openssl x509 -in {live}/fullchain.pem -noout -pubkey 2>/dev/null)" = "$k" ] && echo pair=yes; '
            f"cat {live}/fullchain.pem {live}/privkey.pem 2>/dev/null | cmp -s - {quoted} "
            f'&& [ "$(stat -c %a {quoted})" = 600 ] && echo installed=yes; fi; true'
        )

    def process(self, output: Iterable[str]):
        found = LineageState()
        for line in (line.strip() for line in output):
            name, _, value = line.partition("=")
            if name == "server":
                found.server = value
            elif name in ("left", "off", "pair", "installed"):
                setattr(found, name, True)
            elif line.startswith(("DNS:", "IP Address:")):
                found.names = {_plain(item.split(":", 1)[1].strip()) for item in line.split(",")}
            elif line == "Certificate will not expire":
                found.lasts = True
        return found


def _plain(name: str) -> str:
    """A name in the form in which it is declared: openssl writes FD00:0:0:0:0:0:0:5 for fd00::5."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name.lower()
