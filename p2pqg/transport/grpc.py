"""gRPC: one bidirectional stream of raw bytes for each connection, mutual TLS if the agent has an identity.

Frames pass gRPC as bytes (identity serializers), so the bulk is copied as seldom as gRPC's core allows, and
core itself refuses a frame that is too large before this program sees it. Dialling succeeds only once the
other end has answered, so a peer that cannot be reached, or cannot prove the name that was dialled, is found
there.
"""

from __future__ import annotations

import asyncio
import errno
import secrets
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

import grpc
from cryptography import x509
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from p2pqg.errors import ConfigError, LocalProtocolError, RemoteProtocolError, TransportError
from p2pqg.gossip.allowance import Allowance
from p2pqg.gossip.membership import Seal, Unsealed
from p2pqg.gossip.messages import Message
from p2pqg.security import Identity
from p2pqg.security.admission import CHALLENGE_BYTES, prove, require_proof
from p2pqg.security.certificates import pem
from p2pqg.security.seal import CertificateSeal
from p2pqg.transport.base import GRACE_S, Accept, finish, serve
from p2pqg.wire.codec import MAX_FRAME_BYTES, decode, encode

T = TypeVar("T")

SERVICE = "p2pqg.v1.Gossip"
METHOD = f"/{SERVICE}/Exchange"

DIAL_TIMEOUT_S = 10.0
MAX_INBOUND = 256
"""Inbound streams served at once."""
MAX_OF_PEER = 8
"""The same for one peer: exchanges (twice, if both ends dial), state, checks, and ends that linger."""
OPENINGS = (32.0, 2.0)
"""Streams that a peer may open at once, and a second in the long run."""
WELCOME = "p2pqg-welcome"
"""In the metadata of whoever accepts: a refusal has metadata, too, and its status may come later."""
CHALLENGE, CERTIFICATE, PROOF = "p2pqg-challenge-bin", "p2pqg-certificate-bin", "p2pqg-proof-bin"
"""Metadata in which the accepting end proves its certificate, see `p2pqg.security.admission`."""

_CHANNEL_OPTIONS = {
    "grpc.max_receive_message_length": MAX_FRAME_BYTES,
    "grpc.max_send_message_length": MAX_FRAME_BYTES,
    "grpc.keepalive_time_ms": 10_000,
    "grpc.keepalive_timeout_ms": 5_000,
    "grpc.http2.max_pings_without_data": 0,
}
CLIENT_OPTIONS = _CHANNEL_OPTIONS | {
    "grpc.enable_retries": 0,  # a retry would need a copy of everything sent
    "grpc.enable_http_proxy": 0,  # peers are dialled where they say they are
    "grpc.use_local_subchannel_pool": 1,  # one TCP connection for each stream
}
SERVER_OPTIONS = _CHANNEL_OPTIONS | {
    "grpc.so_reuseport": 0,  # a taken port is an error, not a silent split of the traffic
    "grpc.http2.min_ping_interval_without_data_ms": 5_000,  # below the other end's keepalive
    "grpc.http2.min_recv_ping_interval_without_data_ms": 5_000,
    "grpc.http2.max_ping_strikes": 0,
    "grpc.max_concurrent_streams": 8,
}


class _Stream(Protocol):
    """What grpc.aio's client call and server context have in common."""

    async def read(self) -> Any: ...
    async def write(self, message: bytes) -> None: ...


