"""Statistics that are kept as values arrive, in constant time and memory."""

from __future__ import annotations

import math
from collections.abc import Sequence


class DecayedMean:
    """Mean and rate of values that fade with age.

    Args:
        time_constant_s: Age in seconds at which a value's weight has fallen to 1/e.

    Attributes:
        mean: Weighted mean, 0 without values.
    """

    __slots__ = ("_sum", "_time", "_time_constant_s", "_weight", "mean")

    def __init__(self, time_constant_s: float) -> None:
        """Start without values."""
        self._time_constant_s = time_constant_s
        self._time = 0.0
        self._sum = 0.0
        self._weight = 0.0
        self.mean = 0.0

    def add(self, time: float, value: float) -> None:
        """Add a value seen at ``time``, which never runs back."""
        fade = math.exp((self._time - time) / self._time_constant_s)
        self._sum = self._sum * fade + value
        self._weight = self._weight * fade + 1.0
        self._time = time
        self.mean = self._sum / self._weight

    def rate(self, now: float) -> float:
        """Values a second: the weight that is left over its time constant.

        In the first seconds it is divided by the time that has passed, weighted alike, so that
        a young ledger is not mistaken for a quiet one.
        """
        weight = self._weight * math.exp((self._time - now) / self._time_constant_s)
        seen_s = self._time_constant_s * -math.expm1(-now / self._time_constant_s)
        return weight / max(seen_s, 1.0)

    def state(self) -> list[float]:
        """Return all that is kept, for ``from_state``."""
        return [self._time, self._sum, self._weight, self.mean]

    @classmethod
    def from_state(cls, time_constant_s: float, state: Sequence[float]) -> DecayedMean:
        """Go on from what ``state`` returned."""
        restored = cls(time_constant_s)
        restored._time, restored._sum, restored._weight, restored.mean = state
        return restored


class RunningMoments:
    """Mean and standard deviation of all values so far (Welford's method)."""

    __slots__ = ("_count", "_squares", "mean")

    def __init__(self) -> None:
        """Start without values."""
        self._count = 0
        self._squares = 0.0
        self.mean = 0.0

    def add(self, value: float) -> None:
        """Add a value."""
        self._count += 1
        delta = value - self.mean
        self.mean += delta / self._count
        self._squares += delta * (value - self.mean)

    @property
    def std(self) -> float:
        """Standard deviation of the values, 0 with fewer than two."""
        return math.sqrt(self._squares / self._count) if self._count > 1 else 0.0

    def state(self) -> list[float]:
        """Return all that is kept, for ``from_state``."""
        return [self._count, self._squares, self.mean]

    @classmethod
    def from_state(cls, state: Sequence[float]) -> RunningMoments:
        """Go on from what ``state`` returned."""
        restored = cls()
        count, restored._squares, restored.mean = state
        restored._count = int(count)
        return restored
