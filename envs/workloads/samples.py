"""Figures of conversations: what each of them says, in arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from scipy.stats import rankdata

from conserve_gym.envs.workloads.conversation import GapKind, Turn, WorkloadError
from conserve_gym.envs.workloads.copula import LATENTS, SERIES

Array: TypeAlias = np.ndarray


@dataclass(frozen=True)
class Samples:
    """Lengths and gaps of conversations; arrays of later turns have one value each, in order.

    Attributes:
        turns: Turns of each conversation.
        first_input: First prompt of each conversation.
        peak: Largest prompt with its output of each conversation.
        output: Output of every turn.
        output_turn: Which turn that is, from 0.
        conversation: Which conversation a later turn belongs to.
        turn: Which turn it is.
        new: Its new tokens.
        held: Prompt and output of the turn before it.
        kept: Tokens that it reuses.
        gap_s: The gap before it; NaN if unknown.
        kind: Kind of that gap, an index of ``kinds``.
        kinds: The kinds of gap that occur, the most frequent first.
    """

    turns: Array
    first_input: Array
    peak: Array
    output: Array
    output_turn: Array
    conversation: Array
    turn: Array
    new: Array
    held: Array
    kept: Array
    gap_s: Array
    kind: Array
    kinds: tuple[GapKind, ...]

    @classmethod
    def of(
        cls, conversations: Iterable[Sequence[Turn]], kinds: tuple[GapKind, ...] | None = None
    ) -> Samples:
        """Return the figures of conversations.

        Args:
            conversations: Turns of each.
            kinds: Order of the kinds of gap; None counts them.

        Raises:
            WorkloadError: There are no conversations.
        """
        first, counts, peaks = [], [], []
        outputs: list[int] = []
        places: list[int] = []
        later: list[tuple[float, ...]] = []
        names: list[GapKind] = []
        for number, turns in enumerate(conversations):
            counts.append(len(turns))
            first.append(turns[0].input_tokens)
            peaks.append(max(turn.input_tokens + turn.output_tokens for turn in turns))
            outputs += [turn.output_tokens for turn in turns]
            places += range(len(turns))
            for place, (before, turn) in enumerate(pairwise(turns), start=1):
                held = before.input_tokens + before.output_tokens
                kept = turn.input_tokens - turn.new_tokens
                later.append((number, place, turn.new_tokens, held, kept, turn.gap_s))
                names.append(turn.gap_kind)
        if not counts:
            raise WorkloadError("no conversations")
        if kinds is None:
            kinds = tuple(sorted(set(names), key=lambda name: (-names.count(name), name)))
        columns = np.array(later, dtype=np.float64).reshape(-1, 6).T
        return cls(
            np.array(counts, dtype=np.float64),
            np.array(first, dtype=np.float64),
            np.array(peaks, dtype=np.float64),
            np.array(outputs, dtype=np.float64),
            np.array(places),
            columns[0].astype(int),
            columns[1].astype(int),
            columns[2],
            columns[3],
            columns[4],
            columns[5],
            np.array([kinds.index(name) for name in names], dtype=int),
            kinds,
        )

    @property
    def rewrites(self) -> Array:
        """Whether each later turn keeps less than half of what was held."""
        return self.kept < 0.5 * self.held

    def marginals(self) -> dict[str, Array]:
        """Return the values of each quantity by name."""
        return {
            "turns": self.turns,
            "first_input": self.first_input,
            "later_new": self.new,
            "output": self.output,
            "gap_s": self.gap_s[~np.isnan(self.gap_s)],
            "peak_context": self.peak,
        }

    def rank_correlations(self) -> Array:
        """Return Spearman's, between the conversations' figures in the order of the latents.

        Of a series it is the mean over a conversation's turns, of logarithms but for kinds;
        rewriting turns are left out but for outputs. 0 where a figure is constant.
        """
        starts = np.concatenate([[0], np.cumsum(self.turns)[:-1]]).astype(int)
        outputs = np.add.reduceat(np.log(self.output), starts) / self.turns
        tool, user = self._tool_and_user
        columns = {
            "first_input": self.first_input,
            "turns": self.turns,
            "peak": self.peak,
            "output": outputs,
            "appended": self._means(np.log(self.new), ~self.rewrites),
            "tool_gap": self._means(np.log1p(self.gap_s), tool),
            "user_gap": self._means(np.log1p(self.gap_s), user),
            "kind": self._means(self.kind.astype(float), ~self.rewrites),
        }
        matrix = np.eye(len(LATENTS))
        for i, one in enumerate(LATENTS):
            for j, other in enumerate(LATENTS[:i]):
                used = np.isfinite(columns[one]) & np.isfinite(columns[other])
                value = _correlation(rankdata(columns[one][used]), rankdata(columns[other][used]))
                matrix[i, j] = matrix[j, i] = value
        return matrix

    def persistence(self) -> dict[str, tuple[float, float]]:
        """Return of each series' ranks: share of variance between conversations, and lag 1."""
        starts = np.repeat(np.arange(self.turns.size), self.turns.astype(int))
        appends = ~self.rewrites
        tool, user = self._tool_and_user
        series = {
            "output": (self.output, starts),
            "appended": (self.new[appends], self.conversation[appends]),
            "tool_gap": (self.gap_s[tool], self.conversation[tool]),
            "user_gap": (self.gap_s[user], self.conversation[user]),
            "kind": (self.kind[appends].astype(float), self.conversation[appends]),
        }
        return {name: _within(*series[name]) for name in SERIES}

    @property
    def _tool_and_user(self) -> tuple[Array, Array]:
        """Whether each later turn appends after a known gap without a human, and with one alone."""
        known = ~self.rewrites & ~np.isnan(self.gap_s)
        user = np.array([kind == "user" for kind in self.kinds], dtype=bool)[self.kind]
        return known & ~user, known & user

    def _means(self, values: Array, used: Array) -> Array:
        """Return each conversation's mean over its turns that are used; NaN without any."""
        of, size = self.conversation[used], self.turns.size
        with np.errstate(invalid="ignore"):
            means: Array = np.bincount(of, values[used], size) / np.bincount(of, minlength=size)
        return means


def _within(values: Array, conversation: Array) -> tuple[float, float]:
    if values.size < 3 or np.ptp(values) == 0.0:
        return 0.0, 0.0
    ranks = rankdata(values) / values.size
    _, of = np.unique(conversation, return_inverse=True)
    counts = np.bincount(of)
    means = np.bincount(of, ranks) / counts
    degrees = values.size - counts.size
    level = 0.0
    if degrees > 0:
        level = 1.0 - float(((ranks - means[of]) ** 2).sum() / degrees / ranks.var())
    same = of[1:] == of[:-1]
    return level, _correlation(ranks[1:][same], ranks[:-1][same])


def _correlation(one: Array, other: Array) -> float:
    if one.size < 3 or np.ptp(one) == 0.0 or np.ptp(other) == 0.0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])
