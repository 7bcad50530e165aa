"""When conversations arrive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from pydantic.dataclasses import dataclass

from conserve_gym.envs.fields import STRICT, NotNegative, Positive


class Arrivals(Protocol):
    """An arrival process.

    Attributes:
        name: How it is called in tables.
    """

    @property
    def name(self) -> str:
        """How it is called in tables."""

    def draw(
        self,
        rng: np.random.Generator,
        first_inputs: Sequence[int],
        recorded_s: Sequence[float] | None = None,
    ) -> list[float]:
        """Return one time a conversation in seconds; those that are drawn never fall.

        Args:
            rng: Source of randomness.
            first_inputs: First-turn prompt length of each conversation.
            recorded_s: When each conversation arrived in its recording; None if none was recorded.
        """


@dataclass(frozen=True, config=STRICT)
class Poisson:
    """Independent exponential gaps.

    Attributes:
        rate: Conversations a second.
        rate_high: If given, each episode draws its rate between ``rate`` and this.

    Raises:
        ValueError: A rate is not above 0, or ``rate_high`` is below ``rate``.
    """

    rate: Positive
    rate_high: Positive | None = None

    def __post_init__(self) -> None:
        """Check the rates against each other."""
        if self.rate_high is not None and self.rate_high < self.rate:
            raise ValueError(f"rate_high={self.rate_high} is below rate={self.rate}")

    @property
    def name(self) -> str:
        """How it is called in tables."""
        if self.rate_high is None:
            return f"Poisson, {self.rate:g} conversations/s"
        return f"Poisson, {self.rate:g} to {self.rate_high:g} conversations/s"

    def draw(
        self,
        rng: np.random.Generator,
        first_inputs: Sequence[int],
        recorded_s: Sequence[float] | None = None,
    ) -> list[float]:
        """Return Poisson arrival times."""
        rate = self.rate if self.rate_high is None else rng.uniform(self.rate, self.rate_high)
        gaps = rng.exponential(1.0 / rate, size=len(first_inputs))
        return [float(time) for time in np.cumsum(gaps)]


@dataclass(frozen=True, config=STRICT)
class Gamma:
    """Independent gamma gaps: with more variation than Poisson's, arrivals come in bursts.

    Attributes:
        rate: Conversations a second.
        cv: Coefficient of variation of the gaps; with 1 they are Poisson's.

    Raises:
        ValueError: ``rate`` or ``cv`` is not above 0.
    """

    rate: Positive
    cv: Positive

    @property
    def name(self) -> str:
        """How it is called in tables."""
        return f"gamma gaps with CV {self.cv:g}, {self.rate:g} conversations/s"

    def draw(
        self,
        rng: np.random.Generator,
        first_inputs: Sequence[int],
        recorded_s: Sequence[float] | None = None,
    ) -> list[float]:
        """Return the arrival times of a gamma renewal process."""
        variance = self.cv * self.cv
        gaps = rng.gamma(1.0 / variance, variance / self.rate, size=len(first_inputs))
        return [float(time) for time in np.cumsum(gaps)]


@dataclass(frozen=True, config=STRICT)
class RecordedPrefiller:
    """Poisson arrivals thinned by one prefill engine: the times at which it began each prompt.

    This is how the ConServe artifact records arrivals (``extract_arrival_traces.py`` at 2a8c3bc,
    2026-06-10): every arm replays the starts of one recorded prefiller run. When the Poisson rate
    is above what the prefiller can serve, arrivals become nearly regular.

    Attributes:
        rate: Poisson rate in front of the prefiller, conversations a second.
        base_ms: Prefill time of a prompt that does not depend on its length.
        token_us: What each token adds.
        square_ns: What each squared token adds.
    """

    rate: Positive
    base_ms: NotNegative
    token_us: NotNegative
    square_ns: NotNegative

    @property
    def name(self) -> str:
        """How it is called in tables."""
        return f"Poisson, {self.rate:g} conversations/s, recorded through one prefiller"

    def draw(
        self,
        rng: np.random.Generator,
        first_inputs: Sequence[int],
        recorded_s: Sequence[float] | None = None,
    ) -> list[float]:
        """Return the times at which the recorded prefiller began each prompt."""
        offered = np.cumsum(rng.exponential(1.0 / self.rate, size=len(first_inputs)))
        return self.starts(offered.tolist(), first_inputs)

    def starts(self, offered: Sequence[float], first_inputs: Sequence[int]) -> list[float]:
        """Return the times at which the prefiller begins each prompt.

        Args:
            offered: When each prompt comes to the prefiller, in seconds, never falling.
            first_inputs: Length of each prompt.
        """
        starts, free = [], 0.0
        for time, tokens in zip(offered, first_inputs, strict=True):
            start = max(time, free)
            seconds = self.base_ms * 1e-3
            seconds += self.token_us * 1e-6 * tokens + self.square_ns * 1e-9 * tokens * tokens
            free = start + seconds
            starts.append(start)
        return starts
