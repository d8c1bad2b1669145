"""The operator's side: a folder that holds a network's authority and what it has signed.

    authority.key     the authority's private key: whoever holds it can let anyone in; it never leaves here
    authority.pem     the authority's certificate
    network.toml      what the whole network agrees on, and its agents
    issued.jsonl      every certificate ever signed
    certificates/     the current certificate of each agent
    revoked.pem       the signed list of certificates taken back
    packages/         what the sites are sent: never a key

A site's key is made at the site and stays there; the operator sees a request and gives a certificate back.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from p2pqg.errors import ConfigError, StorageError
from p2pqg.security import certificates
from p2pqg.security.certificates import (
    AGENT_NAME,
    CLOCK_SKEW,
    PrivateKey,
    dns_names,
    fingerprint,
    outside_its_dates,
)
from p2pqg.security.files import MAX_BYTES, read, write_secret
from p2pqg.security.identity import TlsFiles
from p2pqg.storage import unwritable, write_atomically

AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 365

CERTIFICATE, AUTHORITY, REVOKED, NETWORK = "agent.pem", "authority.pem", "revoked.pem", "network.toml"
"""The files of a package, under the names they have in an agent's home."""


@dataclass(frozen=True)
class Authority:
    """A network's authority, opened from its folder."""

    folder: Path
    certificate: x509.Certificate
    key: PrivateKey

    @classmethod
    def create(cls, folder: Path, network: str, *, days: float = AUTHORITY_DAYS) -> Authority:
        """Make a new authority with an empty revocation list. Raises `ConfigError` if there is one."""
        if (folder / "authority.key").exists():
            raise ConfigError("expected a folder without an authority, found one", where=str(folder))
        try:
            (folder / "certificates").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(folder, error) from error
        key = certificates.new_key()
        made = cls(folder, certificates.authority(key, network, days), key)
        write_secret(folder / "authority.key", certificates.private_pem(key))
        write_atomically(folder / AUTHORITY, certificates.pem(made.certificate))
        made._write_revoked(set(), 0)
        return made

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """Open an existing one. Raises `ConfigError` if the folder holds none."""
        _, certificate = read(folder / AUTHORITY, "authority", x509.load_pem_x509_certificate)
        _, key = read(folder / "authority.key", "key", certificates.load_key)
        if key.public_key() != certificate.public_key():
            raise ConfigError("expected the authority's key, found another", where=f"{folder}/authority.key")
        return cls(folder, certificate, key)

    # ---- certificates

    def read_request(self, path: Path) -> x509.CertificateSigningRequest:
        """A request that proves its key and names one agent. Raises `ConfigError`."""
        _, request = read(path, "request", x509.load_pem_x509_csr)
        names, where = dns_names(request), str(path)
        if not request.is_signature_valid or not isinstance(request.public_key(), ec.EllipticCurvePublicKey):
            raise ConfigError("expected a request signed with its own elliptic-curve key", where=where)
        if len(names) != 1 or not re.match(AGENT_NAME, names[0]):
            raise ConfigError(
                f"expected exactly one dNSName, an agent's name, found {', '.join(names) or 'none'}",
                where=where,
            )
        return request

    def sign(
        self,
        request: x509.CertificateSigningRequest,
        *,
        days: float = CERTIFICATE_DAYS,
        replace: bool = False,
    ) -> x509.Certificate:
        """The certificate that `request` asks for.

        A name belongs to one key: with `replace` the certificates of the former key are revoked, without it
        a request by another key is a `ConfigError`.
        """
        (name,) = dns_names(request)
        present = self.certificate_of(name)
        if present is not None and fingerprint(present) != fingerprint(request):
            if not replace and not self._is_revoked(present):
                raise ConfigError(
                    f"expected the key that {name} has a certificate for, {fingerprint(present)}, "
                    f"found {fingerprint(request)}; replacing it revokes the former certificates",
                    key=name,
                )
            self.revoke(name)
        return self._issue(name, cast(ec.EllipticCurvePublicKey, request.public_key()), days)

    def renew(self, name: str, *, days: float = CERTIFICATE_DAYS) -> x509.Certificate:
        """A new certificate for the key that `name` has, with new dates."""
        present = self._expect(name)
        if self._is_revoked(present):
            raise ConfigError(
                "expected a certificate that is not revoked; sign a request with a new key", key=name
            )
        return self._issue(name, cast(ec.EllipticCurvePublicKey, present.public_key()), days)

    def revoke(self, name: str) -> int:
        """Take back every certificate of `name`; returns the number of the new revocation list."""
        self._expect(name)
        serials = {int(line["serial"], 16) for line in self.issued() if line["agent"] == name}
        revoked, number = self._revoked()
        self._write_revoked(revoked | serials, number + 1)
        return number + 1

    def certificate_of(self, name: str) -> x509.Certificate | None:
        """The current certificate of `name`; None if it never had one."""
        path = self._path(name)
        if not path.exists():
            return None
        return read(path, "certificate", x509.load_pem_x509_certificate)[1]

    def issued(self) -> list[dict[str, Any]]:
        """One record for each certificate ever signed, in order."""
        path = self.folder / "issued.jsonl"
        try:
            return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        except (OSError, ValueError) as error:
            raise StorageError(f"{path}: expected one JSON object a line: {error}") from error

    def agents(self) -> Iterator[dict[str, Any]]:
        """Name, key fingerprint, state and last day of each agent that has a certificate."""
        for path in sorted((self.folder / "certificates").glob("*.pem")):
            _, certificate = read(path, "certificate", x509.load_pem_x509_certificate)
            state = "revoked" if self._is_revoked(certificate) else outside_its_dates(certificate) or "valid"
            yield {
                "agent": path.stem,
                "key": fingerprint(certificate),
                "state": state,
                "until": f"{certificate.not_valid_after_utc:%Y-%m-%d}",
            }

    # ---- packages

    def package(self, name: str) -> Path:
        """Write what the site of `name` needs into one file, never a key; returns its path."""
        if self._is_revoked(self._expect(name)):
            raise ConfigError("expected a certificate that is not revoked", key=name)
        contents = {
            CERTIFICATE: self._path(name),
            AUTHORITY: self.folder / AUTHORITY,
            REVOKED: self.folder / REVOKED,
            NETWORK: self.folder / NETWORK,
        }
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for inside, path in contents.items():
                archive.writestr(inside, read(path, "package", bytes)[0])
        path = self.folder / "packages" / f"{name}.zip"
        try:
            path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise unwritable(path, error) from error
        write_atomically(path, buffer.getvalue())
        return path

    def _issue(self, name: str, key: ec.EllipticCurvePublicKey, days: float) -> x509.Certificate:
        certificate = certificates.sign(name, key, self.certificate, self.key, days)
        record = {
            "agent": name,
            "serial": f"{certificate.serial_number:x}",
            "key": fingerprint(certificate),
            "signed": f"{certificate.not_valid_before_utc + CLOCK_SKEW:%Y-%m-%dT%H:%M:%SZ}",
            "until": f"{certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}",
        }
        # The record first: a certificate that is not on record could never be revoked.
        lines = "".join(json.dumps(line) + "\n" for line in [*self.issued(), record])
        write_atomically(self.folder / "issued.jsonl", lines.encode())
        write_atomically(self._path(name), certificates.pem(certificate))
        return certificate

    def _expect(self, name: str) -> x509.Certificate:
        if (certificate := self.certificate_of(name)) is None:
            known = ", ".join(record["agent"] for record in self.agents()) or "no agent yet"
            raise ConfigError(f"expected one of {known}, found {name!r}", where=str(self.folder))
        return certificate

    def _path(self, name: str) -> Path:
        if not re.match(AGENT_NAME, name):
            raise ConfigError(f"expected an agent's name, found {name!r}")
        return self.folder / "certificates" / f"{name}.pem"

    def _is_revoked(self, certificate: x509.Certificate) -> bool:
        return certificate.serial_number in self._revoked()[0]

    def _revoked(self) -> tuple[set[int], int]:
        _, crl = read(self.folder / REVOKED, "revoked", x509.load_pem_x509_crl)
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        return {entry.serial_number for entry in crl}, number

    def _write_revoked(self, serials: set[int], number: int) -> None:
        crl = certificates.revocation_list(serials, number, self.certificate, self.key)
        write_atomically(self.folder / REVOKED, certificates.pem(crl))


