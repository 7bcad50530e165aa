"""Figures of recorded conversations for :class:`CopulaWorkload`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from conserve_gym.envs.workloads.conversation import Turn, WorkloadError
from conserve_gym.envs.workloads.copula import LATENTS, SERIES, CopulaWorkload, Scores
from conserve_gym.envs.workloads.samples import Samples
from conserve_gym.files import whole

Array: TypeAlias = np.ndarray

LEVELS = np.array(
    [
        *(0.0, 0.001, 0.005, 0.01),
        *(np.arange(1, 48) / 50.0),
        *(0.95, 0.96, 0.97),
        *(np.arange(392, 400) / 400.0),
        *(0.999, 1.0),
    ]
)
"""Probabilities of the tables' columns: denser where lengths and gaps have their long tails."""

_LEAST = 100  # turns in a row of a table, and gaps in a row of a kind
_COUNTS = 256  # numbers of turns that are told apart
_ROUNDS = 8
_TABLE_ROUNDS = 3  # more, in which correlations and persistence stay
_STEP = 0.7  # of the difference that a round takes away
_DRAWN_TURNS = 100_000  # drawn in a round
_TABLE_TURNS = 400_000  # and in a round for the tables alone
_MOST = 0.95  # of a correlation, so that a turn is never another's copy


