"""Poisson arrivals at a rate that changes with time: bursts at random, and the hours of a day."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from conserve_gym.envs.fields import STRICT, NotNegative, Positive

_DAY_S = 86_400.0
_LEAST_IN_A_CYCLE = 0.01


@dataclass(frozen=True, config=STRICT)
class OnOff:
    """Poisson arrivals at one of two rates in turn, each held for an exponential time.

    This is the two-state Markov-modulated Poisson process, begun in its stationary state.

    Attributes:
        rate: Conversations a second on average.
        on_s: Mean time at the higher rate.
        off_s: Mean time at the lower rate.
        off_share: Lower rate as a share of the higher one; 0 is silence.

    Raises:
        ValueError: A rate or a time is not above 0, ``off_share`` is not from 0 to 1, or both times
            are so short that it is Poisson's process.
    """

    rate: Positive
    on_s: Positive
    off_s: Positive
    off_share: Annotated[float, Field(ge=0.0, le=1.0)]

    def __post_init__(self) -> None:
        """Refuse times without end, or so short that an episode has no end of changes."""
        cycle_s = self.on_s + self.off_s
        if not _LEAST_IN_A_CYCLE <= self.rate * cycle_s < np.inf:
            raise ValueError(
                f"on_s={self.on_s:g}, off_s={self.off_s:g}: on and off together must bring at "
                f"least {_LEAST_IN_A_CYCLE} conversations at rate={self.rate:g}; with less it is "
                "Poisson's process"
            )
        if not self.on_rate < np.inf:
            raise ValueError(f"on_s={self.on_s:g} is too short for off_s={self.off_s:g}")

    @property
    def on_rate(self) -> float:
        """Higher rate in conversations a second."""
        return self.rate * (self.on_s + self.off_s) / (self.on_s + self.off_s * self.off_share)

    @property
    def name(self) -> str:
        """How it is called in tables."""
        on, off = self.on_rate, self.on_rate * self.off_share
        return (
            f"on/off, {self.rate:g} conversations/s on average: {on:.3g}/s for {self.on_s:g} s, "
            f"{off:.3g}/s for {self.off_s:g} s (means)"
        )

    def draw(
        self,
        rng: np.random.Generator,
        first_inputs: Sequence[int],
        recorded_s: Sequence[float] | None = None,
    ) -> list[float]:
        """Return the arrival times of the modulated process."""
        due = np.cumsum(rng.exponential(size=len(first_inputs)))
        begins_on = rng.random() * (self.on_s + self.off_s) < self.on_s
        means = (self.on_s, self.off_s) if begins_on else (self.off_s, self.on_s)
        rates = np.array([self.on_rate, self.on_rate * self.off_share])
        rates = rates if begins_on else rates[::-1]
        times, expected = np.zeros(1), np.zeros(1)  # expected: conversations until then
        while expected[-1] <= due[-1]:
            cycles = 16 + int((due[-1] - expected[-1]) / (self.rate * sum(means)))
            sojourns = rng.exponential(means, size=(cycles, 2))
            times = np.append(times, times[-1] + np.cumsum(sojourns))
            expected = np.append(expected, expected[-1] + np.cumsum(sojourns * rates))
        return [float(time) for time in np.interp(due, expected, times)]


@dataclass(frozen=True, config=STRICT)
class Diurnal:
    """Poisson arrivals whose rate follows a day, over and over.

    Attributes:
        rate: Conversations a second on average over the day.
        speed_up: How much faster than real the day passes, so that an episode of minutes sees hours
            of it.
        start_h: Hour at which an episode begins; None draws it, so that the mean over episodes is
            ``rate``.
        relative_rates: Rate in equal parts of the day, in any unit.

    Raises:
        ValueError: A number is out of its range, or the rates are 0 all day.
    """

    rate: Positive
    speed_up: Positive
    start_h: Annotated[float, Field(ge=0.0, lt=24.0)] | None
    relative_rates: tuple[NotNegative, ...]

    def __post_init__(self) -> None:
        """Check that conversations come at all."""
        if not 0.0 < sum(self.relative_rates) < np.inf:
            raise ValueError(f"relative_rates={self.relative_rates} need a sum above 0")

    @property
    def name(self) -> str:
        """How it is called in tables."""
        start = "a random hour" if self.start_h is None else f"{self.start_h:g} h"
        return (
            f"diurnal, {self.rate:g} conversations/s on average over a day that passes "
            f"{self.speed_up:g} × as fast, from {start}"
        )

    def draw(
        self,
        rng: np.random.Generator,
        first_inputs: Sequence[int],
        recorded_s: Sequence[float] | None = None,
    ) -> list[float]:
        """Return arrival times in the simulated clock's seconds."""
        start = rng.random() if self.start_h is None else self.start_h / 24.0
        # In days, and in shares of the conversations that a day brings.
        days = np.linspace(0.0, 1.0, len(self.relative_rates) + 1)
        shares = np.cumsum((0.0, *self.relative_rates))
        shares /= shares[-1]
        day_s = _DAY_S / self.speed_up
        due = np.cumsum(rng.exponential(size=len(first_inputs))) / (self.rate * day_s)
        whole, part = np.divmod(due + np.interp(start, days, shares), 1.0)
        times = (whole + np.interp(part, shares, days) - start) * day_s
        return [float(time) for time in np.maximum.accumulate(np.maximum(times, 0.0))]
