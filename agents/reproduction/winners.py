"""Which of several arms is ahead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from conserve_gym.agents.reproduction.values import Setting, Values

_NEGLIGIBLE = 0.01
"""Arms are level within this share of the better one's value."""

_MORE_IS_BETTER = ("slo_attainment_pct", "tokens_per_joule")


class Winner(NamedTuple):
    """Who is ahead.

    Attributes:
        arm: The arm with the best mean.
        level: Whether the next one cannot be told from it: they differ by less than 1 %, or the
            95 % interval of their difference, paired by seed, has 0 in it.
    """

    arm: str
    level: bool


def winner(values: Values, arms: Sequence[str], metric: str, setting: Setting) -> Winner:
    """Return which of two arms or more is ahead.

    Args:
        values: Results.
        arms: All have been played in the setting.
        metric: What is compared; less is better but for attainment and tokens a joule.
        setting: Where.
    """
    means = {arm: values.mean(arm, metric, setting).mean for arm in arms}
    ranked = sorted(means, key=means.__getitem__, reverse=metric in _MORE_IS_BETTER)
    first, second = ranked[:2]
    _, low, high = values.difference((first, second), metric, setting)
    close = abs(means[second] - means[first]) < _NEGLIGIBLE * abs(means[first])
    return Winner(first, close or low <= 0.0 <= high)