def fit(
    name: str,
    conversations: Sequence[Sequence[Turn]],
    episode: int,
    peaks: bool,
    step: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Return the arguments of a :class:`CopulaWorkload` that draws such conversations.

    The tables begin as the quantiles of the recordings, and the scores' correlations and
    persistence as their ranks'. Then each round draws many conversations, measures them as the
    recordings were measured, takes most of the difference out of correlations and persistence, and
    reads each table anew at the scores that its turns really had: long conversations have levels
    of their own, so these are not spread evenly.

    Args:
        name: How the workload is called.
        conversations: Turns of each recording; a gap that is NaN is left out of its kind's table,
            and one kind without any known gap has gaps of 0 s.
        episode: Conversations in an episode.
        peaks: Whether the peak context is drawn too: for recordings that were cut at a context.
        step: Called after each round with how many are done and how many there are.

    Raises:
        WorkloadError: No recording has a second turn.
    """
    recorded = Samples.of(conversations)
    if not recorded.turn.size:
        raise WorkloadError("no recording has a second turn: there is nothing to fit")
    fitting = _Fit(name, recorded, episode, peaks)
    rounds = _ROUNDS + _TABLE_ROUNDS
    for done in range(rounds):
        fitting.improve(np.random.default_rng(done), tables_only=done >= _ROUNDS)
        step(done + 1, rounds)
    return fitting.figures()


def write(path: Path, figures: dict[str, Any], head: Sequence[str]) -> None:
    """Write a workload's figures as YAML, one table a line; the file appears whole or not at all.

    Args:
        path: The file.
        figures: Arguments of a :class:`CopulaWorkload`.
        head: Lines of the comment above: source, filters and what was imputed.
    """
    lines = [f"# {line}".rstrip() for line in head]
    lines += ["_target_: conserve_gym.envs.workloads.copula.CopulaWorkload"]
    lines += _yaml(figures, "")
    with whole(path) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _yaml(value: dict[str, Any], indent: str) -> list[str]:
    lines = []
    for key, one in value.items():
        if isinstance(one, dict) and one and not all(_plain(v) for v in one.values()):
            lines += [f"{indent}{key}:", *_yaml(one, indent + "  ")]
        elif isinstance(one, list) and one and isinstance(one[0], list):
            lines += [f"{indent}{key}:", *(f"{indent}  - {json.dumps(row)}" for row in one)]
        elif isinstance(one, dict):
            inner = ", ".join(f"{k}: {json.dumps(v)}" for k, v in one.items())
            lines.append(f"{indent}{key}: {{{inner}}}")
        else:
            lines.append(f"{indent}{key}: {json.dumps(one)}")
    return lines


def _plain(value: object) -> bool:
    return isinstance(value, int | float)


class _Fit:
    def __init__(self, name: str, recorded: Samples, episode: int, peaks: bool) -> None:
        self._name = name
        self._recorded = recorded
        self._episode = episode
        self._peaks = peaks
        self._from_turn = _rows(recorded)
        later = np.asarray(self._from_turn[1:])
        self._row = np.searchsorted(later, recorded.turn, side="right") - 1
        self._output_row = _row(self._from_turn, recorded.output_turn)
        self._wanted = recorded.rank_correlations()
        self._wanted_persistence = recorded.persistence()
        self._persistence = {
            name: [float(np.clip(level, 0.0, _MOST)), float(np.clip(lag_1, -_MOST, _MOST))]
            for name, (level, lag_1) in self._wanted_persistence.items()
        }
        self._unused = [] if peaks else [LATENTS.index("peak")]
        self._matrix = _possible(self._wanted, self._unused)
        self._scale = 1.0  # of the new tokens of rewrites
        self._tables()

    def _tables(self) -> None:
        """Set every table as if scores were spread evenly."""
        recorded, appends = self._recorded, ~self._recorded.rewrites
        several = recorded.turns > 1
        apart = min(several.sum(), (~several).sum()) >= _LEAST
        self._first_input_of = [~several, several] if apart else [recorded.turns > 0]
        self._first_input = [
            _quantiles(recorded.first_input[of], LEVELS) for of in self._first_input_of
        ]
        self._output = [
            _quantiles(recorded.output[self._output_row == row], LEVELS)
            for row in range(len(self._from_turn))
        ]
        self._appended = [
            _quantiles(recorded.new[appends & (self._row == row)], LEVELS)
            for row in range(len(self._from_turn) - 1)
        ]
        self._dropped = _quantiles((recorded.held - recorded.kept)[appends], LEVELS)
        rewritten = recorded.new[recorded.rewrites] / recorded.held[recorded.rewrites]
        self._new_share = _quantiles(rewritten, LEVELS)
        self._shares, self._gaps, self._gap_rows = [], [], []
        rows = range(len(self._appended))
        for kind in range(len(recorded.kinds)):
            counts = [self._gaps_of(kind, row).size for row in rows]
            self._gap_rows.append(min(counts) >= _LEAST)
            of = rows if self._gap_rows[-1] else [-1]
            self._gaps.append([_quantiles(self._gaps_of(kind, row), LEVELS) for row in of])
            of_kind = recorded.kind == kind
            self._shares.append([float(of_kind[appends & (self._row == r)].mean()) for r in rows])

    def _gaps_of(self, kind: int, row: int) -> Array:
        """Return the known gaps of a kind before appending turns of a row, -1 for all rows."""
        recorded = self._recorded
        used = (recorded.kind == kind) & ~np.isnan(recorded.gap_s) & ~recorded.rewrites
        if row >= 0:
            used &= self._row == row
        gaps: Array = recorded.gap_s[used]
        return gaps

    def improve(self, rng: np.random.Generator, tables_only: bool) -> None:
        """Draw, compare, and correct tables, correlations and persistence."""
        turns = _TABLE_TURNS if tables_only else _DRAWN_TURNS
        count = int(np.ceil(turns / self._recorded.turns.mean()))
        figures = self.figures() | {"conversations": count}
        scored = CopulaWorkload(**figures).draw_scored(rng)
        drawn = Samples.of((turns for turns, _ in scored), self._recorded.kinds)
        each = [scores for _, scores in scored]
        self._reread(drawn, Scores(*(np.concatenate(one) for one in zip(*each, strict=True))))
        if tables_only:
            return
        self._matrix = _possible(
            self._matrix + _STEP * (self._wanted - drawn.rank_correlations()), self._unused
        )
        for name, (level, lag_1) in drawn.persistence().items():
            wanted, one = self._wanted_persistence[name], self._persistence[name]
            one[0] = float(np.clip(one[0] + _STEP * (wanted[0] - level), 0.0, _MOST))
            one[1] = float(np.clip(one[1] + _STEP * (wanted[1] - lag_1), -_MOST, _MOST))

    def _reread(self, drawn: Samples, scores: Scores) -> None:
        recorded, appends = self._recorded, ~self._recorded.rewrites
        drawn_row = _row(self._from_turn, drawn.turn) - 1
        drawn_output_row = _row(self._from_turn, drawn.output_turn)
        drawn_appends = ~drawn.rewrites
        if len(self._first_input) > 1:
            for row, drawn_of in enumerate((drawn.turns == 1, drawn.turns > 1)):
                values = recorded.first_input[self._first_input_of[row]]
                self._first_input[row] = _quantiles(values, _spread(scores.first_input[drawn_of]))
        for row in range(len(self._output)):
            at = _spread(scores.output[drawn_output_row == row])
            self._output[row] = _quantiles(recorded.output[self._output_row == row], at)
        for row in range(len(self._appended)):
            at = _spread(scores.appended[drawn_appends & (drawn_row == row)])
            values = recorded.new[appends & (self._row == row)]
            self._appended[row] = _quantiles(values, at)
            within = scores.kind[drawn_appends & (drawn_row == row)]
            if within.size:
                of_row = recorded.kind[appends & (self._row == row)]
                ends = np.cumsum([(of_row == kind).mean() for kind in range(len(self._shares))])
                ends = np.quantile(within, np.clip(ends, 0.0, 1.0))
                ends[-1] = 1.0
                for kind, share in enumerate(np.diff(ends, prepend=0.0)):
                    self._shares[kind][row] = float(share)
        dropped = (recorded.held - recorded.kept)[appends]
        self._dropped = _quantiles(dropped, _spread(1.0 - scores.appended[drawn_appends]))
        if not drawn_appends.all():
            rewritten = recorded.new[recorded.rewrites] / recorded.held[recorded.rewrites]
            at = _spread(scores.rewritten[~drawn_appends])
            self._new_share = _quantiles(rewritten, at)
            self._scale *= recorded.new[recorded.rewrites].mean() / drawn.new[~drawn_appends].mean()
        for kind, by_row in enumerate(self._gap_rows):
            for row in range(len(self._gaps[kind])):
                used = drawn_appends & (drawn.kind == kind)
                if by_row:
                    used &= drawn_row == row
                values = self._gaps_of(kind, row if by_row else -1)
                self._gaps[kind][row] = _quantiles(values, _spread(scores.gap[used]))

    def figures(self) -> dict[str, Any]:
        """Return the arguments of a workload, rounded as they are written."""
        recorded = self._recorded
        shares = np.round(np.array(self._shares), 4)
        shares[0] = np.round(1.0 - shares[1:].sum(axis=0), 4)
        kinds = {
            str(kind): {
                "share": shares[i].tolist(),
                "gap_s": [_rounded(row, 2) for row in self._gaps[i]],
            }
            for i, kind in enumerate(recorded.kinds)
        }
        turns = np.unique(recorded.turns)
        if turns.size > _COUNTS:
            levels = np.arange(1, _COUNTS + 1) / _COUNTS
            turns = np.unique(np.quantile(recorded.turns, levels, method="inverted_cdf"))
        correlations = {
            one: {LATENTS[j]: round(float(self._matrix[i, j]), 3) for j in range(i)}
            for i, one in enumerate(LATENTS)
            if i and i not in self._unused
        }
        return {
            "name": self._name,
            "conversations": self._episode,
            "max_turns": None,
            "levels": LEVELS.round(4).tolist(),
            "turns": turns.astype(int).tolist(),
            "turns_up_to": [round(float((recorded.turns <= n).mean()), 5) for n in turns],
            "first_input_tokens": [_rounded(row) for row in self._first_input],
            "peak_tokens": _rounded(_quantiles(recorded.peak, LEVELS)) if self._peaks else None,
            "from_turn": self._from_turn,
            "output_tokens": [_rounded(row) for row in self._output],
            "appended_tokens": [_rounded(row) for row in self._appended],
            "dropped_tokens": _rounded(self._dropped),
            "rewrites": self._rewrites(),
            "kinds": kinds,
            "correlations": correlations,
            "persistence": {name: self._persistent(name) for name in SERIES},
        }

    def _rewrites(self) -> dict[str, Any] | None:
        recorded, rewrites = self._recorded, self._recorded.rewrites
        if not rewrites.any():
            return None
        gaps = recorded.gap_s[rewrites]
        kept = recorded.kept[rewrites] / recorded.held[rewrites]
        rows = range(len(self._appended))
        return {
            "share": [round(float(rewrites[self._row == row].mean()), 5) for row in rows],
            "kind": str(recorded.kinds[np.bincount(recorded.kind[rewrites]).argmax()]),
            "gap_s": _rounded(_quantiles(gaps[~np.isnan(gaps)], LEVELS), 2),
            "kept_share": _rounded(_quantiles(kept, LEVELS), 4),
            "new_share": _rounded(self._new_share * self._scale, 4),
        }

    def _persistent(self, name: str) -> dict[str, float]:
        level, lag_1 = self._persistence[name]
        rest = float(np.clip((lag_1 - level) / (1.0 - level), -_MOST, _MOST))
        return {"level": round(level, 3), "lag_1": round(rest, 3)}


def _rows(recorded: Samples) -> list[int]:
    """Return the first turns of rows: 0 to 4, and twice as many each, while turns suffice."""
    starts = [0, 1]
    for start in (2, 3, 4, *(2**power for power in range(3, 20))):
        counts = [
            ((recorded.turn >= one) & (recorded.turn < other)).sum()
            for one, other in ((starts[-1], start), (start, np.inf))
        ]
        if min(counts) >= _LEAST:
            starts.append(start)
    return starts


def _row(from_turn: Sequence[int], turn: Array) -> Array:
    return np.searchsorted(np.asarray(from_turn), turn, side="right") - 1


def _quantiles(values: Array, levels: Array) -> Array:
    """Return a quantile table; of nothing, zeros."""
    return np.quantile(values, levels) if values.size else np.zeros(levels.size)


def _spread(scores: Array) -> Array:
    """Return the share of scores up to each level."""
    if not scores.size:
        return LEVELS
    shares: Array = np.searchsorted(np.sort(scores), LEVELS, side="right") / scores.size
    shares[0], shares[-1] = 0.0, 1.0
    return shares


def _rounded(table: Array, digits: int = 0) -> list[float]:
    values = np.round(table, digits).tolist()
    return [int(value) if value == int(value) else value for value in values]


def _possible(matrix: Array, unused: Sequence[int]) -> Array:
    """Return the nearest matrix of correlations, without those of ``unused``."""
    matrix = np.clip(matrix, -_MOST, _MOST)
    for i in unused:
        matrix[i], matrix[:, i] = 0.0, 0.0
    np.fill_diagonal(matrix, 1.0)
    values, vectors = np.linalg.eigh(matrix)
    matrix = vectors * np.maximum(values, 0.02) @ vectors.T
    scale = np.sqrt(np.diag(matrix))
    scaled: Array = matrix / np.outer(scale, scale)
    return scaled
