"""What an agent says of itself, signed, so that others can pass it on but not change or make it up.

A signature is the subject's own, with the key of the certificate that it shows at every
handshake; whoever passes an announcement on cannot age it either, because the larger heartbeat counts. What a
neighbour can still do is say nothing. Believing only what comes from the subject itself would need no
signatures, but then nobody would know of anybody further than an edge away, and no graph over all could be
made; announcements as mere hints where to dial would need a connection to everybody for the same reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from p2pqg.errors import RemoteProtocolError
from p2pqg.gossip.messages import Member
from p2pqg.security.certificates import dns_names
from p2pqg.security.identity import Identity
from p2pqg.security.signatures import Said, sign, verify

_CONTEXT = "p2pqg v1: an agent announces itself"


class CertificateSeal:
    """Signs with the certificate of `identity()`, and believes those whom it admits, for one run of one
    network. An expired certificate still proves who speaks: it ends no connection either."""

    def __init__(self, identity: Callable[[], Identity], network: str, run: str) -> None:
        self._identity, self._network, self._run = identity, network, run

    def sign(self, member: Member) -> Member:
        identity = self._identity()
        signature = sign(identity.key, *self._statement(member))
        certificate = identity.x509.public_bytes(Encoding.DER)
        return dataclasses.replace(member, certificate=certificate, signature=signature)

    def proves(self, member: Member) -> bool:
        if not (member.certificate and member.signature):
            return False
        try:
            certificate = _parsed(member.certificate)
            if dns_names(certificate) != [member.name]:
                raise InvalidSignature
            verify(member.signature, certificate, *self._statement(member))
        except (ValueError, InvalidSignature):
            raise RemoteProtocolError(
                f"an announcement of {member.name} that {member.name} did not sign"
            ) from None
        try:
            self._identity().admission.vouch(certificate)
        except RemoteProtocolError:  # whoever passed it on may let others in than we do
            return False
        return True

    def _statement(self, member: Member) -> tuple[Said, ...]:
        said = member.name, member.heartbeat, member.state, member.address, member.round
        return _CONTEXT, self._network, self._run, *said


@lru_cache(maxsize=1024)
def _parsed(certificate: bytes) -> x509.Certificate:
    return x509.load_der_x509_certificate(certificate)
