"""The ledger: how many private steps were taken on which data, on disk before anything they paid for leaves.

A step is written down, and flushed to the disk, *before* its records are drawn. A crash between the two
counts a step too many; none is ever taken that is not counted. A restart goes on from the ledger, whatever
round the checkpoint is of: rounds that are trained again cost again.

A page is about one set of data, one delta and one sampling rate; when one of them changes, a new page is
begun. Pages on the same data add up (basic composition: epsilons and deltas), which nobody's choice of a new
delta undoes; `earlier` tells what they cost.

What is noticed, and refused:

* a ledger that is missing, altered, or of another home: it carries a checksum keyed with the home's secret;
* an older ledger beside newer files: it notes the incarnation before the home's counter does, so it is never
  behind that counter; and a checkpoint and the last line of the metrics name the page and its steps, so a
  copy from within the same incarnation is never behind those;
* training without privacy in a home that has a ledger, or from a checkpoint of training without privacy:
  what was promised would not hold, or never held.

What is not: a copy of the *whole* home put back in place of a newer one. Nothing on the disk then knows
better. Noise is fresh at every start even so, but the steps since the copy are not counted. Neighbours that
still run refuse an agent whose incarnation they have seen end, as it is if the home had started twice since.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from p2pqg.errors import ConfigError, LocalProtocolError, StorageError
from p2pqg.privacy.accounting import History, Mechanism, epsilon
from p2pqg.privacy.randomness import Secret
from p2pqg.storage import write_atomically

FILE = "ledger.json"


@dataclass
class Page:
    """Steps on one set of data: `entries` are (noise multiplier, number of steps), in order."""

    id: str
    data: str
    delta: float
    sample_rate: float
    entries: list[tuple[float, int]]

    @property
    def history(self) -> History:
        return tuple((noise, self.sample_rate, steps) for noise, steps in self.entries)

    @property
    def steps(self) -> int:
        return sum(steps for _, steps in self.entries)

    def differs(self, data: str, mechanism: Mechanism) -> list[str]:
        """What has changed since the page was begun."""
        changes = {
            "the data": self.data != data,
            f"delta (from {self.delta:g} to {mechanism.delta:g})": self.delta != mechanism.delta,
            f"the sampling rate (from {self.sample_rate:g} to {mechanism.sample_rate:g})": self.sample_rate
            != mechanism.sample_rate,
        }
        return [what for what, changed in changes.items() if changed]


class Ledger:
    """The account of an agent with a home. `notices` are what its operator should read at the start.

    Raises `StorageError` for a ledger that cannot be read or is not the newest.
    """

    def __init__(self, folder: Path, secret: Secret, mechanism: Mechanism, data: str, home: int) -> None:
        """Open the ledger in `folder`, for the start after incarnation `home`."""
        self.path, self.mechanism = folder / FILE, mechanism
        self.notices: list[str] = []
        self._key = secret.derive("ledger").key
        self._pages, incarnation = self._read()
        if self._pages and incarnation < home:
            raise self._stale(
                f"it ends with incarnation {incarnation}, but this home has started {home} times"
            )
        self._incarnation = home + 1
        changes = self._pages[-1].differs(data, mechanism) if self._pages else []
        if changes:
            last = self._pages[-1]
            spent = epsilon(last.history, last.delta, mechanism.accountant)
            self.notices.append(
                f"{' and '.join(changes)} changed: a new ledger begins, and epsilon {spent:.3g} at delta "
                f"{last.delta:g} stays spent on the records of the old one"
            )
        if changes or not self._pages:
            page = Page(secrets.token_hex(4), data, mechanism.delta, mechanism.sample_rate, [])
            self._pages.append(page)
        entries = self.page.entries
        if not entries or entries[-1][0] != mechanism.noise_multiplier:
            entries.append((mechanism.noise_multiplier, 0))
        self._before = self.page.history[:-1]
        self.affordable = mechanism.affordable(self._before)
        self.refused = False
        self._last_step = -1
        self._write()

    @property
    def page(self) -> Page:
        """The page that steps are counted on."""
        return self._pages[-1]

    @property
    def steps(self) -> int:
        """Steps of the current page with the current noise."""
        return self.page.entries[-1][1]

    def pay(self, step: int) -> bool:
        """Count a step, on disk; False if the budget is spent.

        Raises `LocalProtocolError` for a step that this incarnation has drawn noise for.
        """
        if step <= self._last_step:
            raise LocalProtocolError(f"step {step} after step {self._last_step}: its noise is used")
        if self.steps >= self.affordable:
            self.refused = True
            return False
        self.page.entries[-1] = (self.mechanism.noise_multiplier, self.steps + 1)
        self._write()
        self._last_step = step
        return True

    def epsilon(self) -> float:
        """What the current page has cost."""
        return self.mechanism.epsilon(self.steps, self._before)

    def shown(self) -> float:
        """The same, for up to a twentieth of the planned steps more: see `Mechanism.shown`."""
        return min(
            self.mechanism.shown(self.steps, self._before),
            self.epsilon() if self.steps >= self.affordable else float("inf"),
        )

    def earlier(self) -> list[dict[str, Any]]:
        """What closed pages cost, and whether on the same data as the current one."""
        return [
            {
                "epsilon": epsilon(page.history, page.delta, self.mechanism.accountant),
                "delta": page.delta,
                "steps": page.steps,
                "same_data": page.data == self.page.data,
            }
            for page in self._pages[:-1]
        ]

    def witness(self) -> dict[str, Any]:
        """What other files note of the ledger, so that an older copy of it is noticed."""
        return {"ledger": self.page.id, "steps": self.page.steps}

    def require(self, witness: Mapping[str, Any] | None, source: str) -> None:
        """Refuse to go on if `source`, which holds `witness`, knows of more steps than this ledger.

        Raises `ConfigError` if there is no witness, because `source` was then made without privacy.
        """
        if witness is None:
            raise ConfigError(
                f"expected a checkpoint of private training, found {source} without; choose another home",
                key="privacy.dp",
            )
        pages = {page.id: page for page in self._pages}
        page = pages.get(witness["ledger"])
        if page is None:
            raise self._stale(f"{source} is of ledger {witness['ledger']}, which is not in it")
        if page.steps < witness["steps"]:
            raise self._stale(f"{source} has paid for {witness['steps']} steps, it knows of {page.steps}")

    def _stale(self, reason: str) -> StorageError:
        return StorageError(
            f"{self.path}: not the newest: {reason}; put the newest copy back, or else train other data in "
            "another home: how much privacy is left for these is not known"
        )

    def _read(self) -> tuple[list[Page], int]:
        if not self.path.exists():
            return [], 0
        try:
            book = json.loads(self.path.read_bytes())
            content = book["content"]
            if book["checksum"] != self._checksum(content):
                raise StorageError(f"{self.path}: altered, or of another home: its checksum does not match")
            table = json.loads(content)
            pages = [
                Page(**(page | {"entries": [(noise, steps) for noise, steps in page["entries"]]}))
                for page in table["pages"]
            ]
            return pages, int(table["incarnation"])
        except OSError as error:
            raise StorageError(f"{self.path}: cannot read: {error.strerror}") from error
        except (ValueError, LookupError, TypeError) as error:
            raise StorageError(f"{self.path}: corrupted: {error}") from error

    def _write(self) -> None:
        pages = [vars(page) for page in self._pages]
        content = json.dumps({"incarnation": self._incarnation, "pages": pages})
        book = {"checksum": self._checksum(content), "content": content}
        write_atomically(self.path, json.dumps(book).encode())

    def _checksum(self, content: str) -> str:
        return hashlib.blake2b(content.encode(), digest_size=16, key=self._key).hexdigest()


def fingerprint(tensors: Sequence[Tensor], secret: Secret) -> str:
    """Names a set of records without telling anything about them: a hash keyed with the home's secret."""
    digest = hashlib.blake2b(digest_size=16, key=secret.derive("data").key)
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
