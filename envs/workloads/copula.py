"""A generator whose turns depend on each other as those of recorded conversations do."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple, TypeAlias

import numpy as np
from pydantic import Field, PositiveInt, validate_call
from pydantic.dataclasses import dataclass
from scipy.signal import lfilter
from scipy.special import ndtr

from conserve_gym.envs.fields import STRICT
from conserve_gym.envs.workloads.conversation import GapKind, Turn, WorkloadError
from conserve_gym.envs.workloads.quantile_tables import checked_levels, checked_table

Array: TypeAlias = np.ndarray
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Figures: TypeAlias = Sequence[float]

LATENTS = (
    *("first_input", "turns", "peak"),
    *("output", "appended", "tool_gap", "user_gap", "kind"),
)
"""What the copula ties together: a normal score a conversation of each."""

SERIES = LATENTS[3:]
"""Those of them that are levels of a series: a score a turn; gaps that no human made are tools'."""

_CANDIDATES = 16
_NONE = np.empty(0)


@dataclass(frozen=True, config=STRICT)
class KindOfGap:
    """Appending turns that come after one kind of gap.

    Attributes:
        share: Of appending turns, one a row.
        gap_s: Quantiles of the gap, one row a row of turns; the last serves all beyond it.
    """

    share: Sequence[Share]
    gap_s: Sequence[Figures]


@dataclass(frozen=True, config=STRICT)
class Rewrites:
    """Turns that keep less than half of what is held, such as a compaction or a way back.

    Attributes:
        share: Of later turns, one a row.
        kind: Kind of the gap before them.
        gap_s: Quantiles of that gap.
        kept_share: Quantiles of what is kept, over what was held.
        new_share: Quantiles of the new tokens, over what was held.
    """

    share: Sequence[Share]
    kind: GapKind
    gap_s: Figures
    kept_share: Figures
    new_share: Figures


@dataclass(frozen=True, config=STRICT)
class Persistence:
    """How turns of a conversation resemble each other, in normal scores.

    Attributes:
        level: Share of the variance that all turns of a conversation have in common.
        lag_1: Correlation of the rest between neighbouring turns.
    """

    level: Share = 0.0
    lag_1: Annotated[float, Field(gt=-1.0, lt=1.0)] = 0.0


class Scores(NamedTuple):
    """Where in their tables the values of a conversation's turns stand, from 0 to 1.

    Attributes:
        output: One a turn.
        appended: One a later turn; of a rewriting turn it is not used.
        gap: One a later turn.
        kind: One a later turn.
        rewritten: One a later turn, of the new tokens where it rewrites.
        first_input: The conversation's.
    """

    output: Array
    appended: Array
    gap: Array
    kind: Array
    rewritten: Array
    first_input: Array


