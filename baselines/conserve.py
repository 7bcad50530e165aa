"""ConServe: turn 1 to the prefiller, its KV moved once, the rest pinned to a decoder.

Source: arXiv 2606.01839; arm ``adaptive_disagg_decoders`` of github.com/jerryding95/conserve at
2a8c3bc (2026-06-10). Its headline run reserves each conversation's peak KV, which nobody can know
(``conserve_oracle`` in the registry); its variant ``_per_turn_kv`` counts what has been seen, as
``ConServe`` does by default.
"""

from __future__ import annotations

from conserve_gym import rules
from conserve_gym.deployment import Deployment, Reservation
from conserve_gym.observation import Observation
from conserve_gym.placement import Placement


class ConServe:
    """Disaggregates every conversation's first turn.

    Args:
        reservation: How the door counts KV.
    """

    def __init__(self, reservation: Reservation = Reservation.PER_TURN) -> None:
        """Take the cluster's roles as they are."""
        self.name = "conserve"
        self.deployment = Deployment(reservation=reservation)

    def reset(self, seed: int) -> None:
        """Keep no state."""

    def decide(self, observation: Observation) -> Placement:
        """Choose the decoder with most free KV and the least loaded prefiller."""
        return rules.place(observation, disaggregate=True)
