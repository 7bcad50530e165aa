"""The highest load that an arm carries."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from conserve_gym.agents.reproduction.cells import Part
from conserve_gym.agents.reproduction.values import Setting, Values

ATTAINMENT_PCT = 95.0
"""Share of conversations that have to meet all three SLOs."""


def capacity(values: Values, arm: str, rates: Sequence[float], variant: str, part: Part) -> float:
    """Return the rate at which SLO attainment on the user's clock falls below 95 %.

    Between the rates that were played, mean attainment is taken to be linear.

    Returns:
        Conversations a second; 0 below the lowest rate played, infinity above the highest.
    """
    attained = [
        (rate, values.mean(arm, "slo_attainment_pct", Setting(rate, "user", variant, part)).mean)
        for rate in sorted(rates)
    ]
    if attained[0][1] < ATTAINMENT_PCT:
        return 0.0
    for (rate, above), (higher, below) in pairwise(attained):
        if below < ATTAINMENT_PCT:
            return rate + (higher - rate) * (above - ATTAINMENT_PCT) / (above - below)
    return float("inf")
