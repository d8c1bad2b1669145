"""Privacy of one agent, from its settings and its home: its secret, its ledger, its task made private."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pqg.algorithms import Algorithm
from p2pqg.errors import ConfigError, StorageError
from p2pqg.home import Home
from p2pqg.privacy.accounting import Mechanism
from p2pqg.privacy.ledger import FILE, Ledger, fingerprint
from p2pqg.privacy.randomness import KEY_BYTES, Secret
from p2pqg.privacy.task import Allowance, PrivateTask, private
from p2pqg.storage import write_atomically
from p2pqg.tasks.base import Task

SECRET = "secret"


@dataclass
class Protection:
    """A private task and what pays for its steps."""

    task: PrivateTask
    account: Ledger | Allowance
    notices: Sequence[str] = ()
    """What the operator should read at the start."""
    _told: bool = False

    def just_spent(self) -> bool:
        """Whether the budget has refused a step; said once."""
        told, self._told = self._told, self.account.refused
        return self._told and not told

    def measurements(self) -> dict[str, Any]:
        """What a line of the metrics says: epsilon so far (see `Mechanism.shown`), the page of the ledger and
        its steps."""
        if not isinstance(self.account, Ledger):
            return {}
        return {"epsilon": self.account.shown(), "privacy": self.account.witness()}

    def witness(self) -> dict[str, Any] | None:
        """What a checkpoint notes."""
        return self.account.witness() if isinstance(self.account, Ledger) else None

    def require(self, witness: Mapping[str, Any] | None, source: str) -> None:
        """See `Ledger.require`."""
        if isinstance(self.account, Ledger):
            self.account.require(witness, source)

    def report(self) -> dict[str, Any]:
        """What the final card and `status` show; epsilon is exact."""
        mechanism = self.task.mechanism
        report: dict[str, Any] = {
            "delta": mechanism.delta,
            "budget": mechanism.budget,
            "max_grad_norm": mechanism.max_grad_norm,
            "noise_multiplier": mechanism.noise_multiplier,
            "sample_rate": mechanism.sample_rate,
            "accountant": mechanism.accountant,
        }
        if isinstance(self.account, Ledger):
            ledger = self.account
            report |= {
                "epsilon": ledger.epsilon(),
                "steps": ledger.steps,
                "spent": ledger.steps >= ledger.affordable,
                "ledger": ledger.page.id,
                "earlier": ledger.earlier(),
            }
        return report


def protect_agent(
    task: Task,
    mechanism: Mechanism | None,
    algorithm: Algorithm,
    *,
    agent: str,
    home: Home | None,
    secret: Secret | None = None,
) -> Protection | None:
    """Make the task of an agent private, for its next start; None where no `mechanism` asks for it.

    With a home, steps are paid on its ledger, and noise comes from its secret, its incarnation and fresh
    bytes of the operating system: neither an older checkpoint nor an older copy of the home repeats any.
    `secret` takes the place of the home's and of those bytes, in tests only.

    Raises `ConfigError` for a task, model or algorithm that cannot be private, and for a home whose earlier
    training was, but this is not; `StorageError` for a ledger that is not the newest.
    """
    if mechanism is None:
        if home and (home.folder / FILE).exists():
            raise ConfigError(
                "expected true, as before in this home: training without privacy on the same data would undo "
                "what the ledger promises; found false",
                key="privacy.dp",
            )
        return None
    if algorithm.needs_full_gradient:
        raise ConfigError(
            f"{type(algorithm).__name__} needs gradients on all samples, which are not private here",
            key="algorithm.name",
        )
    own = private(task)
    notices = []
    if mechanism.delta * own.samples >= 1:
        notices.append(
            f"delta {mechanism.delta:g} is not below 1 / {own.samples} samples: it allows for whole records"
        )
    if home is None:
        allowance = Allowance(mechanism.affordable())
        start = (secret or Secret.fresh()).derive("agent", agent, 1)
        return Protection(PrivateTask(own, mechanism, start, allowance), allowance, notices)
    known, begun = load_secret(home.folder), (home.folder / FILE).exists()
    if home.incarnation and known and not begun:
        raise StorageError(f"{home.folder / FILE}: missing; put the newest copy back, or choose another home")
    if home.incarnation and not known and not begun:
        notices.append(
            f"this home was started without privacy before ({home.incarnation} times): "
            "nothing covers what was sent then"
        )
    stored = known or Secret.fresh()
    if not known:
        keep_secret(home.folder, stored)
    ledger = Ledger(home.folder, stored, mechanism, fingerprint(own.train, stored), home.incarnation)
    if noted := [line["privacy"] for line in home.measured() if "privacy" in line]:
        ledger.require(noted[-1], "metrics.jsonl")
    start = (secret or stored.derive(secrets.token_bytes(KEY_BYTES))).derive(
        "agent", agent, home.incarnation + 1
    )
    return Protection(PrivateTask(own, mechanism, start, ledger), ledger, [*notices, *ledger.notices])


def load_secret(folder: Path) -> Secret | None:
    """The home's secret; None if it has none yet.

    Raises `StorageError` if it is not 32 bytes, or if others than its owner can read it.
    """
    path = folder / SECRET
    try:
        if os.stat(path).st_mode & 0o077:
            raise StorageError(f"{path}: expected a file that only its owner can read (chmod 600)")
        return Secret(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path}: cannot read: {error.strerror}") from error
    except ValueError as error:
        raise StorageError(f"{path}: corrupted: {error}") from error


def keep_secret(folder: Path, secret: Secret) -> None:
    """Write the home's secret, for its owner alone to read."""
    write_atomically(folder / SECRET, secret.key, mode=0o600)