class GrpcConnection:
    """One end of a stream.

    grpc.aio breaks the whole stream when a task that reads or writes is cancelled, so both run in tasks of
    their own; a cancelled `receive` leaves its read to the next one.
    """

    def __init__(self, stream: _Stream, peer_identity: str | None) -> None:
        self.bytes_sent = self.bytes_received = 0
        self._stream = stream
        self._peer_identity = peer_identity
        self.certificate: x509.Certificate | None = None
        """What the peer proved its name with."""
        self._sending = asyncio.Lock()
        self._reading: asyncio.Task[Any] | None = None
        self._writing: asyncio.Task[None] | None = None
        self._closed = False
        self._ended: str | None = None

    @property
    def peer_identity(self) -> str | None:
        return self._peer_identity

    async def send(self, message: Message) -> None:
        frame = encode(message)
        async with self._sending:
            await self._written()
            self._raise_if_ended()
            self._writing = _start(self._stream.write(frame))
            self.bytes_sent += len(frame)
            await self._written()

    async def receive(self) -> Message:
        self._raise_if_ended()
        try:
            frame = await self._read()
        except (TransportError, RemoteProtocolError) as error:
            self._raise_if_ended()  # by this end, which knows why
            self.end(str(error))
            raise
        if frame is grpc.aio.EOF:
            self.end("the peer closed the connection")
        self._raise_if_ended()
        self.bytes_received += len(frame)
        return decode(frame)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            async with asyncio.timeout(GRACE_S):
                await self._hang_up()
        except (TimeoutError, TransportError, RemoteProtocolError):
            pass  # it ends either way
        finally:
            await self.abandon()

    async def abandon(self) -> None:
        """End the stream at once; what is on its way is lost."""
        self._closed = True
        await self._end_stream()
        if operations := [task for task in (self._reading, self._writing) if task is not None]:
            await asyncio.wait(operations)

    def end(self, reason: str) -> None:
        """Nothing can be sent or received any more."""
        self._ended = self._ended or reason

    async def _hang_up(self) -> None:
        """Tell the peer that nothing follows, behind all that was sent."""
        raise NotImplementedError

    async def _end_stream(self) -> None:
        """Free the stream, and with it every pending read and write."""
        raise NotImplementedError

    async def _read(self) -> Any:
        reading = self._reading = self._reading or _start(self._stream.read())
        frame = await _outcome(reading)
        if self._reading is reading:
            self._reading = None
        return frame

    async def _written(self) -> None:
        if self._writing is not None:
            await _outcome(self._writing)
            self._writing = None

    def _raise_if_ended(self) -> None:
        if self._closed or self._ended is not None:
            raise TransportError(self._ended or "the connection is closed")


class _Dialled(GrpcConnection):
    def __init__(
        self, call: Any, channel: Any, peer_identity: str | None, forget: Callable[[GrpcConnection], None]
    ) -> None:
        super().__init__(call, peer_identity)
        self._call, self._channel, self._forget = call, channel, forget

    async def _hang_up(self) -> None:
        async with self._sending:
            await self._written()
            await self._call.done_writing()
        while await self._read() is not grpc.aio.EOF:  # the peer's last word comes behind what it sent
            pass

    async def _end_stream(self) -> None:
        self._call.cancel()
        await self._channel.close()
        self._forget(self)


class _Accepted(GrpcConnection):
    def __init__(self, context: Any, peer_identity: str | None) -> None:
        super().__init__(context, peer_identity)
        self.finished = asyncio.Event()

    def end(self, reason: str) -> None:
        super().end(reason)
        self.finished.set()

    async def _hang_up(self) -> None:
        async with self._sending:
            await self._written()

    async def _end_stream(self) -> None:
        self.finished.set()


class _Health(health.aio.HealthServicer):  # type: ignore[misc]
    """Answers when asked. It sends no news, because a stream of them is one that nobody limits."""

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "ask with Check")


