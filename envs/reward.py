"""The reward: named terms of what became known since the last decision, and their weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from pydantic.dataclasses import dataclass

from conserve_gym.envs.fields import STRICT
from conserve_gym.metrics import SLO_FACTOR, Normalised


@dataclass(frozen=True, config=STRICT)
class RewardWeights:
    """Weight of each reward term.

    Attributes:
        attained: Conversations that ended within all three SLOs.
        ttfet: Less the excess of their normalised TTFET over 1, in SLOs, at most 4 each.
        tbt: The same of their last turn's TBT.
        e2e: The same of their E2E.
        energy: Less the kilojoules used by all engines.
        imbalance: Less the coefficient of variation, over the engines that decode, of the share of
            their KV pools that is known to be held, when the next conversation stands at the door.
            It is that of what they hold and not of what they put out: a turn's output becomes known
            when it has ended, and between two decisions hardly any has, while a placement shows in
            what is held at once. It is a share of the pool, so that an engine with twice the memory
            may hold twice as much.
    """

    attained: float
    ttfet: float
    tbt: float
    e2e: float
    energy: float
    imbalance: float

    def preferring(self, energy: float) -> RewardWeights:
        """Return the weights for a user who prefers energy to latency so much, from 0 to 1."""
        return replace(self, energy=energy * self.energy)


TERMS = tuple(RewardWeights.__dataclass_fields__)
"""Names of the terms, as they stand in ``info["reward_terms"]``."""

_WORST = 4.0  # SLOs; a conversation that is lost anyway must not drown the others


def reward_terms(
    ended: Iterable[Normalised], joules: float, kv_known: npt.NDArray[np.float64]
) -> dict[str, float]:
    """Return the unweighted terms.

    Args:
        ended: Latencies over standalone of the conversations that ended since the last decision.
        joules: Energy used since then.
        kv_known: Share of its KV pool that each engine that decodes is known to hold now.
    """
    terms = dict.fromkeys(TERMS, 0.0)
    for conversation in ended:
        terms["attained"] += conversation.attains_slo
        for term in ("ttfet", "tbt", "e2e"):
            multiple = getattr(conversation, term)
            if multiple > 1.0:  # not so for the TBT of a single token, which is not a number
                terms[term] -= min((multiple - 1.0) / SLO_FACTOR, _WORST)
    terms["energy"] = -joules * 1e-3
    if kv_known.any():
        terms["imbalance"] = -float(kv_known.std() / kv_known.mean())
    return terms


def weighted(terms: dict[str, float], weights: RewardWeights) -> float:
    """Return the reward: the weighted sum of the terms."""
    return sum(float(getattr(weights, term)) * value for term, value in terms.items())
