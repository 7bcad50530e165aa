"""A generator that draws conversations from quantile tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeAlias

import numpy as np
from pydantic import Discriminator, PositiveInt, Tag, validate_call

from conserve_gym.envs.fields import NotNegative
from conserve_gym.envs.workloads.conversation import Turn, WorkloadError
from conserve_gym.envs.workloads.quantile_tables import checked_levels, checked_table

Table: TypeAlias = np.ndarray[tuple[int], np.dtype[np.float64]]


def _form(value: object) -> str:
    return "quantiles" if isinstance(value, list | tuple) else "constant"


# The form is told beforehand, so that an error speaks of the one that was meant.
Gap = Annotated[
    Annotated[NotNegative, Tag("constant")] | Annotated[Sequence[float], Tag("quantiles")],
    Discriminator(_form),
]


class QuantileWorkload:
    """Draws turns, first input, appended input, output and gaps independently from their quantiles.

    Args:
        name: How it is called in tables.
        conversations: Conversations in an episode.
        max_turns: Longer conversations are cut.
        gap_s: Time between a turn's end and the next turn's arrival: a constant, or quantiles.
        levels: Probabilities of the tables' columns, from 0 to 1.
        turns: Quantiles of the number of turns.
        first_input_tokens: Quantiles of the first prompt.
        appended_tokens: Quantiles of the new tokens of later turns.
        output_tokens: Quantiles of the output, one row a turn; the last row serves all turns
            beyond it.

    Raises:
        ValueError: A table is not a quantile function, or a count is below 1.
    """

    @validate_call
    def __init__(
        self,
        name: str,
        conversations: PositiveInt,
        max_turns: PositiveInt,
        gap_s: Gap,
        levels: Sequence[float],
        turns: Sequence[float],
        first_input_tokens: Sequence[float],
        appended_tokens: Sequence[float],
        output_tokens: Sequence[Sequence[float]],
    ) -> None:
        """Check the tables."""
        self.name = name
        self._conversations = conversations
        self._max_turns = max_turns
        self._levels = checked_levels(levels)
        self._gap_s = gap_s if isinstance(gap_s, float) else self._table("gap_s", gap_s, least=0.0)
        self._turns = self._table("turns", turns)
        self._first_input = self._table("first_input_tokens", first_input_tokens)
        self._appended = self._table("appended_tokens", appended_tokens)
        if not output_tokens:
            raise WorkloadError("workload.output_tokens needs at least one row")
        self._output = [
            self._table(f"output_tokens[{turn}]", row) for turn, row in enumerate(output_tokens)
        ]

    def draw(self, rng: np.random.Generator) -> list[tuple[Turn, ...]]:
        """Return the turns of every conversation of an episode."""
        n, width = self._conversations, self._max_turns
        counts = np.minimum(self._quantile(self._turns, rng.random(n)), width).tolist()
        first = self._quantile(self._first_input, rng.random(n)).tolist()
        appended = self._quantile(self._appended, rng.random((n, width))).tolist()
        uniform = rng.random((n, width))
        outputs = np.empty((n, width), dtype=np.int64)
        for turn in range(width):
            row = self._output[min(turn, len(self._output) - 1)]
            outputs[:, turn] = self._quantile(row, uniform[:, turn])
        # Last, so that the same seed has the same lengths with tool time and without.
        if isinstance(self._gap_s, float):
            gaps = np.full((n, width), self._gap_s)
        else:
            gaps = np.interp(rng.random((n, width)), self._levels, self._gap_s)
        played = zip(first, appended, outputs.tolist(), gaps.tolist(), counts, strict=True)
        return [self._play(*one) for one in played]

    @staticmethod
    def _play(
        first: int, appended: list[int], outputs: list[int], gaps: list[float], count: int
    ) -> tuple[Turn, ...]:
        turns = [Turn(first, first, outputs[0], 0.0)]
        context = first + outputs[0]
        for turn in range(1, count):
            context += appended[turn]
            turns.append(Turn(context, appended[turn], outputs[turn], gaps[turn]))
            context += outputs[turn]
        return tuple(turns)

    def _quantile(self, table: Table, uniform: np.ndarray) -> np.ndarray:
        drawn: np.ndarray = np.rint(np.interp(uniform, self._levels, table)).astype(np.int64)
        return drawn

    def _table(self, field: str, values: Sequence[float], least: float = 1.0) -> Table:
        return checked_table(field, values, self._levels, least)