class CopulaWorkload:
    """Draws conversations from quantile tables that a Gaussian copula ties together.

    Each conversation has a normal score for its first input, its number of turns, its peak context
    and its level of outputs, appends, gaps and kinds of gap, with the given correlations. The
    score of a turn is its conversation's level and a remainder that follows a first-order
    autoregression (:class:`Persistence`). Each score is read from a quantile table: that of the
    conversation, or of the row that the turn is in.

    A later turn keeps what is held, less what is dropped, and appends; what is dropped is read at
    the mirrored score of what is appended, so that the smallest appends go with the largest drops.
    Or it rewrites the context (:class:`Rewrites`). Where peaks are given, as for recordings that
    were cut at a context, 16 candidates of a conversation's series are drawn, and the one whose
    peak context is nearest to the drawn one is played, cut to the largest peak where it passes it.

    Args:
        name: How it is called in tables.
        conversations: Conversations in an episode.
        max_turns: Longer conversations are cut; None cuts none.
        levels: Probabilities of the tables' columns, from 0 to 1.
        turns: Numbers of turns that occur, rising.
        turns_up_to: Share of conversations with at most so many turns, one each.
        first_input_tokens: Quantiles of the first prompt: one row for all conversations, or one for
            those with one turn and one for the others.
        from_turn: First turn, from 0, of each row of outputs. Rows of what only later turns have
            begin at the second of them.
        output_tokens: Quantiles of the output, one row each.
        appended_tokens: Quantiles of the tokens that a later turn appends, one row each.
        dropped_tokens: Quantiles of the held tokens that an appending turn drops.
        kinds: Kinds of gap by name.
        rewrites: Turns that rewrite the context; None without any.
        peak_tokens: Quantiles of the largest prompt with its output; None leaves it free.
        correlations: Between the scores of a conversation, by their names; 0 where not given.
        persistence: Of each series by name.

    Raises:
        ValueError: A table is not a quantile function, or numbers do not fit together.
    """

    @validate_call
    def __init__(
        self,
        name: str,
        conversations: PositiveInt,
        max_turns: PositiveInt | None,
        levels: Figures,
        turns: Sequence[PositiveInt],
        turns_up_to: Sequence[Share],
        first_input_tokens: Sequence[Figures],
        from_turn: Sequence[int],
        output_tokens: Sequence[Figures],
        appended_tokens: Sequence[Figures],
        dropped_tokens: Figures,
        kinds: Mapping[GapKind, KindOfGap],
        rewrites: Rewrites | None,
        peak_tokens: Figures | None,
        correlations: Mapping[str, Mapping[str, float]],
        persistence: Mapping[str, Persistence],
    ) -> None:
        """Check the figures."""
        self.name = name
        self._conversations = conversations
        self._levels = checked_levels(levels)
        self._turns = np.asarray(turns)
        self._turns_up_to = np.asarray(turns_up_to, dtype=np.float64)
        shares_fit = self._turns.size and self._turns.shape == self._turns_up_to.shape
        if not shares_fit or (np.diff(self._turns) <= 0).any():
            raise WorkloadError("workload.turns must rise, with a share in turns_up_to for each")
        if self._turns_up_to[-1] != 1.0 or (np.diff(self._turns_up_to) < 0.0).any():
            raise WorkloadError("workload.turns_up_to must not fall, and end at 1")
        longest = int(self._turns[-1])
        self._max_turns = longest if max_turns is None else min(max_turns, longest)
        self._first_input = self._table("first_input_tokens", first_input_tokens, least=1.0)
        if len(self._first_input) > 2:
            raise WorkloadError("workload.first_input_tokens has more than two rows")
        later = len(from_turn) - 1
        if list(from_turn[:2]) not in ([0], [0, 1]) or (np.diff(from_turn) <= 0).any():
            raise WorkloadError(f"workload.from_turn={list(from_turn)} must rise from 0, 1")
        self._output = self._table("output_tokens", output_tokens, 1.0, later + 1)
        self._appended = self._table("appended_tokens", appended_tokens, 1.0, later)
        self._dropped = self._table("dropped_tokens", [dropped_tokens], 0.0)
        none = [0.0] * self._levels.size
        rewrites = rewrites or Rewrites([0.0] * later, "unknown", none, none, none)
        if len(rewrites.share) != later:
            raise WorkloadError(f"workload.rewrites.share needs {later} values")
        self._rewriting = np.asarray(rewrites.share, dtype=np.float64)
        self._rewriting_kind = rewrites.kind
        self._rewriting_gap = self._table("rewrites.gap_s", [rewrites.gap_s], 0.0)[0]
        self._kept_share = self._table("rewrites.kept_share", [rewrites.kept_share], 0.0)
        self._new_share = self._table("rewrites.new_share", [rewrites.new_share], 0.0)
        self._peak, self._most = None, sys.maxsize
        if peak_tokens is not None:
            self._peak = self._table("peak_tokens", [peak_tokens], 1.0)
            self._most = int(self._peak[0, -1])
        self._kinds = tuple(kinds)
        self._by_user = np.array([kind == "user" for kind in kinds])
        self._gaps = [self._table(f"kinds.{k}.gap_s", kinds[k].gap_s, 0.0) for k in kinds]
        self._kind_ends = self._ends(kinds, later)
        self._persistence = {one: Persistence() for one in SERIES}
        for series, one in persistence.items():
            if series not in SERIES:
                raise WorkloadError(f"workload.persistence.{series} is none of {', '.join(SERIES)}")
            self._persistence[series] = one
        self._mixing = _cholesky(correlations)
        places = np.arange(self._max_turns)
        self._row = np.searchsorted(np.asarray(from_turn), places, side="right") - 1

    def draw(self, rng: np.random.Generator) -> list[tuple[Turn, ...]]:
        """Return the turns of every conversation of an episode."""
        return [turns for turns, _ in self.draw_scored(rng)]

    def draw_scored(self, rng: np.random.Generator) -> list[tuple[tuple[Turn, ...], Scores]]:
        """Return the turns of every conversation of an episode, and the scores behind them."""
        normal = rng.standard_normal((self._conversations, len(LATENTS)))
        uniform = ndtr((normal @ self._mixing.T)[:, : -len(SERIES)])
        counts = self._turns[np.searchsorted(self._turns_up_to, uniform[:, 1])]
        rows = np.minimum(counts > 1, len(self._first_input) - 1)
        first = np.rint(self._read(self._first_input, rows, uniform[:, 0]))
        counts = np.minimum(counts, self._max_turns)
        if self._peak is None:
            peaks = np.full(self._conversations, math.inf)
        else:
            peaks = np.interp(uniform[:, 2], self._levels, self._peak[0])
        each = zip(normal, first.tolist(), counts.tolist(), peaks.tolist(), strict=True)
        drawn = (self._conversation(rng, z, int(f), n, peak) for z, f, n, peak in each)
        at = uniform[:, [0]]
        return [
            (turns, scores._replace(first_input=at[i])) for i, (turns, scores) in enumerate(drawn)
        ]

    def _conversation(
        self, rng: np.random.Generator, normal: Array, first: int, count: int, peak: float
    ) -> tuple[tuple[Turn, ...], Scores]:
        later, rows = count - 1, self._row[:count]
        if not later:
            at = self._scores(rng, "output", (normal @ self._mixing.T)[None], 1)
            output = round(float(self._read(self._output, rows, at)[0, 0]))
            return (Turn(first, first, output, 0.0),), Scores(at[0], *[_NONE] * 5)
        candidates = _CANDIDATES if math.isfinite(peak) else 1
        normals = np.tile(normal, (candidates, 1))
        normals[1:, -len(SERIES) :] = rng.standard_normal((candidates - 1, len(SERIES)))
        levels = normals @ self._mixing.T
        output_at = self._scores(rng, "output", levels, count)
        appended_at = self._scores(rng, "appended", levels, later)
        tool_at = self._scores(rng, "tool_gap", levels, later)
        user_at = self._scores(rng, "user_gap", levels, later)
        kind_at = self._scores(rng, "kind", levels, later)
        rewriting, kept_at, new_at = rng.random((3, candidates, later))

        kinds = (kind_at > self._kind_ends[:-1, None, rows[1:] - 1]).sum(axis=0)
        rewrites = rewriting < self._rewriting[rows[1:] - 1]
        kept = np.where(rewrites, self._read(self._kept_share, None, kept_at), 1.0)
        new = np.where(rewrites, self._read(self._new_share, None, new_at), 0.0)
        outputs = np.rint(self._read(self._output, rows, output_at))
        appended = np.rint(self._read(self._appended, rows[1:] - 1, appended_at))
        dropped = np.rint(self._read(self._dropped, None, 1.0 - appended_at))

        user = ~rewrites & self._by_user[kinds]
        gap_at = np.where(user, _in_turn(user_at, user), _in_turn(tool_at, ~user))

        best = 0
        if candidates > 1:
            held = first + outputs[:, 0]
            peaks = held.copy()
            added = np.where(rewrites, 0.0, appended - dropped) + outputs[:, 1:]
            grown = kept + new
            for turn in range(later):
                held = held * grown[:, turn] + added[:, turn]
                np.maximum(peaks, held, out=peaks)
            off = np.abs(np.log(peaks / peak))
            best = int((off + (peaks > self._most)).argmin())  # too large only if all are

        played = [Turn(first, first, int(outputs[best, 0]), 0.0)]
        held_tokens = first + int(outputs[best, 0])
        for i in range(later):
            output = int(outputs[best, i + 1])
            if rewrites[best, i]:
                resident = int(kept[best, i] * held_tokens)
                fresh = round(new[best, i] * held_tokens)
                kind, table = self._rewriting_kind, self._rewriting_gap
            else:
                resident = held_tokens - min(int(dropped[best, i]), held_tokens // 2)
                fresh = int(appended[best, i])
                which = int(kinds[best, i])
                kind, gaps = self._kinds[which], self._gaps[which]
                table = gaps[min(int(rows[i + 1]) - 1, len(gaps) - 1)]
            fresh = max(1, min(fresh, self._most - output))
            resident = max(0, min(resident, self._most - output - fresh))
            seconds = float(np.interp(gap_at[best, i], self._levels, table))
            played.append(Turn(resident + fresh, fresh, output, seconds, kind))
            held_tokens = resident + fresh + output
        return tuple(played), Scores(
            output_at[best], appended_at[best], gap_at[best], kind_at[best], new_at[best], _NONE
        )

    def _scores(self, rng: np.random.Generator, series: str, levels: Array, count: int) -> Array:
        """Return scores of a series, one row a candidate, around the candidates' levels."""
        one, level = self._persistence[series], levels[:, [LATENTS.index(series)]]
        noise = rng.standard_normal((len(levels), count))
        if one.lag_1 and count:
            noise[:, 1:] *= np.sqrt(1.0 - one.lag_1**2)
            noise = lfilter([1.0], [1.0, -one.lag_1], noise, axis=1)
        scores: Array = ndtr(np.sqrt(one.level) * level + np.sqrt(1.0 - one.level) * noise)
        return scores

    def _read(self, table: Array, rows: Array | None, scores: Array) -> Array:
        """Return the values at scores; ``rows`` says in which row of the table, None in the one."""
        values: Array
        if rows is None:
            values = np.interp(scores, self._levels, table[0])
            return values
        right = np.clip(np.searchsorted(self._levels, scores), 1, self._levels.size - 1)
        low, high = self._levels[right - 1], self._levels[right]
        part = (scores - low) / (high - low)
        values = (1.0 - part) * table[rows, right - 1] + part * table[rows, right]
        return values

    def _table(
        self, field: str, rows: Sequence[Figures], least: float, count: int | None = None
    ) -> Array:
        if not rows and count != 0:
            raise WorkloadError(f"workload.{field} needs at least one row")
        if count is not None and len(rows) != count:
            raise WorkloadError(f"workload.{field} has {len(rows)} rows, expected {count}")
        checked = [checked_table(field, row, self._levels, least) for row in rows]
        return np.asarray(checked, dtype=np.float64).reshape(len(rows), self._levels.size)

    def _ends(self, kinds: Mapping[GapKind, KindOfGap], later: int) -> Array:
        """Return where in a kind's score each kind ends, one column a row of turns."""
        shares = [kinds[kind].share for kind in kinds]
        if not kinds or any(len(share) != later for share in shares):
            raise WorkloadError(f"workload.kinds need {later} shares each")
        ends = np.cumsum(np.asarray(shares, dtype=np.float64).reshape(len(shares), later), axis=0)
        if not np.allclose(ends[-1], 1.0, atol=1e-3):
            raise WorkloadError(f"workload.kinds: shares of a row add up to {ends[-1].tolist()}")
        return ends


def _in_turn(scores: Array, used: Array) -> Array:
    """Return a series at the places where it is used: its first score at the first of them."""
    order = np.maximum(np.cumsum(used, axis=1) - 1, 0)
    placed: Array = np.take_along_axis(scores, order, axis=1)
    return placed


def _cholesky(correlations: Mapping[str, Mapping[str, float]]) -> Array:
    matrix = np.eye(len(LATENTS))
    for one, row in correlations.items():
        for other, value in row.items():
            if one not in LATENTS or other not in LATENTS or one == other:
                raise WorkloadError(
                    f"workload.correlations.{one}.{other} must name two of {', '.join(LATENTS)}"
                )
            i, j = LATENTS.index(one), LATENTS.index(other)
            matrix[i, j] = matrix[j, i] = value
    try:
        lower: Array = np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        raise WorkloadError(f"workload.correlations cannot hold at once: {correlations}") from None
    return lower
