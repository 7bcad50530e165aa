"""How far draws of a workload are from what it was fitted to."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import ks_2samp

from conserve_gym.envs.workloads.copula import LATENTS
from conserve_gym.envs.workloads.samples import Samples


class Difference(NamedTuple):
    """One statistic of recordings and draws.

    Attributes:
        quantity: What was measured.
        statistic: Which figure of it.
        recorded: Of the recordings.
        drawn: Of the draws.
        error_pct: By how much the draws differ, in percent; NaN for what is not a length or a time.
    """

    quantity: str
    statistic: str
    recorded: float
    drawn: float
    error_pct: float = float("nan")


PERCENTILES = (50, 95, 99)


def differences(recorded: Samples, drawn: Samples) -> list[Difference]:
    """Return medians, tails and the Kolmogorov-Smirnov distance of each quantity, then dependence.

    Args:
        recorded: The recordings.
        drawn: Many draws, with kinds of gap in the same order.
    """
    found: list[Difference] = []
    marginals = drawn.marginals()
    for name, values in recorded.marginals().items():
        if not values.size or not marginals[name].size:
            continue
        for percent in PERCENTILES:
            of = [float(np.percentile(one, percent)) for one in (values, marginals[name])]
            found.append(difference(name, f"p{percent}", *of))
        distance = float(ks_2samp(values, marginals[name], method="asymp").statistic)
        found.append(Difference(name, "ks_distance", 0.0, distance))
    shares = [float(one.rewrites.mean()) for one in (recorded, drawn)]
    found.append(Difference("rewriting turns", "share", *shares))
    carried = [
        float(one.new[one.rewrites].sum() / max(one.new.sum(), 1.0)) for one in (recorded, drawn)
    ]
    found.append(Difference("rewriting turns", "share of later new tokens", *carried))
    for kind, name in enumerate(recorded.kinds):
        shares = [float((one.kind == kind).mean()) for one in (recorded, drawn)]
        found.append(Difference(f"{name} gaps", "share", *shares))
    both = recorded.persistence(), drawn.persistence()
    for name in both[0]:
        for i, statistic in enumerate(("share of variance between conversations", "lag 1")):
            found.append(Difference(name, statistic, both[0][name][i], both[1][name][i]))
    ranks, others = recorded.rank_correlations(), drawn.rank_correlations()
    for i, one in enumerate(LATENTS):
        for j in range(i):
            pair = f"{one}, {LATENTS[j]}"
            both_ways = float(ranks[i, j]), float(others[i, j])
            found.append(Difference(pair, "rank correlation", *both_ways))
    return found


def difference(quantity: str, statistic: str, recorded: float, drawn: float) -> Difference:
    """Return the difference of a length or a time with its relative error."""
    if recorded == drawn:
        return Difference(quantity, statistic, recorded, drawn, 0.0)
    error = 100.0 * (drawn / recorded - 1.0) if recorded else float("inf")
    return Difference(quantity, statistic, recorded, drawn, error)
