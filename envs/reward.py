"""The reward: named terms of what became known since the last decision, and their weights."""

from __future__ import annotations

from collections.abc import Iterable

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
    """

    attained: float
    ttfet: float
    tbt: float
    e2e: float
    energy: float


TERMS = tuple(RewardWeights.__dataclass_fields__)
"""Names of the terms, as they stand in ``info["reward_terms"]``."""

_WORST = 4.0  # SLOs; a conversation that is lost anyway must not drown the others


def reward_terms(ended: Iterable[Normalised], joules: float) -> dict[str, float]:
    """Return the unweighted terms.

    Args:
        ended: Latencies over standalone of the conversations that ended since the last decision.
        joules: Energy used since then.
    """
    terms = dict.fromkeys(TERMS, 0.0)
    for conversation in ended:
        terms["attained"] += conversation.attains_slo
        for term in ("ttfet", "tbt", "e2e"):
            multiple = getattr(conversation, term)
            if multiple > 1.0:  # not so for the TBT of a single token, which is not a number
                terms[term] -= min((multiple - 1.0) / SLO_FACTOR, _WORST)
    terms["energy"] = -joules * 1e-3
    return terms


def weighted(terms: dict[str, float], weights: RewardWeights) -> float:
    """Return the reward: the weighted sum of the terms."""
    return sum(float(getattr(weights, term)) * value for term, value in terms.items())