class GrpcTransport:
    """Listens at `bind` (``host:port``, port 0 for any free one) and dials ``host:port`` addresses.

    With an identity every connection is mutual TLS and only agents whose certificate it admits get in;
    without, connections are plaintext and prove no name. `refused(reason)` is told of every peer that came
    with a certificate of the authority and was not let in all the same.
    """

    def __init__(
        self,
        bind: str = "127.0.0.1:0",
        identity: Identity | None = None,
        refused: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._bind = bind
        self._identity = identity
        self._refused = refused
        self._server: Any = None
        self._accept: Accept | None = None
        self._health = _Health()
        self._dialled: set[GrpcConnection] = set()
        self._inbound: dict[_Accepted, asyncio.Task[None]] = {}
        self._open: Counter[str] = Counter()
        self._openings: dict[str, Allowance] = {}
        self._told: dict[str, str] = {}

    async def listen(self, accept: Accept) -> str:
        if self._server is not None:
            raise LocalProtocolError("the transport already listens")
        server = grpc.aio.server(options=list(SERVER_OPTIONS.items()))
        exchange = grpc.stream_stream_rpc_method_handler(self._exchange)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"Exchange": exchange}),)
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        try:
            if self._identity is None:
                port = server.add_insecure_port(self._bind)
            else:
                port = server.add_secure_port(self._bind, self._server_credentials(self._identity))
        except RuntimeError as error:
            why = why_not_bound(self._bind) or f"cannot listen at {self._bind}"
            raise ConfigError(why, key="listen") from error
        self._accept = accept
        self._server = server
        await server.start()
        for service in ("", SERVICE):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        return f"{self._bind.rpartition(':')[0]}:{port}"

    async def dial(self, peer: str, address: str) -> GrpcConnection:
        identity = self._renewed()
        channel = open_channel(peer, address, identity)
        challenge = secrets.token_bytes(CHALLENGE_BYTES)
        call = channel.stream_stream(METHOD)(metadata=((CHALLENGE, challenge),))
        connection = _Dialled(call, channel, peer if identity else None, self._dialled.discard)
        answer = _start(call.initial_metadata())
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                metadata = dict(await _outcome(answer))
                if WELCOME not in metadata:  # a refusal, or another program
                    await _outcome(_start(call.read()))
                    raise TransportError("refused")
            if identity is not None:
                connection.certificate = self._admit_acceptor(peer, identity, challenge, metadata)
        except (TimeoutError, TransportError, RemoteProtocolError) as error:
            await connection.abandon()
            raise TransportError(f"{peer} cannot be reached at {address}: {error or 'no answer'}") from error
        except BaseException:
            await connection.abandon()
            raise
        self._dialled.add(connection)
        return connection

    def seal(self, network: str, run: str) -> Seal:
        if self._identity is None:
            return Unsealed()
        return CertificateSeal(lambda: cast(Identity, self._renewed()), network, run)

    async def close(self) -> None:
        await self._health.enter_graceful_shutdown()
        connections = [*self._dialled, *self._inbound]
        await asyncio.gather(*(connection.close() for connection in connections))
        await finish(self._inbound.values())
        if self._server is not None:
            await self._server.stop(GRACE_S)

    async def enforce(self) -> None:
        """End the connections of peers that are no longer let in, because they were revoked since; a
        certificate that merely expired ends none."""
        identity = self._renewed()
        for connection in [*self._dialled, *self._inbound]:
            if identity is None or connection.certificate is None:
                continue
            try:
                identity.admission.vouch(connection.certificate)
            except RemoteProtocolError as error:
                connection.end(str(error))
                await connection.abandon()

    async def _exchange(self, _: Any, context: Any) -> None:
        """Serve one inbound stream; returning ends it."""
        names = context.auth_context().get("x509_subject_alternative_name", [b""])
        peer = bytes(names[0]).decode()
        if reason := self._too_many(peer):
            await context.abort(grpc.StatusCode.UNAVAILABLE, reason)
        self._open[peer] += 1
        try:
            await self._serve(context)
        finally:
            self._open[peer] -= 1

    async def _serve(self, context: Any) -> None:
        name, certificate, proof = None, None, ()
        if self._identity is not None:
            try:
                name, certificate, proof = self._admit_dialler(self._identity, context)
            except RemoteProtocolError as error:
                self._refused(str(error))
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        assert self._accept is not None
        await context.send_initial_metadata(((WELCOME, "1"), *proof))
        connection = _Accepted(context, name)
        connection.certificate = certificate
        task = asyncio.create_task(serve(self._accept, connection))
        self._inbound[connection] = task
        task.add_done_callback(lambda _: self._inbound.pop(connection))
        try:
            await connection.finished.wait()
        except asyncio.CancelledError:
            connection.end(f"{context.peer()} broke the connection")
            raise

    def _too_many(self, peer: str) -> str | None:
        """Why `peer` (empty if nothing proves a name) may open no stream now; found before its certificate
        costs any arithmetic."""
        if self._open.total() >= MAX_INBOUND:
            return f"already {MAX_INBOUND} streams"
        if not peer:
            return None
        openings = self._openings.setdefault(peer, Allowance(*OPENINGS))
        if self._open[peer] >= MAX_OF_PEER:
            reason = f"{peer} has {MAX_OF_PEER} streams already"
        elif not openings.affords(1, asyncio.get_running_loop().time()):
            reason = f"{peer} opens more than {OPENINGS[0]:g} streams, then {OPENINGS[1]:g} a second"
        else:
            self._told.pop(peer, None)
            return None
        if self._told.get(peer) != reason:  # once is enough
            self._told[peer] = reason
            self._refused(reason)
        return reason

    # ---- identities

    @property
    def identity(self) -> Identity | None:
        """The identity in use; another one once the certificate was renewed."""
        return self._renewed()

    def _renewed(self) -> Identity | None:
        if self._identity is not None:
            self._identity = self._identity.renewed()
        return self._identity

    def _server_credentials(self, identity: Identity) -> Any:
        """Credentials that follow a renewal: core asks for them before each handshake."""
        served = identity

        def configuration() -> Any:
            return grpc.ssl_server_certificate_configuration(
                [(served.private_key, served.certificate)], root_certificates=served.authority
            )

        def follow() -> Any:
            nonlocal served
            if (now := self._renewed()) is None or now is served:
                return None
            served = now
            return configuration()

        return grpc.dynamic_ssl_server_credentials(
            configuration(), follow, require_client_authentication=True
        )

    def _admit_dialler(self, identity: Identity, context: Any) -> tuple[str, x509.Certificate, Any]:
        """The name of the peer that opened a stream, its certificate, and the metadata that prove who
        answers."""
        (theirs,) = context.auth_context()["x509_pem_cert"]
        certificate = x509.load_pem_x509_certificate(theirs)
        name = identity.admission.check(certificate)
        challenge = dict(context.invocation_metadata()).get(CHALLENGE)
        if not isinstance(challenge, bytes):
            return name, certificate, ()
        proof = prove(identity.key, challenge, certificate)
        return name, certificate, ((CERTIFICATE, pem(identity.x509)), (PROOF, proof))

    def _admit_acceptor(
        self, peer: str, identity: Identity, challenge: bytes, metadata: dict[str, Any]
    ) -> x509.Certificate:
        """The certificate of the peer that answered. Raises `RemoteProtocolError` unless it proves one that
        is let in."""
        try:
            theirs, proof = bytes(metadata[CERTIFICATE]), bytes(metadata[PROOF])
            certificate = x509.load_pem_x509_certificate(theirs)
        except (KeyError, TypeError, ValueError):
            raise RemoteProtocolError("the peer does not prove its certificate") from None
        require_proof(proof, certificate, challenge, identity.x509)
        try:
            name = identity.admission.check(certificate)
        except RemoteProtocolError as error:
            self._refused(str(error))
            raise
        if name != peer:
            raise RemoteProtocolError(f"expected {peer}, found {name}")
        return certificate


