"""An agent's own certificate: of the network's authority, with one dNSName, the agent's name.

Both ends of a connection prove their names (mutual TLS). The files are read and checked at the start, where
a mistake can still be explained to the person who made it, and again whenever they change, so that a renewed
certificate is used from the next connection on.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from p2pqg.errors import ConfigError
from p2pqg.security.admission import Admission
from p2pqg.security.certificates import (
    PrivateKey,
    days_left,
    dns_names,
    fingerprint,
    load_key,
    outside_its_dates,
)
from p2pqg.security.files import Stamp, read, stamp

RENEW_DAYS = 30
"""A certificate with fewer days left is worth a warning."""


@dataclass(frozen=True)
class Identity:
    """An agent's name and the PEM files that prove it, checked; and what it asks of others."""

    name: str
    certificate: bytes = field(repr=False)
    private_key: bytes = field(repr=False)
    authority: bytes = field(repr=False)
    revoked: Path | None = field(default=None, repr=False)
    allow: tuple[str, ...] | None = field(default=None, repr=False)
    files: TlsFiles | None = field(default=None, repr=False, compare=False)
    stamps: tuple[Stamp | None, ...] = field(default=(), repr=False, compare=False)

    @cached_property
    def admission(self) -> Admission:
        """Whom this agent lets in. Raises `ConfigError` for a revocation list that is not the authority's."""
        return Admission(x509.load_pem_x509_certificate(self.authority), self.revoked, self.allow)

    @cached_property
    def x509(self) -> x509.Certificate:
        """The certificate, parsed."""
        return x509.load_pem_x509_certificate(self.certificate)

    @cached_property
    def key(self) -> PrivateKey:
        """The private key, parsed."""
        return load_key(self.private_key)

    @property
    def fingerprint(self) -> str:
        """Of the agent's key."""
        return fingerprint(self.x509)

    @property
    def days_left(self) -> float:
        """Days until the certificate expires."""
        return days_left(self.x509)

    def problem(self) -> str | None:
        """What an operator should do something about: the certificate expired or soon will, or the
        revocation list cannot be used."""
        if why := outside_its_dates(self.x509):
            return f"the certificate is {why}: new connections fail; renew it"
        if self.days_left < RENEW_DAYS:
            return f"the certificate expires in {self.days_left:.1f} days: renew it"
        return self.admission.problem()

    def renewed(self) -> Identity:
        """What the files hold now if they changed and are valid, else this identity."""
        if self.files is None or self.files.stamps() == self.stamps:
            return self
        try:
            new = self.files.read()
        except ConfigError:
            return self
        return new if new.name == self.name else self


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the agent's certificate, its private key, the authority that signs all certificates of the
    network and, if given, the certificates it took back; and the names or key fingerprints to let in."""

    certificate: Path
    private_key: Path
    authority: Path
    revoked: Path | None = None
    allow: tuple[str, ...] | None = None

    def stamps(self) -> tuple[Stamp | None, ...]:
        """What changes when a file is replaced."""
        return tuple(stamp(path) for path in (self.certificate, self.private_key, self.authority))

    def read(self) -> Identity:
        """Read and check all files.

        Raises `ConfigError` for a file that is missing or no PEM, a key that is not the certificate's, a
        certificate that the authority did not sign, that is not valid today or that does not have exactly
        one dNSName, a revocation list that the authority did not sign.
        """
        stamps = self.stamps()
        identity = self.load()
        certificate, where = identity.x509, str(self.certificate)
        if outside_its_dates(certificate):
            raise ConfigError(
                "expected a certificate that is valid today, found one valid from "
                f"{certificate.not_valid_before_utc:%Y-%m-%d} to {certificate.not_valid_after_utc:%Y-%m-%d}; "
                "is the clock right? If so, ask the network's operator to renew it",
                where=where,
                key="certificate",
            )
        identity.admission.refresh()
        return dataclasses.replace(identity, stamps=stamps)

    def load(self) -> Identity:
        """`read`, without asking whether the certificate is valid today."""
        certificate_pem, certificate = read(self.certificate, "certificate", x509.load_pem_x509_certificate)
        key_pem, key = read(self.private_key, "private_key", load_key)
        authority_pem, authority = read(self.authority, "authority", x509.load_pem_x509_certificate)
        where = str(self.certificate)
        if key.public_key() != certificate.public_key():
            raise ConfigError(
                f"expected the key of {where}, found another", where=str(self.private_key), key="private_key"
            )
        try:
            certificate.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise ConfigError(
                f"expected a certificate signed by {self.authority}, "
                f"found one of {certificate.issuer.rfc4514_string()}",
                where=where,
                key="certificate",
            ) from error
        names = dns_names(certificate)
        if len(names) != 1:
            raise ConfigError(
                f"expected exactly one dNSName, the agent's name, found {', '.join(names) or 'none'}",
                where=where,
                key="certificate",
            )
        return Identity(
            names[0], certificate_pem, key_pem, authority_pem, self.revoked, self.allow, files=self
        )
