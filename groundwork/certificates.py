"""Certificates that somebody gives us, in PEM form: read and judged on the controller, before a host is touched."""

from __future__ import annotations

import hashlib
import ipaddress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Iterable

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from groundwork import ROOT
from groundwork.late import x509
from groundwork.settings import is_address

if TYPE_CHECKING:
    from cryptography import x509

SOON_DAYS = 30
"""Before its end, when a certificate's is told."""


def read(path: str) -> str:
    """A PEM file on the controller, its path absolute or relative to the repository. Raises OSError."""
    return Path(ROOT / path).read_text()


def file_errors(key: str, path: str) -> Iterable[str]:
    """What is wrong with a file of certificates that a setting names.

    Args:
        key: of the setting.
    """
    try:
        x509.load_pem_x509_certificates(read(path).encode())
    except OSError as error:
        yield f"{key} = {path!r}: {error.strerror}"
    except ValueError:
        yield f"{key} = {path!r}: is not a certificate in PEM form"


def pair_errors(certificate: tuple[str, str], key: tuple[str, str], names: Iterable[str], authority: str | None) -> Iterable[str]:
    """What is wrong with a server's certificate and its key; no value is ever part of it.

    Args:
        certificate: what it is called (for the message), and the chain, the server's own first, PEM.
        key: the same of the private key, PEM.
        names: host names and addresses by which clients ask for it.
        authority: certificates that clients trust, PEM; None for those of the clients' systems.
    """
    called, key_called = certificate[0], key[0]
    try:
        own, *others = x509.load_pem_x509_certificates(certificate[1].encode())
    except ValueError:
        yield f"{called}: is not a certificate in PEM form"
        return
    yield from _key_errors(own, called, key_called, key[1])
    now = datetime.now(timezone.utc)
    if own.not_valid_after_utc <= now:
        yield f"{called}: has ended on {own.not_valid_after_utc:%Y-%m-%d}, and clients refuse it: put a new one there, and its key"
    if own.not_valid_before_utc > now:
        yield f"{called}: is not valid before {own.not_valid_before_utc:%Y-%m-%d %H:%M} UTC (is this machine's clock right?)"
    has = names_of(own)
    if missing := [name for name in names if not any(_matches(name, pattern) for pattern in has)]:
        yield f"{called}: is for {', '.join(has) or 'no name at all'}, and clients ask for {', '.join(missing)}"
    if authority and not _vouched(own, others, x509.load_pem_x509_certificates(authority.encode())):
        yield f"{called}: the authority that clients are given did not issue it: is that the wrong one, or is an intermediate missing?"


def _key_errors(own: x509.Certificate, called: str, key_called: str, key: str) -> Iterable[str]:
    try:
        private = load_pem_private_key(key.encode(), None)
    except TypeError:
        yield f"{key_called}: has a passphrase, which nobody is there to type: give it without"
    except (ValueError, UnsupportedAlgorithm):
        yield f"{key_called}: is not a private key in PEM form"
    else:
        if _public(private.public_key()) != _public(own.public_key()):
            yield f"{key_called}: is not the key of {called} (whose first certificate must be the server's own)"


def _public(key) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def names_of(certificate: x509.Certificate) -> list[str]:
    """Host names and addresses; a name in the subject alone is what clients do not look at any more."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))]


def _matches(name: str, pattern: str) -> bool:
    if is_address(name):
        return is_address(pattern) and ipaddress.ip_address(name) == ipaddress.ip_address(pattern)
    first, _, rest = name.lower().partition(".")
    return pattern.lower() in (name.lower(), f"*.{rest}" if first else "")


def _vouched(own: x509.Certificate, others: list[x509.Certificate], trusted: list[x509.Certificate]) -> bool:
    """Whether the chain leads to a certificate that is trusted."""
    for _ in range(len(others) + 1):
        if own in trusted or any(_issued(issuer, own) for issuer in trusted):
            return True
        own = next((other for other in others if _issued(other, own)), own)
    return False


def _issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def fingerprints(chain: str) -> list[str]:
    """SHA-256 of each certificate of a chain, PEM, in order; none of what is no chain."""
    try:
        found = x509.load_pem_x509_certificates(chain.encode())
    except ValueError:
        return []
    return [hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest() for certificate in found]


def ends(chain: str) -> datetime:
    """When the first certificate of a chain, PEM, ends, UTC. Raises ValueError."""
    return x509.load_pem_x509_certificates(chain.encode())[0].not_valid_after_utc


def days_left(chain: str) -> int:
    """Whole days until then; below 0 once it has ended. Raises ValueError."""
    return (ends(chain) - datetime.now(timezone.utc)).days
