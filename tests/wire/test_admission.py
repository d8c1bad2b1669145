"""Who gets in over mutual TLS: not the revoked, not those off the allow-list, at either end; and a renewed
certificate is used without a restart."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from p2pqg.errors import ConfigError, RemoteProtocolError, TransportError
from p2pqg.security import TlsFiles, certificates, fingerprint, issue
from p2pqg.security.admission import prove, require_proof
from p2pqg.security.authority import Authority
from p2pqg.security.files import write_secret
from p2pqg.transport.base import Connection
from p2pqg.transport.grpc import GrpcTransport

A, B = "agent-000", "agent-001"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, TlsFiles]:
    return issue(tmp_path / "network", [A, B])


@pytest.fixture
def authority(files: dict[str, TlsFiles], tmp_path: Path) -> Authority:
    return Authority.open(tmp_path / "network")


class Pair:
    """B dials A, again and again, while the files change."""

    def __init__(self, a: TlsFiles, b: TlsFiles) -> None:
        self.refused: list[str] = []
        self.a = GrpcTransport(identity=a.read(), refused=self.refused.append)
        self.b = GrpcTransport(identity=b.read(), refused=self.refused.append)
        self.address = ""
        self.ended: list[str] = []
        """Why connections ended for A."""

    async def dial(self) -> str:
        connection = await self.b.dial(A, self.address)
        name = connection.peer_identity
        await connection.close()
        assert name is not None
        return name

    def run(self, scenario: Coroutine[Any, Any, None]) -> None:
        async def serve(connection: Connection) -> None:
            try:
                await connection.receive()
            except TransportError as error:
                self.ended.append(str(error))

        async def whole() -> None:
            self.address = await self.a.listen(serve)
            try:
                await scenario
            finally:
                await self.b.close()
                await self.a.close()

        asyncio.run(whole())


def test_a_revoked_dialler_is_refused_from_the_moment_the_list_is_there(
    files: dict[str, TlsFiles], authority: Authority
) -> None:
    pair = Pair(files[A], dataclasses.replace(files[B], revoked=None))

    async def scenario() -> None:
        assert await pair.dial() == A
        authority.revoke(B)
        with pytest.raises(TransportError, match=f"{B}'s certificate is revoked"):
            await pair.dial()
        assert pair.refused == [f"{B}'s certificate is revoked"]

    pair.run(scenario())


def test_a_revoked_acceptor_is_refused_by_who_dials(files: dict[str, TlsFiles], authority: Authority) -> None:
    """The holder of a stolen key does not look at the list, of course."""
    pair = Pair(dataclasses.replace(files[A], revoked=None), files[B])

    async def scenario() -> None:
        assert await pair.dial() == A
        authority.revoke(A)
        with pytest.raises(TransportError, match=f"{A}'s certificate is revoked"):
            await pair.dial()

    pair.run(scenario())


@pytest.mark.parametrize("end", ["accepting", "dialling"])
def test_a_revocation_ends_the_connection_that_stands(
    files: dict[str, TlsFiles], authority: Authority, end: str
) -> None:
    """At the honest end, whoever dialled; and an expiry alone does not."""
    own, revoked = (A, B) if end == "accepting" else (B, A)
    pair = Pair(*(files[n] if n == own else dataclasses.replace(files[n], revoked=None) for n in (A, B)))
    reasons: list[str] = []

    async def scenario() -> None:
        connection = await pair.b.dial(A, pair.address)
        transport = pair.a if own == A else pair.b
        await transport.enforce()
        receiving = asyncio.create_task(connection.receive())
        await asyncio.sleep(0.1)
        assert not receiving.done(), "it stands"
        authority.revoke(revoked)
        await transport.enforce()
        with pytest.raises(TransportError) as caught:
            await asyncio.wait_for(receiving, 5)
        reasons.append(str(caught.value) if end == "dialling" else pair.ended[0])
        await connection.close()

    pair.run(scenario())
    assert reasons == [f"{revoked}'s certificate is revoked"]


@pytest.mark.parametrize("end", ["accepting", "dialling"])
def test_the_allow_list_holds_at_both_ends(files: dict[str, TlsFiles], end: str) -> None:
    own, other = (A, B) if end == "accepting" else (B, A)
    key = fingerprint(files[other].read().x509)
    for allow, let_in in (((other,), True), ((key,), True), ((own, "zoe", key[::-1]), False)):
        pair = Pair(*(dataclasses.replace(files[n], allow=allow) if n == own else files[n] for n in (A, B)))

        async def scenario(pair: Pair = pair, let_in: bool = let_in) -> None:
            if let_in:
                assert await pair.dial() == A
            else:
                with pytest.raises(TransportError, match=f"{other} is not on the allow-list"):
                    await pair.dial()

        pair.run(scenario())


def test_a_renewed_certificate_is_used_without_a_restart(
    files: dict[str, TlsFiles], authority: Authority
) -> None:
    pair = Pair(files[A], files[B])
    serials = []

    async def scenario() -> None:
        for _ in range(2):
            assert await pair.dial() == A
            for transport in (pair.a, pair.b):
                identity = transport._identity
                assert identity is not None
                serials.append(identity.x509.serial_number)
            for name in (A, B):
                authority.renew(name)

    pair.run(scenario())
    assert len(set(serials)) == 4


def test_a_certificate_that_expires_during_a_run_ends_new_connections_until_it_is_renewed(
    tmp_path: Path,
) -> None:
    files = issue(tmp_path, [A])[A]
    authority = Authority.open(tmp_path)
    key = certificates.new_key()
    authority.sign(certificates.request(key, B), days=1.5 / 86400)
    files_b = TlsFiles(
        tmp_path / "certificates" / f"{B}.pem",
        write_secret(tmp_path / f"{B}.key", certificates.private_pem(key)),
        tmp_path / "authority.pem",
        tmp_path / "revoked.pem",
    )
    pair = Pair(files, files_b)

    async def scenario() -> None:
        assert await pair.dial() == A
        await asyncio.sleep(1.6)
        with pytest.raises(TransportError):
            await pair.dial()
        identity = pair.b._identity
        assert identity is not None
        assert "expired" in (identity.problem() or "")
        authority.renew(B)
        assert await pair.dial() == A

    pair.run(scenario())


def test_a_proof_is_for_one_dialler_one_challenge_and_one_key(files: dict[str, TlsFiles]) -> None:
    a, b = files[A].read(), files[B].read()
    proof = prove(a.key, b"challenge", b.x509)
    require_proof(proof, a.x509, b"challenge", b.x509)
    for acceptor, challenge, dialler in (
        (b.x509, b"challenge", b.x509),
        (a.x509, b"another", b.x509),
        (a.x509, b"challenge", a.x509),
    ):
        with pytest.raises(RemoteProtocolError, match="does not hold the key"):
            require_proof(proof, acceptor, challenge, dialler)


def test_only_the_authoritys_own_and_newest_list_counts(
    files: dict[str, TlsFiles], authority: Authority, tmp_path: Path
) -> None:
    issue(tmp_path / "other", [A])
    revoked = tmp_path / "network" / "revoked.pem"
    old = revoked.read_bytes()
    authority.revoke(B)
    admission = files[A].read().admission
    certificate = files[B].load().x509
    for forged in (old, (tmp_path / "other" / "revoked.pem").read_bytes(), b"nonsense", None):
        revoked.unlink() if forged is None else revoked.write_bytes(forged)
        with pytest.raises(RemoteProtocolError, match="is revoked"):
            admission.check(certificate)
        assert str(revoked) in (admission.problem() or "")
    with pytest.raises(ConfigError, match=r"revoked\.pem: revoked: cannot be read"):
        files[A].read()