def open_channel(peer: str, address: str, identity: Identity | None) -> Any:
    """A channel of its own to `address`; with an identity, mutual TLS with the agent named `peer`."""
    options: list[tuple[str, Any]] = list(CLIENT_OPTIONS.items())
    if identity is None:
        return grpc.aio.insecure_channel(address, options=options)
    options.append(("grpc.ssl_target_name_override", peer))
    credentials = grpc.ssl_channel_credentials(
        root_certificates=identity.authority,
        private_key=identity.private_key,
        certificate_chain=identity.certificate,
    )
    return grpc.aio.secure_channel(address, credentials, options=options)


def _start(operation: Any) -> asyncio.Task[Any]:
    """Run a grpc.aio operation in its own task; its outcome may be left unread."""
    task = asyncio.create_task(operation)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


async def _outcome(operation: asyncio.Task[T]) -> T:
    """The result of an operation, which goes on if this waiting is cancelled. Its failure is the network's or
    the peer's, in our terms."""
    try:
        return await asyncio.shield(operation)
    except asyncio.CancelledError as error:
        waiting = asyncio.current_task()
        if not operation.cancelled() or (waiting is not None and waiting.cancelling()):
            raise
        raise TransportError("the connection broke") from error
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise RemoteProtocolError(f"frame beyond {MAX_FRAME_BYTES} bytes: {error.details()}") from error
        raise TransportError(f"{error.code().name.lower()}: {error.details()}") from error
    except (grpc.aio.BaseError, asyncio.InvalidStateError) as error:
        raise TransportError(f"the connection broke: {error}") from error


def why_not_bound(address: str) -> str | None:
    """Why ``host:port`` cannot be listened at, or None: gRPC does not say it, the socket does."""
    host, _, port = address.rpartition(":")
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return f"port taken: another process listens at {address}"
        return f"cannot listen at {address}: {error.strerror or error}"
    except (ValueError, OverflowError):
        return f"expected host:port, found {address}"
    return None
