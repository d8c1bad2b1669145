"""Differential privacy of one agent's records against everyone who sees what the agent sends; and sums that
hide single neighbours' models from each other.

`docs/privacy.md` says what is protected and what is not.
"""

from p2pqg.privacy.accounting import ACCOUNTANTS, Accountant, Mechanism
from p2pqg.privacy.agent import Protection, protect_agent
from p2pqg.privacy.keys import KeyRing
from p2pqg.privacy.ledger import Ledger
from p2pqg.privacy.randomness import Secret
from p2pqg.privacy.sums import SecureSums
from p2pqg.privacy.task import PrivateTask

__all__ = [
    "ACCOUNTANTS",
    "Accountant",
    "KeyRing",
    "Ledger",
    "Mechanism",
    "PrivateTask",
    "Protection",
    "Secret",
    "SecureSums",
    "protect_agent",
]
