"""Whom an agent lets in, beyond what TLS proves (a certificate of the network's authority, valid today).

Revocation is a *signed list* (X.509 CRL) and not an allow-list of certificates: it is short, it is safe to
send by any way because the authority signed it, and a renewed certificate needs no change at the other
sites. An allow-list of names or keys is the site's own choice on top. The list is read again when its file
changes, so a revocation needs no restart; it also ends the connections that stand. An expiry does not: who
forgot to renew trains on with whom it is connected to, and whose key was stolen must be gone.

TLS in gRPC for Python shows the accepting end the dialler's certificate, but not the reverse. So the
acceptor proves its certificate once more, inside the stream: it signs the dialler's random challenge
together with the dialler's key, and a holder of a revoked key can neither make that signature nor have
another agent make it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from p2pqg.errors import ConfigError, RemoteProtocolError
from p2pqg.security.certificates import PrivateKey, dns_names, fingerprint, outside_its_dates
from p2pqg.security.files import Stamp, read, stamp
from p2pqg.security.signatures import sign, verify

CHALLENGE_BYTES = 32
_CONTEXT = "p2pqg v1: the accepting agent proves its certificate"


@dataclass
class Admission:
    """Certificates of `authority` that are not in the list at `revoked` and, if `allow` is given, whose name
    or key fingerprint is in it."""

    authority: x509.Certificate
    revoked: Path | None = None
    allow: tuple[str, ...] | None = None
    _stamp: Stamp | None = field(default=(0, 0, 0), repr=False)
    _serials: frozenset[int] = field(default=frozenset(), repr=False)
    _issued: set[bytes] = field(default_factory=set, repr=False)
    """Digests of certificates that the authority was seen to have signed."""
    number: int | None = None
    """Of the revocation list in force; None without one."""

    def __post_init__(self) -> None:
        self.refresh()

    def refresh(self) -> None:
        """Read the revocation list again if its file changed.

        Raises `ConfigError` if it is no list of the authority, or older than the one in force; that one
        then stays in force.
        """
        if self.revoked is None or (now := stamp(self.revoked)) == self._stamp:
            return
        _, crl = read(self.revoked, "revoked", x509.load_pem_x509_crl)
        where = str(self.revoked)
        if not crl.is_signature_valid(cast(ec.EllipticCurvePublicKey, self.authority.public_key())):
            raise ConfigError(
                "expected a revocation list signed by the network's authority, found another's",
                where=where, key="revoked",
            )  # fmt: skip
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        if self.number is not None and number < self.number:
            raise ConfigError(
                f"expected revocation list number {self.number} or newer, found {number}",
                where=where, key="revoked",
            )  # fmt: skip
        self._serials, self.number, self._stamp = frozenset(r.serial_number for r in crl), number, now

    def check(self, certificate: x509.Certificate) -> str:
        """The name of the agent that holds the certificate. Raises `RemoteProtocolError` with the reason if
        it is not let in."""
        name = self.vouch(certificate)
        if why := outside_its_dates(certificate):
            raise RemoteProtocolError(f"{name}'s certificate is {why}")
        return name

    def vouch(self, certificate: x509.Certificate) -> str:
        """`check`, without asking for the dates: whether one that was let in may stay."""
        with contextlib.suppress(ConfigError):  # the list in force stays; `problem` says what is wrong
            self.refresh()
        names = dns_names(certificate)
        if len(names) != 1:
            raise RemoteProtocolError(f"expected a certificate with one dNSName, found {len(names)}")
        (name,) = names
        if (issued := certificate.fingerprint(hashes.SHA256())) not in self._issued:
            try:
                certificate.verify_directly_issued_by(self.authority)
            except (ValueError, TypeError, InvalidSignature):
                raise RemoteProtocolError(f"{name}'s certificate is not of this network") from None
            self._issued.add(issued)
        if certificate.serial_number in self._serials:
            raise RemoteProtocolError(f"{name}'s certificate is revoked")
        if self.allow is not None and not self._allowed(name, fingerprint(certificate)):
            raise RemoteProtocolError(f"{name} is not on the allow-list")
        return name

    def problem(self) -> str | None:
        """What is wrong with the revocation list on disk, or None."""
        try:
            self.refresh()
        except ConfigError as error:
            return str(error)
        return None

    def _allowed(self, name: str, key: str) -> bool:
        digits = key.replace(" ", "")
        return any(entry == name or entry.replace(" ", "").lower() == digits for entry in self.allow or ())


def prove(key: PrivateKey, challenge: bytes, dialler: x509.Certificate) -> bytes:
    """The acceptor's signature over the challenge and the dialler's certificate."""
    return sign(key, _CONTEXT, challenge, dialler.public_bytes(Encoding.DER))


def require_proof(
    proof: bytes, acceptor: x509.Certificate, challenge: bytes, dialler: x509.Certificate
) -> None:
    """Raises `RemoteProtocolError` unless `proof` was made with the acceptor's key for this dialling."""
    try:
        verify(proof, acceptor, _CONTEXT, challenge, dialler.public_bytes(Encoding.DER))
    except InvalidSignature:
        raise RemoteProtocolError("the peer does not hold the key of the certificate it shows") from None
