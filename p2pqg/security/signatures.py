"""What the key of an agent's certificate signs: ECDSA with SHA-256 over parts that cannot run together, of
which the first says what the signature is for."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from p2pqg.security.certificates import PrivateKey

Said = str | int | bytes


def sign(key: PrivateKey, *said: Said) -> bytes:
    """The signature of what is said."""
    return key.sign(_statement(said), ec.ECDSA(hashes.SHA256()))


def verify(signature: bytes, certificate: x509.Certificate, *said: Said) -> None:
    """Raises `InvalidSignature` unless the certificate's key signed just this."""
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise InvalidSignature from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise InvalidSignature
    key.verify(signature, _statement(said), ec.ECDSA(hashes.SHA256()))


def _statement(said: tuple[Said, ...]) -> bytes:
    parts = [part if isinstance(part, bytes) else str(part).encode() for part in said]
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
