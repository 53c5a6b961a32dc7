"""apt repositories of vendors: a deb822 source that trusts one key, and the key."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import shlex
from pathlib import Path
from typing import Any, Iterable, Mapping

from pyinfra import host
from pyinfra.api import operation

from facts.files import Content, Paths
from facts.packages import Source, Sources
from groundwork.rows import Absent, Directory, File
from groundwork.takeover import Found
from operations import takeover
from operations.files import table
from operations.report import report, stop

KEYRINGS = "/etc/apt/keyrings"
_BLOCK = "BEGIN PGP PUBLIC KEY BLOCK"


@operation()
def repository(
    repository: str,
    uris: Iterable[str],
    suites: Iterable[str],
    components: Iterable[str] = (),
    key: str = "",
    fingerprint: str | None = None,
):
    """Add an apt repository. The package lists are updated by the next `apt.packages` that installs.

    A key from a URL is fetched by the host, through apt's own proxy; it is fetched again when any
    argument changes. It is read on the controller, so a host needs no gpg.

    Args:
        repository: its name; names the files /etc/apt/sources.list.d/<name>.sources and
            /etc/apt/keyrings/<name>.asc.
        uris: base URIs.
        suites: suites, such as bookworm; for a flat repository one path that ends with a slash.
        components: components; none for a flat repository.
        key: the signing key, armored: a URL, or a path on the controller.
        fingerprint: 40 hexadecimal digits: the file must hold the key with that fingerprint and no
            other. Without it, a key by plain http:// is refused.
    """
    keyring = f"{KEYRINGS}/{repository}.asc"
    path = f"/etc/apt/sources.list.d/{repository}.sources"
    wanted = (fingerprint or "").replace(" ", "").upper()
    text = source(keyring, uris, suites, components, key, wanted)
    rows: list = [Directory(KEYRINGS), File(path, content=text)]
    if "://" not in key:
        local = Path(key)
        if not local.is_file():
            yield stop(f"{key}, the key of repository {repository}, is no file on the controller")
            return
        if wrong := key_error(local.read_text(errors="replace"), wanted):
            yield stop(f"{key}: {wrong}")
            return
        rows.insert(1, File(keyring, source=str(local.resolve())))
    elif key.startswith("http://") and not wanted:
        yield stop(f"{key}: a key that comes by http:// needs a fingerprint to know it by")
        return
    else:
        yield from _fetched(key, wanted, keyring, path, text)
    yield from table._inner(rows=rows, settings=None)


@operation()
def repositories(wanted: Mapping[str, Mapping[str, Mapping[str, Any]]], found: Found | None):
    """Add the repositories of roles, in the place of the sources that somebody had for their vendors.

    Args:
        wanted: role -> repository's name -> arguments of `repository`.
        found: what was on the host; None where the roles were before.
    """
    for role, theirs in wanted.items():
        yield from takeover.sources._inner(found=found, role=role)
        for name, arguments in theirs.items():
            yield from repository._inner(repository=name, **arguments)


@operation()
def components(repository: str, codename: str, components: Iterable[str]):
    """Have more components of the distribution's own archive, from where the host has the others: its own sources stay as they are.

    Args:
        repository: names the file /etc/apt/sources.list.d/<repository>.sources.
        codename: the distribution's; its suites are those that begin with it.
        components: such as non-free. Nothing is done for those that the host's own sources have.
    """
    path = f"/etc/apt/sources.list.d/{repository}.sources"
    sources = [source for source in host.get_fact(Sources) or [] if source.path != path]
    content = more_components(sources, codename, list(components))
    rows = [File(path, content=content) if content else Absent(path)]
    yield from table._inner(rows=rows, settings=None)


def more_components(sources: Iterable[Source], codename: str, wanted: list[str]) -> str:
    """The deb822 file with what the sources lack of some components; empty where they lack nothing."""
    there: dict[tuple[str, str], Source] = {}
    has: dict[tuple[str, str], set[str]] = {}
    for source in sources:
        for suite in source.suites:
            if suite.split("-")[0] == codename and source.components:
                place = (source.uris.rstrip("/"), suite)
                there.setdefault(place, source)
                has.setdefault(place, set()).update(source.components)
    stanzas = []
    for (uris, suite), source in there.items():
        missing = [name for name in wanted if name not in has[uris, suite]] if "main" in has[uris, suite] else []
        if missing:
            signed_by = f"Signed-By: {source.signed_by}\n" if source.signed_by else ""
            stanzas.append(f"Types: deb\nURIs: {uris}\nSuites: {suite}\nComponents: {' '.join(missing)}\n{signed_by}")
    header = "# Managed by Groundwork (operations/repository.py): changes here are overwritten\n"
    return "\n".join([header, *stanzas]) if stanzas else ""


def source(
    keyring: str,
    uris: Iterable[str],
    suites: Iterable[str],
    components: Iterable[str],
    key: str,
    fingerprint: str,
) -> str:
    """The deb822 file (sources.list(5)). It names the key's URL, so that another one is fetched."""
    fields = {
        "# Managed by Groundwork": "operations/repository.py; changes here are overwritten",
        # A path of the controller would differ from one operator to the next.
        "# Key": " ".join((key if "://" in key else "", fingerprint)).strip(),
        "Types": "deb",
        "URIs": " ".join(uris),
        "Suites": " ".join(suites),
        "Components": " ".join(components),
        "Signed-By": keyring,
    }
    return "".join(f"{field}: {value}\n" for field, value in fields.items() if value)


