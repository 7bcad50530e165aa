"""Conversations that arrive when they were recorded."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from pydantic.dataclasses import dataclass

from conserve_gym.envs.fields import STRICT, Positive
from conserve_gym.envs.workloads.conversation import WorkloadError


@dataclass(frozen=True, config=STRICT)
class Replay:
    """The recorded arrivals of the conversations, the first one at 0, with times scaled.

    Nothing is drawn. What passes within a conversation is not scaled: more load is more
    conversations at once, not faster people and tools.

    Attributes:
        rate: Conversations a second on average that times are scaled to; None takes ``load``.
        load: How many times as densely as recorded they come.

    Raises:
        ValueError: A number is not above 0, or both say how dense.
    """

    rate: Positive | None = None
    load: Positive = 1.0

    def __post_init__(self) -> None:
        """Check that one of the two says how dense."""
        if self.rate is not None and self.load != 1.0:
            raise ValueError(f"rate={self.rate:g} and load={self.load:g}: give one of them")

    @property
    def name(self) -> str:
        """How it is called in tables."""
        if self.rate is not None:
            return f"recorded arrivals, scaled to {self.rate:g} conversations/s"
        return "recorded arrivals" + ("" if self.load == 1.0 else f", {self.load:g} × the load")

    def draw(
        self,
        rng: np.random.Generator,
        first_inputs: Sequence[int],
        recorded_s: Sequence[float] | None = None,
    ) -> list[float]:
        """Return the scaled arrival of each conversation.

        Raises:
            WorkloadError: The workload has no recorded arrivals, or they cannot be scaled.
        """
        if recorded_s is None:
            raise WorkloadError("arrivals=replay: the workload is drawn, it has no recorded times")
        unknown = sum(not math.isfinite(time) for time in recorded_s)
        if unknown:
            raise WorkloadError(
                f"arrivals=replay: {unknown:,} of the workload's {len(recorded_s):,} conversations "
                "were recorded without the time of their arrival"
            )
        times = np.asarray(recorded_s, dtype=np.float64)
        times = times - times.min()
        return [float(time) for time in times / self._load(times)]

    def _load(self, times: np.ndarray) -> float:
        if self.rate is None:
            return self.load
        span_s = float(times.max())
        if span_s == 0.0:
            raise WorkloadError(
                f"arrivals.rate={self.rate:g}: all {times.size:,} conversations were recorded at "
                "one time, which no scale spreads"
            )
        return self.rate * span_s / (times.size - 1)
