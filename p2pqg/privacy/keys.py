"""The keys with which senders agree on masks, and who vouches for them.

Every start of an agent makes a fresh X25519 key, so masks of an earlier life cannot come back whatever is
restored. A receiver passes its senders' keys on to each other; so that it cannot put its own in their place,
the key of an agent's certificate signs the X25519 key together with network, run, name and incarnation, and
whoever uses it checks signature and certificate as at a handshake (authority, dates, revocation list,
allow-list). In a network without certificates nobody vouches: sums are then hidden from a receiver that
keeps to the protocol, and from no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding

from p2pqg.errors import RemoteProtocolError
from p2pqg.gossip.messages import Key
from p2pqg.gossip.sums import Mask
from p2pqg.privacy.masking import Pad
from p2pqg.privacy.randomness import Secret
from p2pqg.security import Identity
from p2pqg.security.signatures import Said, sign, verify

_CONTEXT = "p2pqg v1: a key for secure sums"


class KeyRing:
    """One agent's key, and masks with others. `identity()` is its certificate at the time, None without
    certificates; `private` is fresh unless a test gives one."""

    def __init__(
        self,
        network: str,
        run: str,
        agent: str,
        incarnation: int,
        identity: Callable[[], Identity | None] = lambda: None,
        private: X25519PrivateKey | None = None,
    ) -> None:
        self._network, self._run, self._identity = network, run, identity
        self._private = private or X25519PrivateKey.generate()
        public = self._private.public_key().public_bytes_raw()
        self._own = Key(agent, incarnation, public)
        self._signer: Identity | None = None

    @property
    def own(self) -> Key:
        """The own key, signed if there is a certificate to sign it with, and again once that is renewed."""
        identity = self._identity()
        if identity is not None and identity is not self._signer:
            own = self._own
            signature = sign(identity.key, *self._statement(own))
            certificate = identity.x509.public_bytes(Encoding.DER)
            self._own = Key(own.agent, own.incarnation, own.public_key, certificate, signature)
            self._signer = identity
        return self._own

    def check(self, key: Key) -> None:
        """Raise `RemoteProtocolError` unless `key` can be used and the agent it names vouches for it."""
        self._shared(key)
        identity = self._identity()
        if identity is None:
            return
        try:
            certificate = x509.load_der_x509_certificate(key.certificate)
            verify(key.signature, certificate, *self._statement(key))
        except (ValueError, InvalidSignature):
            raise RemoteProtocolError(f"the key of {key.agent} is not signed by it") from None
        if (name := identity.admission.check(certificate)) != key.agent:
            raise RemoteProtocolError(f"the key of {key.agent} is signed by {name}")

    def pads(self, job: Mask) -> Iterator[Pad]:
        """What this agent shares with each of the other senders for one sum, and for no other."""
        asked = job.announced
        senders = (each for pair in zip(asked.names, asked.incarnations, strict=True) for each in pair)
        receiver = (job.peer, asked.incarnation, asked.round, asked.exchange)
        names: tuple[str | int, ...] = ("secure sum", *receiver, *senders)
        for key in job.keys:
            yield self._shared(key).derive(*names), 1 if self._own.agent < key.agent else -1

    def _shared(self, key: Key) -> Secret:
        try:
            return Secret(self._private.exchange(X25519PublicKey.from_public_bytes(key.public_key)))
        except ValueError:
            raise RemoteProtocolError(f"the key of {key.agent} is none") from None

    def _statement(self, key: Key) -> tuple[Said, ...]:
        return _CONTEXT, self._network, self._run, key.agent, key.incarnation, key.public_key