def _fetched(url: str, fingerprint: str, keyring: str, path: str, text: str):
    """Fetch the key if it is missing, or was fetched for another source than this."""
    found = host.get_fact(Paths, paths=[keyring, path]) or {}
    now = found.get(path)
    if keyring in found and now and now.sha256 == hashlib.sha256(text.encode()).hexdigest():
        return
    report(f"{keyring}: fetched from {url}")
    # apt's own downloader: on every host, and by the proxy and certificates that apt is set to use.
    # It asks only for a newer file where it finds one; the sandbox user may not write there.
    candidate = shlex.quote(f"{keyring}.new")
    yield (
        f"mkdir -p {KEYRINGS}; rm -f {candidate}; "
        f"/usr/lib/apt/apt-helper -qq -o APT::Sandbox::User=root download-file {shlex.quote(url)} {candidate} && "
        f"chown root:root {candidate} && chmod 644 {candidate}"
    )
    content = "\n".join(host.get_fact(Content, path=f"{keyring}.new") or [])
    if wrong := key_error(content, fingerprint):
        yield f"rm -f {candidate}; {stop(f'{url}: {wrong}')}"
    yield f"mv -fT {candidate} {shlex.quote(keyring)}"


# The key


def key_error(armored: str, fingerprint: str) -> str | None:
    """What is wrong with an armored key file, or None. An empty fingerprint accepts any key."""
    try:
        found = fingerprints(armored)
    except ValueError as error:
        return str(error)
    if fingerprint and found != [fingerprint]:
        return f"holds the key {' and '.join(found)}, and shall hold {fingerprint}"
    return None


def fingerprints(armored: str) -> list[str]:
    """Fingerprints of the primary keys in an armored file (RFC 9580: 5.5.4.2, version 4 keys).

    Raises:
        ValueError: in words for the user, when it can't be read.
    """
    return [
        hashlib.sha1(b"\x99" + len(body).to_bytes(2, "big") + body).hexdigest().upper()
        for tag, body in _packets(_dearmored(armored))
        if tag == 6
    ]


def _dearmored(armored: str) -> bytes:
    blocks = re.findall(f"^-----{_BLOCK}-----$(.*?)^-----END", armored, re.MULTILINE | re.DOTALL)
    try:
        blob = b"".join(base64.b64decode(_body(block), validate=True) for block in blocks)
    except binascii.Error:
        blob = b""
    if not blob:
        raise ValueError(f"is no armored OpenPGP public key (-----{_BLOCK}-----)")
    return blob


def _body(block: str) -> str:
    """What is base64 in a block: not its headers, nor its checksum."""
    lines = (line.strip() for line in block.splitlines())
    return "".join(line for line in lines if ": " not in line and not line.startswith("="))


def _packets(blob: bytes):
    """(tag, body) of each packet (RFC 9580: 4.2)."""
    at = 0
    try:
        while at < len(blob):
            head, at = blob[at], at + 1
            if head & 0x40:
                tag, first = head & 0x3F, blob[at]
                at += 1
                if first < 192:
                    size = first
                elif first < 224:
                    size, at = ((first - 192) << 8) + blob[at] + 192, at + 1
                elif first == 255:
                    size, at = int.from_bytes(blob[at : at + 4], "big"), at + 4
                else:
                    raise ValueError
            else:
                tag, octets = (head >> 2) & 0x0F, (1, 2, 4)[head & 0x03]
                size, at = int.from_bytes(blob[at : at + octets], "big"), at + octets
            if not head & 0x80 or at + size > len(blob) or (tag == 6 and blob[at] != 4):
                raise ValueError
            yield tag, blob[at : at + size]
            at += size
    except (ValueError, IndexError):
        raise ValueError("is an OpenPGP key that can't be read (only version 4 keys can)") from None
