"""ConServe: turn 1 to the prefiller, its KV moved once, the rest pinned to a decoder.

Source: arXiv 2606.01839; arm ``adaptive_disagg_decoders`` of github.com/jerryding95/conserve at
2a8c3bc (2026-06-10). Its headline run reserves each conversation's peak KV, which nobody can know
(``conserve_oracle``); its variant ``_per_turn_kv`` counts what has been seen, as
``ConServe`` does by default. With ``offload_above``, as ``conserve_offload`` has it, long
appends go to the prefiller too: no decoder is stalled by them, but history moves to and fro.
"""

from __future__ import annotations

import math

from conserve_gym import rules
from conserve_gym.baselines.baseline import Baseline, Parameter
from conserve_gym.deployment import Deployment, Reservation
from conserve_gym.observation import Observation
from conserve_gym.placement import Placement
from conserve_gym.policy import Reads

_SOURCE = "arXiv 2606.01839"
# PPD (arXiv 2603.13358): appends below 512 tokens cost those who decode beside them 2 to 20 % of
# TPOT, longer ones more.
LONG_APPEND_TOKENS = 512


class ConServe:
    """Disaggregates every conversation's first turn, and later ones that append much.

    Args:
        reservation: How the door counts KV.
        offload_above: New tokens from which a later turn is prefilled at the prefill engine too.
    """

    def __init__(
        self,
        reservation: Reservation = Reservation.PER_TURN,
        offload_above: float = math.inf,
    ) -> None:
        """Take the cluster's roles as they are."""
        self.name = "conserve"
        self._offload_above = offload_above
        self.deployment = Deployment(reservation=reservation)

    def reset(self, seed: int) -> None:
        """Keep no state."""

    def decide(self, observation: Observation) -> Placement:
        """Choose the decoder with most free KV and the least loaded prefiller."""
        placement = rules.place(observation, disaggregate=True)
        return placement._replace(offload_above=self._offload_above)


BASELINES = {
    "conserve": Baseline(lambda site: ConServe(), Reads.BOOKKEEPING, _SOURCE),
    "conserve_offload": Baseline(
        lambda site, tokens: ConServe(offload_above=tokens),
        Reads.BOOKKEEPING,
        f"{_SOURCE}, with the threshold of arXiv 2603.13358",
        {"tokens": Parameter(LONG_APPEND_TOKENS, 64, 32_768, logarithmic=True)},
    ),
    "conserve_oracle": Baseline(
        lambda site: ConServe(Reservation.ORACLE_PEAK), Reads.FUTURE, _SOURCE
    ),
}
