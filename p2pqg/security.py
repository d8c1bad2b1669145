"""Who an agent is: a certificate of the network's own authority, whose one dNSName is the agent's name.

Both ends of a connection prove their names (mutual TLS). The files are read and checked once, at the start,
where a mistake can still be explained to the person who made it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from p2pqg.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Identity:
    """An agent's name and the PEM files that prove it, checked."""

    name: str
    certificate: bytes = field(repr=False)
    private_key: bytes = field(repr=False)
    authority: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the agent's certificate, its private key, the authority that signs all certificates of the
    network."""

    certificate: Path
    private_key: Path
    authority: Path

    def read(self) -> Identity:
        """Read and check all three.

        Raises `ConfigError` for a file that is missing or no PEM, a key that is not the certificate's, a
        certificate that the authority did not sign, that is not valid today or that does not have exactly
        one dNSName.
        """
        certificate_pem, certificate = _read(self.certificate, "certificate", x509.load_pem_x509_certificate)
        key_pem, key = _read(
            self.private_key, "private_key", lambda pem: load_pem_private_key(pem, password=None)
        )
        authority_pem, authority = _read(self.authority, "authority", x509.load_pem_x509_certificate)
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
        if not certificate.not_valid_before_utc <= datetime.now(UTC) <= certificate.not_valid_after_utc:
            raise ConfigError(
                "expected a certificate that is valid today, found one valid from "
                f"{certificate.not_valid_before_utc:%Y-%m-%d} to {certificate.not_valid_after_utc:%Y-%m-%d}",
                where=where,
                key="certificate",
            )
        names = _dns_names(certificate)
        if len(names) != 1:
            raise ConfigError(
                f"expected exactly one dNSName, the agent's name, found {', '.join(names) or 'none'}",
                where=where,
                key="certificate",
            )
        return Identity(names[0], certificate_pem, key_pem, authority_pem)


def issue(folder: Path, agents: Sequence[str], *, days: float = 365) -> dict[str, TlsFiles]:
    """Create an authority and a certificate for each agent in `folder`; the files of each agent by name.

    The authority's key is written to ``authority.key``: whoever holds it can join the network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "p2pqg authority")])
    authority = (
        _builder(authority_name, authority_name, authority_key, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    authority_file = _write(folder / "authority.pem", authority.public_bytes(Encoding.PEM))
    _write(folder / "authority.key", _private_bytes(authority_key))
    files = {}
    for agent in agents:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, agent)])
        certificate = (
            _builder(name, authority_name, key, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(agent)]), critical=False)
            .sign(authority_key, hashes.SHA256())
        )
        files[agent] = TlsFiles(
            certificate=_write(folder / f"{agent}.pem", certificate.public_bytes(Encoding.PEM)),
            private_key=_write(folder / f"{agent}.key", _private_bytes(key)),
            authority=authority_file,
        )
    return files


def _read(path: Path, key: str, load: Callable[[bytes], T]) -> tuple[bytes, T]:
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(path), key=key) from error
    try:
        return pem, load(pem)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"expected an unencrypted PEM file: {error}", where=str(path), key=key) from error


def _dns_names(certificate: x509.Certificate) -> list[str]:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return extension.value.get_values_for_type(x509.DNSName)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: float
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # clocks of devices differ
        .not_valid_after(now + timedelta(days=days))
    )


def _private_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(path: Path, data: bytes) -> Path:
    """Write a new file that only its owner can read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
    return path
