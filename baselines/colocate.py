"""Colocate: every engine prefills what it decodes.

The paper's Collocated (arm ``no_disagg_oracle`` of github.com/jerryding95/conserve at 2a8c3bc,
2026-06-10): all engines are equals, a conversation is pinned to the one with most free KV. The
paper reserves each conversation's peak KV, which nobody can know, as ``colocate_oracle`` does;
``colocate`` reserves what is known.
"""

from __future__ import annotations

from conserve_gym import rules
from conserve_gym.baselines.baseline import Baseline
from conserve_gym.deployment import Deployment, Reservation
from conserve_gym.observation import Observation
from conserve_gym.placement import Placement
from conserve_gym.policy import Reads

_SOURCE = "arXiv 2606.01839 (Collocated)"


class Colocate:
    """Pins to the engine with most free KV and prefills there.

    Args:
        reservation: How the door counts KV.
    """

    def __init__(self, reservation: Reservation = Reservation.PER_TURN) -> None:
        """Take all engines as equals."""
        self.name = "colocate"
        self.deployment = Deployment(all_mixed=True, reservation=reservation)

    def reset(self, seed: int) -> None:
        """Keep no state."""

    def decide(self, observation: Observation) -> Placement:
        """Choose the engine with most free KV."""
        return rules.place(observation, disaggregate=False)


BASELINES = {
    "colocate": Baseline(lambda site: Colocate(), Reads.BOOKKEEPING, _SOURCE),
    "colocate_oracle": Baseline(
        lambda site: Colocate(Reservation.ORACLE_PEAK), Reads.FUTURE, _SOURCE
    ),
}
