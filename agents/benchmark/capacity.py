"""The highest load that a policy carries, by bisection."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

ATTAINMENT_PCT = 95.0
"""Share of conversations that have to meet all three SLOs."""


@dataclass(frozen=True)
class Search:
    """What is known of a policy's capacity.

    Attributes:
        attained: Mean SLO attainment over seeds in percent, by the rates that were played.
        tolerance: Share of the load to which capacity is to be known.
    """

    attained: Mapping[float, float]
    tolerance: float

    @property
    def carried(self) -> float:
        """The highest rate below all that failed, in conversations/s; 0 if the lowest fails."""
        carried = 0.0
        for rate in sorted(self.attained):
            if self.attained[rate] < ATTAINMENT_PCT:
                return carried
            carried = rate
        return carried

    @property
    def failed(self) -> float:
        """The lowest rate that failed; infinite if none did."""
        failed = [rate for rate, percent in self.attained.items() if percent < ATTAINMENT_PCT]
        return min(failed, default=math.inf)

    @property
    def next_rate(self) -> float | None:
        """The rate to play next; None when capacity is known, or lies outside what was played."""
        low, high = self.carried, self.failed
        if low == 0.0 or math.isinf(high) or high - low <= self.tolerance * low:
            return None
        middle = float(f"{(low + high) / 2:.6g}")
        return middle if low < middle < high else None

    def __str__(self) -> str:
        """Return it for a table, with what is not known of it."""
        if self.carried == 0.0:
            return f"< {min(self.attained):g}"
        if math.isinf(self.failed):
            return f"≥ {max(self.attained):g}"
        return f"{self.carried:.3g}"


def most_probes(rates: Sequence[float], tolerance: float) -> int:
    """Return how many rates a search between neighbours of a grid plays at most."""
    steps = [
        math.ceil(math.log2((high - low) / (tolerance * low)))
        for low, high in pairwise(sorted(rates))
    ]
    return max([0, *steps])
