"""A placeholder for a certificate, made on the host: the key never leaves it."""

from __future__ import annotations

import shlex

from pyinfra import host
from pyinfra.api import operation

from facts.certificate import Certificate, CertificateState
from groundwork.settings import is_address
from operations.report import report

SUBJECT = "Groundwork placeholder"
"""Organisation in the subject, by which a placeholder of ours is known."""
DAYS = 397
RENEW_DAYS = 30


@operation()
def self_signed(path: str, names: list[str]):
    """Make a PEM file hold a key and a self-signed certificate for these names.

    It is made anew when a name is missing, when it ends within 30 days, or when what is there is no
    placeholder (a provided certificate whose setting was removed).

    Args:
        path: of the file; its directory exists. Owner root, mode 600.
        names: host names and addresses.
    """
    now = host.get_fact(Certificate, path=path, seconds=RENEW_DAYS * 86400)
    if reason := _reason(now, names):
        report(f"{path}: self-signed for {', '.join(names)} ({reason})")
        yield _make(path, names)


def _reason(now: CertificateState | None, names: list[str]) -> str:
    if now is None:
        return "there was none"
    if SUBJECT not in now.subject:
        return "what was there is no placeholder, and no certificate is provided any more"
    if now.names != {name.lower() for name in names}:
        return "other names"
    if not now.lasts:
        return f"it would end within {RENEW_DAYS} days"
    return "" if now.mode == "600" else "its mode was not 600"


def _make(path: str, names: list[str]) -> str:
    alternatives = ",".join(f"{'IP' if is_address(name) else 'DNS'}:{name}" for name in names)
    directory = shlex.quote(path.rsplit("/", 1)[0])
    return (
        f"set -e; umask 077; rm -rf {directory}/.tls.??????; t=$(mktemp -d {directory}/.tls.XXXXXX); trap 'rm -rf \"$t\"' EXIT; "
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256 "
        f"-days {DAYS} -subj {shlex.quote(f'/O={SUBJECT}')} "
        f"-addext {shlex.quote(f'subjectAltName={alternatives}')} "
        '-keyout "$t/key" -out "$t/certificate" 2>"$t/said" || { cat "$t/said" >&2; exit 1; }; '
        f'cat "$t/certificate" "$t/key" >"$t/both"; sync "$t/both"; mv -fT "$t/both" {shlex.quote(path)}'
    )
