"""Which of several arms is ahead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from conserve_gym.agents.reproduction.cells import UNCAPPED, Part
from conserve_gym.agents.reproduction.values import Values
from conserve_gym.metrics import Clock

_NEGLIGIBLE = 0.01
"""Arms are level within this share of the better one's value."""


class Winner(NamedTuple):
    """Who is ahead.

    Attributes:
        arm: The arm with the best mean. level: Whether the next one cannot be told from it: they
        differ by less than 1 %, or the 95 %
            interval of their difference, paired by seed, has 0 in it.
    """

    arm: str
    level: bool


def winner(
    values: Values,
    arms: Sequence[str],
    metric: str,
    rate: float,
    clock: Clock,
    variant: str = UNCAPPED,
    part: Part = "paper",
    *,
    highest: bool = False,
) -> Winner:
    """Return which of the arms that have been played is ahead in a metric.

    Args:
        values: Results.
        arms: Two or more; those that have not been played on that clock are left out.
        metric: What is compared.
        rate: Conversations a second.
        clock: Which of the two.
        variant: Of the part.
        part: Part of the reproduction.
        highest: Whether more is better.
    """
    sign = -1.0 if highest else 1.0
    means = {
        arm: sign * values.mean(arm, metric, rate, clock, variant, part).mean
        for arm in arms
        if values.has(arm, rate, clock, variant, part)
    }
    first, second = sorted(means, key=means.__getitem__)[:2]
    _, low, high = values.difference((first, second), metric, rate, clock, variant, part)
    close = abs(means[second] - means[first]) < _NEGLIGIBLE * abs(means[first])
    return Winner(first, close or low <= 0.0 <= high)
