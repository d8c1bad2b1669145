"""Simulate many agents on one host; imports `p2pqg`, which never imports this."""

from .engine import Iterate, Simulation
from .evaluation import Scores, consensus_distance
from .record import record
from .simulate import simulate

__all__ = ["Iterate", "Scores", "Simulation", "consensus_distance", "record", "simulate"]
