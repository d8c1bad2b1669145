"""Certificates: what is issued is accepted, and every mistake is explained with its file."""

from __future__ import annotations

import dataclasses
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from p2pqg.errors import ConfigError
from p2pqg.security import TlsFiles, issue

A, B = "agent-000", "agent-001"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, TlsFiles]:
    return issue(tmp_path / "network", [A, B])


def test_issued_certificates_are_accepted_and_carry_the_name(files: dict[str, TlsFiles]) -> None:
    assert {name: file.read().name for name, file in files.items()} == {A: A, B: B}


def test_keys_are_private_and_never_shown(files: dict[str, TlsFiles], tmp_path: Path) -> None:
    for key in (files[A].private_key, tmp_path / "network" / "authority.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert "PRIVATE" not in repr(files[A].read())


def refused(files: TlsFiles, where: Path, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        files.read()
    assert caught.value.where == str(where)


@pytest.mark.parametrize("key", ["certificate", "private_key", "authority"])
def test_missing_and_broken_files(files: dict[str, TlsFiles], tmp_path: Path, key: str) -> None:
    missing = tmp_path / "missing.pem"
    refused(dataclasses.replace(files[A], **{key: missing}), missing, "No such file")
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN NONSENSE-----")
    refused(dataclasses.replace(files[A], **{key: broken}), broken, "PEM")
    refused(dataclasses.replace(files[A], **{key: tmp_path}), tmp_path, "directory")


def test_somebody_elses_key(files: dict[str, TlsFiles]) -> None:
    key = files[B].private_key
    refused(dataclasses.replace(files[A], private_key=key), key, "expected the key of")


def test_another_authority(files: dict[str, TlsFiles], tmp_path: Path) -> None:
    other = issue(tmp_path / "other", [A])[A]
    mixed = dataclasses.replace(files[A], authority=other.authority)
    refused(mixed, mixed.certificate, "expected a certificate signed by")


def test_an_expired_certificate(tmp_path: Path) -> None:
    files = issue(tmp_path, [A], days=-0.5)[A]
    refused(files, files.certificate, "valid today")


@pytest.mark.parametrize("names", [[], [A, B]])
def test_a_certificate_without_exactly_one_name(
    files: dict[str, TlsFiles], tmp_path: Path, names: list[str]
) -> None:
    network = tmp_path / "network"
    authority = x509.load_pem_x509_certificate((network / "authority.pem").read_bytes())
    authority_key = load_pem_private_key((network / "authority.key").read_bytes(), password=None)
    own = x509.load_pem_x509_certificate(files[A].certificate.read_bytes())
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(own.subject)
        .issuer_name(authority.subject)
        .public_key(own.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
    )
    if names:
        alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        builder = builder.add_extension(alternatives, critical=False)
    certificate = tmp_path / "names.pem"
    certificate.write_bytes(builder.sign(authority_key, hashes.SHA256()).public_bytes(Encoding.PEM))  # type: ignore[arg-type]
    found = ", ".join(names) or "none"
    refused(dataclasses.replace(files[A], certificate=certificate), certificate, f"found {found}")
