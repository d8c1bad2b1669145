"""X.509 with the choices made: P-256 keys, SHA-256, PEM files, and one dNSName, the agent's name.

A fingerprint is the SHA-256 of the *public key* (SubjectPublicKeyInfo), not of a certificate: it is the same
in the request, in the certificate and after a renewal, so that two people need to compare it once.

Certificates have dates, so this module reads the wall clock. Beside it only logs do, for their time stamps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AGENT_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
"""What an agent may be called."""

CLOCK_SKEW = timedelta(days=1)
"""Certificates are valid from so long before they are signed: clocks of devices differ."""

PrivateKey = ec.EllipticCurvePrivateKey


def new_key() -> PrivateKey:
    """A fresh private key."""
    return ec.generate_private_key(ec.SECP256R1())


def load_key(pem: bytes) -> PrivateKey:
    """The inverse of `private_pem`. Raises `ValueError` or `TypeError` for anything else."""
    key = load_pem_private_key(pem, password=None)
    if not isinstance(key, PrivateKey):
        raise ValueError("expected an elliptic-curve key")
    return key


def private_pem(key: PrivateKey) -> bytes:
    """The key as unencrypted PKCS 8; for a file with mode 0600."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def pem(
    document: x509.Certificate | x509.CertificateSigningRequest | x509.CertificateRevocationList,
) -> bytes:
    """The PEM form."""
    return document.public_bytes(Encoding.PEM)


def fingerprint(holder: x509.Certificate | x509.CertificateSigningRequest) -> str:
    """SHA-256 of the holder's public key: 64 hexadecimal digits in 16 groups, to be read out aloud."""
    spki = holder.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    digits = hashlib.sha256(spki).hexdigest()
    return " ".join(digits[i : i + 4] for i in range(0, 64, 4))


def dns_names(holder: x509.Certificate | x509.CertificateSigningRequest) -> list[str]:
    """The dNSNames; an agent's certificate has one, its name."""
    try:
        extension = holder.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return extension.value.get_values_for_type(x509.DNSName)


def request(key: PrivateKey, agent: str) -> x509.CertificateSigningRequest:
    """A request for a certificate of `agent`, signed with its own key."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_common_name(agent))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(agent)]), critical=False)
        .sign(key, hashes.SHA256())
    )


def authority(key: PrivateKey, network: str, days: float) -> x509.Certificate:
    """The self-signed certificate of a network's authority."""
    name = _common_name(f"p2pqg network {network}"[:64])
    return (
        _builder(name, name, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def sign(
    agent: str,
    public_key: ec.EllipticCurvePublicKey,
    issuer: x509.Certificate,
    issuer_key: PrivateKey,
    days: float,
) -> x509.Certificate:
    """A certificate for `agent` and its key, never valid longer than the authority's own."""
    return (
        _builder(_common_name(agent), issuer.subject, public_key, days, issuer.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(agent)]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
        .sign(issuer_key, hashes.SHA256())
    )


def revocation_list(
    serials: Iterable[int], number: int, issuer: x509.Certificate, issuer_key: PrivateKey
) -> x509.CertificateRevocationList:
    """The authority's list of certificates that it takes back; `number` grows from list to list."""
    now = datetime.now(UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(now - CLOCK_SKEW)
        .next_update(issuer.not_valid_after_utc)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
    )
    for serial in sorted(serials):
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now - CLOCK_SKEW)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(issuer_key, hashes.SHA256())


def days_left(certificate: x509.Certificate) -> float:
    """Days until the certificate expires; negative once it has."""
    return (certificate.not_valid_after_utc - datetime.now(UTC)) / timedelta(days=1)


def outside_its_dates(certificate: x509.Certificate) -> str | None:
    """Why the certificate is not valid at this moment, or None."""
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        return f"expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    if now < certificate.not_valid_before_utc:
        return f"not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
    return None


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    days: float,
    latest: datetime | None = None,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    end = now + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(end if latest is None else min(end, latest))
    )


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
