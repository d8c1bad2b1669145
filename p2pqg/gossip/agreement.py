"""When the agents agree: the rule that ends the gossip-only rounds, decided alike by everyone.

The rounds come in windows. In the first `period` rounds of a window every agent measures how far the
models it receives are from its own; in the `diameter` rounds after them the largest value any agent knows
spreads with each BEGIN. So at the end of a window all agents hold the same maximum, and stop or go on
together. The simulator applies the same rule to the maximum over all edges.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from p2pqg.topology import Topology


@dataclass(frozen=True)
class Agreement:
    """What one agent knows in the gossip-only rounds: `round` of them are done, and `disagreement` is the
    largest max_j ||x_j - x_i|| / ||x_i|| it measured or heard of in this window."""

    period: int
    diameter: int
    tolerance: float
    max_rounds: int
    round: int = 0
    disagreement: float = 0.0
    agreed: bool = False

    @classmethod
    def of(cls, topology: Topology, tolerance: float, max_rounds: int) -> Agreement:
        """Nothing known yet. An agent without neighbours has nobody to agree with: 0 rounds."""
        alone = not any(topology.neighbours(i) for i in range(topology.n))
        return cls(topology.period, 0 if alone else topology.diameter, tolerance, 0 if alone else max_rounds)

    @property
    def window(self) -> int:
        """Rounds from one decision to the next."""
        return self.period + self.diameter

    @property
    def measures(self) -> bool:
        """Whether what is measured in the next round counts."""
        return self.round % self.window < self.period

    @property
    def done(self) -> bool:
        """Whether to stop: the agents agree, or the bound is reached."""
        return self.agreed or self.round >= self.max_rounds

    def after(self, measured: float, heard: float) -> Agreement:
        """The knowledge after one more round, in which the received models differed by at most `measured`
        and the largest note that came with them was `heard`."""
        position = self.round % self.window
        known = max(self.disagreement, heard) if position else 0.0  # notes of the first round are stale
        if self.measures:
            known = max(known, measured)
        return replace(
            self,
            round=self.round + 1,
            disagreement=known,
            agreed=position == self.window - 1 and known <= self.tolerance,
        )
