"""WireGuard's keys, from secrets: the public ones are computed here, so that no host tells another its own."""

from __future__ import annotations

import base64
import binascii

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

KEY_BYTES = 32


def private_key(secret: str) -> str:
    """The private key that a secret stands for, as `wg` writes it.

    Args:
        secret: what `wg genkey` printed, or any other random text, from which a key is derived (HKDF-SHA256).
    """
    return base64.b64encode(_bytes(secret)).decode()


def public_key(secret: str) -> str:
    """The public half of it, as `wg pubkey` would print it."""
    key = X25519PrivateKey.from_private_bytes(_bytes(secret)).public_key()
    return base64.b64encode(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()


def _bytes(secret: str) -> bytes:
    try:
        raw = base64.b64decode(secret.strip(), validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) == KEY_BYTES:
        return raw
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=b"groundwork wireguard").derive(secret.encode())
