"""A part of the recordings."""

from __future__ import annotations

import math

import numpy as np
from pydantic import NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from conserve_gym.envs.fields import STRICT
from conserve_gym.envs.workloads import splits
from conserve_gym.envs.workloads.changes.transform import Transform
from conserve_gym.envs.workloads.conversation import Recording, WorkloadError


@dataclass(frozen=True, config=STRICT)
class Sample(Transform):
    """Draws conversations without putting them back; their order stays.

    Attributes:
        conversations: How many.
        seed: Of the draw.
    """

    conversations: PositiveInt
    seed: NonNegativeInt = 0

    @property
    def name(self) -> str:
        """How it is called in tables."""
        return f"a sample of {self.conversations:,} (seed {self.seed})"

    def __call__(self, recordings: list[Recording]) -> list[Recording]:
        """Return the drawn ones."""
        _at_least(self.conversations, recordings, "sample.conversations")
        return drawn(recordings, self.conversations, np.random.default_rng(self.seed))


@dataclass(frozen=True, config=STRICT)
class First(Transform):
    """Takes the first conversations.

    Attributes:
        conversations: How many.
    """

    conversations: PositiveInt

    @property
    def name(self) -> str:
        """How it is called in tables."""
        return f"the first {self.conversations:,}"

    def __call__(self, recordings: list[Recording]) -> list[Recording]:
        """Return the first ones."""
        _at_least(self.conversations, recordings, "first.conversations")
        return recordings[: self.conversations]


@dataclass(frozen=True, config=STRICT)
class FirstInput(Transform):
    """Takes conversations by their first prompt, such as those recorded from their start on.

    Attributes:
        least: Shortest first prompt in tokens.
        most: Longest; None takes all.

    Raises:
        ValueError: ``most`` is below ``least``.
    """

    least: PositiveInt = 1
    most: PositiveInt | None = None

    def __post_init__(self) -> None:
        """Check the limits against each other."""
        if self.most is not None and self.most < self.least:
            raise ValueError(f"most={self.most} is below least={self.least}")

    @property
    def name(self) -> str:
        """How it is called in tables."""
        least = f"from {self.least:,} " if self.least > 1 else ""
        most = "" if self.most is None else f"up to {self.most:,} "
        return f"first prompts {least}{most}tokens" if least or most else "all first prompts"

    def __call__(self, recordings: list[Recording]) -> list[Recording]:
        """Return those with such a first prompt."""
        most = math.inf if self.most is None else self.most
        return [r for r in recordings if self.least <= r.turns[0].input_tokens <= most]


@dataclass(frozen=True, config=STRICT)
class OfSplit(Transform):
    """Takes the conversations of one split, told by their names.

    Attributes:
        part: Which one.
    """

    part: splits.Split

    @property
    def name(self) -> str:
        """How it is called in tables."""
        return f"{self.part} split"

    def __call__(self, recordings: list[Recording]) -> list[Recording]:
        """Return those of the split."""
        return splits.of_split(recordings, self.part)


def drawn(recordings: list[Recording], count: int, rng: np.random.Generator) -> list[Recording]:
    """Return so many, drawn without putting them back, in the order they stand in."""
    chosen = rng.choice(len(recordings), size=count, replace=False)
    return [recordings[i] for i in np.sort(chosen)]


def _at_least(count: int, recordings: list[Recording], field: str) -> None:
    if len(recordings) < count:
        raise WorkloadError(f"{field}={count:,}: there are only {len(recordings):,}")
