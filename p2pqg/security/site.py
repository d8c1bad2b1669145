"""A site's side: the agent's key, which is made here and never leaves, and what comes back from the operator.

agent.key         the agent's private key, mode 0600
agent.csr         the request for a certificate: goes to the operator
agent.pem, authority.pem, revoked.pem, network.toml     come back in a package
agent.key.next    a second key, until a certificate for it is installed
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from p2pqg.errors import ConfigError
from p2pqg.security import certificates
from p2pqg.security.authority import AUTHORITY, CERTIFICATE, NETWORK, REVOKED, unpack
from p2pqg.security.certificates import AGENT_NAME, fingerprint
from p2pqg.security.files import read, write_secret
from p2pqg.security.identity import TlsFiles
from p2pqg.storage import unwritable, write_atomically

KEY, NEXT_KEY, REQUEST = "agent.key", "agent.key.next", "agent.csr"


def make_identity(folder: Path, name: str, *, new_key: bool = False) -> str:
    """Make a key and a certificate request in `folder`; returns the key's fingerprint.

    With `new_key` there is a key already and a second one is made beside it. Raises `ConfigError` for a name
    no agent can have and for a key that is (or is not) there.
    """
    if not re.match(AGENT_NAME, name):
        raise ConfigError(
            f"expected up to 63 letters, digits, dots, dashes and underscores, found {name!r}", key="name"
        )
    if (folder / KEY).exists() != new_key:
        there = "a home with a key, found none" if new_key else "a home without a key, found one"
        raise ConfigError(f"expected {there}", where=str(folder / KEY))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / NEXT_KEY).unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    key = certificates.new_key()
    write_secret(folder / (NEXT_KEY if new_key else KEY), certificates.private_pem(key))
    request = certificates.request(key, name)
    write_atomically(folder / REQUEST, certificates.pem(request))
    return fingerprint(request)


@dataclass(frozen=True)
class Package:
    """A package that fits the home in `folder`: a certificate for one of its keys. `authority` is the
    fingerprint to compare with the operator, `known` says that it is the authority of before."""

    folder: Path
    files: dict[str, bytes]
    key: Path
    authority: str
    known: bool
    certificate: x509.Certificate

    @classmethod
    def open(cls, folder: Path, path: Path, name: str) -> Package:
        """Check a package for the agent `name`. Raises `ConfigError` if it is not for this home."""
        files = unpack(path)
        try:
            certificate = x509.load_pem_x509_certificate(files[CERTIFICATE])
            authority = x509.load_pem_x509_certificate(files[AUTHORITY])
        except ValueError as error:
            raise ConfigError(f"expected certificates: {error}", where=str(path)) from None
        keys = [folder / file for file in (KEY, NEXT_KEY) if (folder / file).exists()]
        for key in keys:
            _, private = read(key, "private_key", certificates.load_key)
            if private.public_key() == certificate.public_key():
                break
        else:
            raise ConfigError(
                f"expected a certificate for this home's key ({folder / KEY}), "
                f"found one for {fingerprint(certificate)}",
                where=str(path),
            )
        if (found := certificates.dns_names(certificate)) != [name]:
            raise ConfigError(f"expected a certificate for {name}, found {found}", where=str(path))
        known = False
        if (folder / AUTHORITY).exists():
            _, present = read(folder / AUTHORITY, "authority", x509.load_pem_x509_certificate)
            known = fingerprint(present) == fingerprint(authority)
            if not known:
                raise ConfigError(
                    f"expected the authority this agent has, {fingerprint(present)}, found "
                    f"{fingerprint(authority)}; to change the network, remove {folder / AUTHORITY}",
                    where=str(path),
                )
        return cls(folder, files, key, fingerprint(authority), known, certificate)

    def install(self) -> None:
        """Put the files in their places, each as one step; then check them as the agent will."""
        for name in (AUTHORITY, REVOKED, NETWORK):
            write_atomically(self.folder / name, self.files[name])
        try:
            os.replace(self.key, self.folder / KEY)
        except OSError as error:
            raise unwritable(self.folder / KEY, error) from error
        write_atomically(self.folder / CERTIFICATE, self.files[CERTIFICATE])
        tls_files(self.folder).read()


def tls_files(folder: Path) -> TlsFiles:
    """The files of a home made here."""
    return TlsFiles(folder / CERTIFICATE, folder / KEY, folder / AUTHORITY, folder / REVOKED)
