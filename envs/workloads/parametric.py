"""A generator of conversations from families of distributions, for sweeps over their parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field, PositiveInt, validate_call
from pydantic.dataclasses import dataclass

from conserve_gym.envs.fields import STRICT, NotNegative, Positive
from conserve_gym.envs.workloads.conversation import GapKind, Turn, WorkloadError


@dataclass(frozen=True, config=STRICT)
class LogNormal:
    """A log-normal distribution, moved and cut; with equal mean and median it is a constant.

    Attributes:
        median: Median before it is moved and cut.
        mean: Mean before it is moved and cut, at least the median.
        most: Larger values count as this.
        plus: Added to every value.
        share: Weight in a mixture.
        kind: What such a gap is; of lengths it says nothing.

    Raises:
        ValueError: The mean is below the median.
    """

    median: Positive
    mean: Positive
    most: Positive = math.inf
    plus: NotNegative = 0.0
    share: Positive = 1.0
    kind: GapKind = "unknown"

    def __post_init__(self) -> None:
        """Check mean and median against each other."""
        if self.mean < self.median:
            raise ValueError(f"mean={self.mean:g} is below median={self.median:g}")

    def draw(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """Return ``size`` values."""
        sigma = math.sqrt(2.0 * math.log(self.mean / self.median))
        values = self.median * np.exp(sigma * rng.standard_normal(size))
        drawn: np.ndarray = np.minimum(values, self.most) + self.plus
        return drawn


Mixture = Annotated[Sequence[LogNormal], Field(min_length=1)]


@dataclass(frozen=True, config=STRICT)
class Reset:
    """Conversations that end before a turn with a probability that grows with their context.

    Attributes:
        base_probability: With an empty context.
        context_scaling: How many times that with ``max_context_tokens``.
    """

    base_probability: Annotated[float, Field(gt=0.0, le=1.0)]
    context_scaling: NotNegative


class ParametricWorkload:
    """Draws lengths and gaps independently from mixtures of log-normals.

    Args:
        name: How it is called in tables.
        conversations: Conversations in an episode.
        first_input_tokens: The first prompt.
        appended_tokens: New tokens of later turns.
        output_tokens: Output.
        gap_s: Time between a turn's end and the next turn's arrival.
        turns: Number of turns; None leaves it to ``reset``.
        reset: When a conversation ends by itself; None leaves it to ``turns``.
        max_context_tokens: A conversation ends before a turn whose prompt reaches this.

    Raises:
        ValueError: Both or neither of ``turns`` and ``reset`` are given, or a mean is below a
            median.
    """

    @validate_call
    def __init__(
        self,
        name: str,
        conversations: PositiveInt,
        first_input_tokens: Mixture,
        appended_tokens: Mixture,
        output_tokens: Mixture,
        gap_s: Mixture,
        turns: Mixture | None,
        reset: Reset | None,
        max_context_tokens: PositiveInt,
    ) -> None:
        """Check that conversations end."""
        if (turns is None) == (reset is None):
            raise WorkloadError("workload needs either turns or reset")
        self.name = name
        self._conversations = conversations
        self._first_input = first_input_tokens
        self._appended = appended_tokens
        self._output = output_tokens
        self._gap = gap_s
        self._turns = turns
        self._reset = reset
        self._max_context_tokens = max_context_tokens

    def draw(self, rng: np.random.Generator) -> list[tuple[Turn, ...]]:
        """Return the turns of every conversation of an episode."""
        return [self._conversation(stream) for stream in rng.spawn(self._conversations)]

    def _conversation(self, rng: np.random.Generator) -> tuple[Turn, ...]:
        first = min(_length(self._first_input, rng), self._max_context_tokens)
        turns = [Turn(first, first, _length(self._output, rng), 0.0)]
        count = math.inf if self._turns is None else _length(self._turns, rng)
        while len(turns) < count:
            gap_s, kind = _drawn(self._gap, rng)
            new = _length(self._appended, rng)
            prompt = turns[-1].input_tokens + turns[-1].output_tokens + new
            if prompt >= self._max_context_tokens or self._ends(prompt, rng):
                break
            turns.append(Turn(prompt, new, _length(self._output, rng), gap_s, kind))
        return tuple(turns)

    def _ends(self, prompt: int, rng: np.random.Generator) -> bool:
        if self._reset is None:
            return False
        filled = prompt / self._max_context_tokens
        scaled = 1.0 + (self._reset.context_scaling - 1.0) * filled
        return rng.random() < self._reset.base_probability * scaled


def _drawn(mixture: Mixture, rng: np.random.Generator) -> tuple[float, GapKind]:
    """Return a value of a mixture and the kind of its component."""
    one = mixture[0]
    if len(mixture) > 1:
        shares = np.cumsum([component.share for component in mixture])
        one = mixture[int(np.searchsorted(shares, rng.random() * shares[-1], side="right"))]
    return float(one.draw(rng, 1)[0]), one.kind


def _length(mixture: Mixture, rng: np.random.Generator) -> int:
    return max(1, round(_drawn(mixture, rng)[0]))
