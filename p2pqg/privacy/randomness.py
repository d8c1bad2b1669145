"""Secret randomness: noise and Poisson draws that nobody else can predict, and that are never used twice.

Whoever knows the noise subtracts it, and whoever sees two gradients with the same noise subtracts one from
the other. So nothing here comes from the network's seed (`p2pqg.seeds`). Every draw has a ChaCha20 keystream
of its own, whose key HKDF-SHA256 derives from a secret and the names of the draw.

Decisions:

* A cryptographic stream and not torch's generators: Mersenne Twister and Philox can be recovered from their
  output, and both are seeded with 64 bits only.
* Gaussians by Box-Muller in float64 from 53-bit uniforms: 2^106 pairs stand behind a pair of doubles, and
  values reach to 8.5 standard deviations (beyond lies 1e-17 of the mass, far below any delta). The grid that
  floating-point noise lives on can betray what it was added to (Mironov 2012; Holohan & Braghin 2021), so
  the noisy sum is formed in float64 and released on a grid 2^-24 of the noise wide (`p2pqg.privacy.task`):
  each released value then stands for very many pairs, whatever the sum was. The exact alternative, a
  discrete Gaussian (Canonne, Kamath & Steinke 2020), costs a rejection sampler per parameter and an
  accountant that Opacus does not have.
* Augmentation and dropout draw from torch, seeded from here. They are not the noise, but public choices
  that depend on a sample's place in the mini-batch would move when a record is added, and with them the
  other records' gradients: the sum could then change by more than one record's clipped gradient.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

KEY_BYTES = 32
WORD_BYTES = 8


@dataclass(frozen=True)
class Secret:
    """32 bytes, and other secrets derived from them: one cannot be told from another."""

    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.key) != KEY_BYTES:
            raise ValueError(f"expected {KEY_BYTES} bytes, found {len(self.key)}")

    @classmethod
    def fresh(cls) -> Secret:
        """From the operating system."""
        return cls(secrets.token_bytes(KEY_BYTES))

    def derive(self, *names: str | int | bytes) -> Secret:
        """HKDF-SHA256 of this secret and `names`, each with its length before it."""
        parts = [name if isinstance(name, bytes) else str(name).encode() for name in names]
        info = b"p2pqg privacy" + b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        return Secret(HKDF(SHA256(), KEY_BYTES, salt=None, info=info).derive(self.key))

    def stream(self, *names: str | int) -> Stream:
        """The stream of one draw."""
        return Stream(self.derive(*names))


class Stream:
    """One draw's ChaCha20 keystream (RFC 8439), read from its start."""

    def __init__(self, secret: Secret) -> None:
        self._cipher = Cipher(algorithms.ChaCha20(secret.key, bytes(16)), mode=None).encryptor()

    def words(self, count: int) -> NDArray[np.uint64]:
        """The next `count` words of 64 bits."""
        return np.frombuffer(self._cipher.update(bytes(WORD_BYTES * count)), dtype="<u8")

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Multiples of 2^-53 in [0, 1)."""
        return (self.words(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def gaussian(self, count: int) -> NDArray[np.float64]:
        """Independent N(0, 1): sqrt(-2 ln u) cos(2 pi v) and sqrt(-2 ln u) sin(2 pi v), u in (0, 1]."""
        half = -(-count // 2)
        radius = np.sqrt(-2 * np.log(1 - self.uniform(half)))
        angle = 2 * np.pi * self.uniform(half)
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]

    def seed(self) -> int:
        """63 bits to seed a torch generator with."""
        return int(self.words(1)[0]) >> 1