def unpack(package: Path) -> dict[str, bytes]:
    """The files of a package, by name. Raises `ConfigError` for anything else than what `package` wrote."""
    expected = {CERTIFICATE, AUTHORITY, REVOKED, NETWORK}
    try:
        with zipfile.ZipFile(package) as archive:
            names = {member.filename for member in archive.infolist()}
            if names != expected or any(member.file_size > MAX_BYTES for member in archive.infolist()):
                raise ConfigError(
                    f"expected {', '.join(sorted(expected))}, found {', '.join(sorted(names))}",
                    where=str(package),
                )
            return {name: archive.read(name) for name in expected}
    except (OSError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"expected a package of `p2pqg network package`: {error}", where=str(package)
        ) from None


def issue(folder: Path, agents: Sequence[str], *, days: float = CERTIFICATE_DAYS) -> dict[str, TlsFiles]:
    """An authority in `folder`, and a key and certificate for each agent: to try things out on one machine.
    The files of each agent, by name."""
    authority = Authority.create(folder, "trial")
    files = {}
    for agent in agents:
        key = certificates.new_key()
        authority.sign(certificates.request(key, agent), days=days)
        files[agent] = TlsFiles(
            certificate=folder / "certificates" / f"{agent}.pem",
            private_key=write_secret(folder / f"{agent}.key", certificates.private_pem(key)),
            authority=folder / AUTHORITY,
            revoked=folder / REVOKED,
        )
    return files
