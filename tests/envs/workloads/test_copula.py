"""Draws have the tables' quantiles, and the copula's dependence."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from conserve_gym.envs.workloads.conversation import Turn, WorkloadError
from conserve_gym.envs.workloads.copula import CopulaWorkload
from conserve_gym.envs.workloads.samples import Samples

LEVELS = [0.0, 0.25, 0.5, 0.9, 1.0]
FIGURES: dict[str, Any] = dict(
    name="example",
    conversations=4000,
    max_turns=None,
    levels=LEVELS,
    turns=[2, 3, 4, 8, 12],
    turns_up_to=[0.1, 0.25, 0.5, 0.9, 1.0],
    first_input_tokens=[[100, 200, 1000, 5000, 60_000]],
    from_turn=[0, 1, 3],
    output_tokens=[[1, 10, 20, 30, 40], [5, 5, 50, 60, 900], [100, 200, 300, 400, 500]],
    appended_tokens=[[10, 70, 80, 100, 700], [1000, 2000, 3000, 4000, 5000]],
    dropped_tokens=[0, 0, 0, 0, 0],
    kinds={
        "tool": {"share": [0.75, 0.25], "gap_s": [[0, 1, 2, 5, 9], [0, 2, 4, 10, 18]]},
        "user": {"share": [0.25, 0.75], "gap_s": [[20, 30, 60, 300, 900]]},
    },
    rewrites=None,
    peak_tokens=None,
    correlations={},
    persistence={},
)
REWRITES = {
    "share": [0.1, 0.2],
    "kind": "mixed",
    "gap_s": [1000, 1100, 1200, 1300, 1400],
    "kept_share": [0.0, 0.1, 0.2, 0.3, 0.4],
    "new_share": [0.1, 0.2, 0.3, 0.4, 0.5],
}


def drawn(seed: int = 0, **changes: Any) -> list[tuple[Turn, ...]]:
    return CopulaWorkload(**(FIGURES | changes)).draw(np.random.default_rng(seed))


def assert_has_quantiles(values: Any, table: list[float]) -> None:
    sample = np.asarray(values, dtype=float)
    tolerance = 4.0 * 0.5 / np.sqrt(sample.size)  # four standard errors of a share
    assert sample.min() >= table[0]
    assert sample.max() <= table[-1]
    for level, quantile in zip(LEVELS, table, strict=True):
        assert (sample <= quantile).mean() >= level - tolerance
        assert (sample < quantile).mean() <= level + tolerance


def test_each_row_serves_its_turns() -> None:
    conversations = drawn()
    counts = np.array([len(turns) for turns in conversations])
    for count, share in zip(FIGURES["turns"], FIGURES["turns_up_to"], strict=True):
        assert (counts <= count).mean() == pytest.approx(share, abs=0.03)
    assert set(counts) == set(FIGURES["turns"])
    first = [turns[0].input_tokens for turns in conversations]
    assert_has_quantiles(first, FIGURES["first_input_tokens"][0])
    for row, places in enumerate(([0], [1, 2], range(3, 12))):
        here = [turns[i] for turns in conversations for i in places if i < len(turns)]
        assert_has_quantiles([turn.output_tokens for turn in here], FIGURES["output_tokens"][row])
        if not row:
            continue
        appended = FIGURES["appended_tokens"][row - 1]
        assert_has_quantiles([turn.new_tokens for turn in here], appended)
        for kind, figures in FIGURES["kinds"].items():
            gaps = [turn.gap_s for turn in here if turn.gap_kind == kind]
            tables = figures["gap_s"]
            assert_has_quantiles(gaps, tables[min(row - 1, len(tables) - 1)])
            share = figures["share"][row - 1]
            assert len(gaps) / len(here) == pytest.approx(share, abs=2.0 / np.sqrt(len(here)))


def test_one_turn_conversations_may_have_first_prompts_of_their_own() -> None:
    tables = [[1, 2, 3, 4, 5], [100, 200, 300, 400, 500]]
    conversations = drawn(
        turns=[1, 2, 4, 8, 12], first_input_tokens=tables, turns_up_to=[0.4, 0.5, 0.6, 0.9, 1.0]
    )
    for table, of_one in zip(tables, (True, False), strict=True):
        first = [turns[0].input_tokens for turns in conversations if (len(turns) == 1) is of_one]
        assert_has_quantiles(first, table)


def test_rewriting_turns_have_tables_of_their_own() -> None:
    conversations = drawn(rewrites=REWRITES)
    samples = Samples.of(conversations)
    for row, places in enumerate(((1, 2), range(3, 12))):
        here = np.isin(samples.turn, places)
        share = REWRITES["share"][row]  # type: ignore[index]
        assert samples.rewrites[here].mean() == pytest.approx(share, abs=2 / np.sqrt(here.sum()))
    rewriting = samples.rewrites
    assert {samples.kinds[kind] for kind in samples.kind[rewriting]} == {"mixed"}
    assert_has_quantiles(samples.gap_s[rewriting], REWRITES["gap_s"])  # type: ignore[arg-type]
    large = rewriting & (samples.held > 10_000)  # where whole tokens do not matter
    kept = np.round(samples.kept[large] / samples.held[large], 3)
    assert_has_quantiles(kept, REWRITES["kept_share"])  # type: ignore[arg-type]


def test_the_smallest_appends_drop_most() -> None:
    samples = Samples.of(
        drawn(
            dropped_tokens=[0, 0, 0, 40, 50],
            from_turn=[0, 1],
            output_tokens=[[1, 10, 20, 30, 40]] * 2,
            appended_tokens=[[1, 100, 200, 300, 400]],
            kinds={"tool": {"share": [1.0], "gap_s": [[0] * 5]}},
        )
    )
    dropped = samples.held - samples.kept
    assert (dropped[samples.new > 200] == 0).all()
    assert (dropped[(samples.new < 40) & (samples.held > 100)] >= 40).all()
    assert_has_quantiles(dropped[samples.held > 100], [0, 0, 0, 40, 50])


@pytest.mark.parametrize("rho", [-0.7, 0.0, 0.8])
def test_scores_of_a_conversation_are_correlated(rho: float) -> None:
    spread = [1, 10_000, 20_000, 30_000, 60_000]
    conversations = drawn(
        turns=list(range(1, 101)),
        turns_up_to=[n / 100 for n in range(1, 101)],
        max_turns=None,
        conversations=1000,
        first_input_tokens=[spread],
        correlations={"turns": {"first_input": rho}},
    )
    counts = [len(turns) for turns in conversations]
    first = [turns[0].input_tokens for turns in conversations]
    of_ranks = 6.0 / np.pi * np.arcsin(rho / 2.0)  # Pearson's is of the normal scores
    assert spearmanr(counts, first).statistic == pytest.approx(of_ranks, abs=0.08)


@pytest.mark.parametrize(("level", "lag_1"), [(0.0, 0.0), (0.0, 0.6), (0.4, 0.0), (0.4, 0.5)])
def test_turns_of_a_conversation_resemble_each_other(level: float, lag_1: float) -> None:
    spread = [1, 10_000, 20_000, 30_000, 60_000]
    samples = Samples.of(
        drawn(
            conversations=600,
            turns=[50],
            turns_up_to=[1.0],
            output_tokens=[spread] * 3,
            persistence={"output": {"level": level, "lag_1": lag_1}},
        )
    )
    outputs = samples.output.reshape(600, 50)
    ranks = np.argsort(np.argsort(outputs, axis=None)).reshape(outputs.shape)
    together = level + (1.0 - level) * lag_1 ** np.array([1, 8])
    for lag, expected in zip((1, 8), together, strict=True):
        found = np.corrcoef(ranks[:, lag:].ravel(), ranks[:, :-lag].ravel())[0, 1]
        assert found == pytest.approx(6.0 / np.pi * np.arcsin(expected / 2.0), abs=0.05)


def test_gaps_of_a_human_follow_their_own_series() -> None:
    persistence = {"user_gap": {"level": 0.0, "lag_1": 0.9}}
    conversations = drawn(conversations=500, turns=[60], turns_up_to=[1.0], persistence=persistence)
    user = [[t.gap_s for t in turns if t.gap_kind == "user"] for turns in conversations]
    tool = [[t.gap_s for t in turns if t.gap_kind == "tool"] for turns in conversations]
    for gaps, expected in ((user, 0.9), (tool, 0.0)):
        neighbours = [pair for one in gaps for pair in pairwise(one)]
        # Whatever other turns stand between them.
        assert spearmanr(neighbours).statistic == pytest.approx(expected, abs=0.06)


def test_peaks_have_their_quantiles_where_candidates_reach_them() -> None:
    peaks = [8000, 14_000, 20_000, 30_000, 40_000]
    samples = Samples.of(
        drawn(
            first_input_tokens=[[100] * 5],
            turns=[10],
            turns_up_to=[1.0],
            conversations=1500,
            peak_tokens=peaks,
            persistence={"appended": {"level": 0.5, "lag_1": 0.0}},
            appended_tokens=[[10, 500, 1000, 4000, 8000]] * 2,
        )
    )
    assert samples.peak.max() <= 40_000
    found = np.quantile(samples.peak, LEVELS[1:-1])
    assert found == pytest.approx(peaks[1:-1], rel=0.1)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**63),
    dropped=st.integers(0, 5000),
    peak=st.none() | st.integers(2000, 50_000),
    rho=st.floats(-0.9, 0.9),
    lag=st.floats(-0.9, 0.9),
)
def test_prompts_fit_together(
    seed: int, dropped: int, peak: int | None, rho: float, lag: float
) -> None:
    conversations = drawn(
        seed,
        conversations=10,
        dropped_tokens=[0, 0, 0, dropped, dropped],
        rewrites=REWRITES,
        peak_tokens=None if peak is None else [peak] * 5,
        correlations={"appended": {"turns": rho}},
        persistence={"appended": {"level": 0.5, "lag_1": lag}, "kind": {"lag_1": lag}},
    )
    for turns in conversations:
        assert turns[0].new_tokens == turns[0].input_tokens
        for before, turn in pairwise(turns):
            held = before.input_tokens + before.output_tokens
            assert 1 <= turn.new_tokens <= turn.input_tokens
            assert turn.input_tokens - held <= turn.new_tokens
            assert turn.output_tokens >= 1
            assert turn.gap_s >= 0.0
            if peak is not None:
                assert turn.input_tokens + turn.output_tokens <= peak + 1


def test_draws_are_reproducible_and_cut_at_max_turns() -> None:
    few = {"conversations": 20, "rewrites": REWRITES, "peak_tokens": [20_000] * 5}
    assert drawn(3, **few) == drawn(3, **few)
    assert drawn(3, **few) != drawn(4, **few)
    assert max(len(turns) for turns in drawn(max_turns=3)) == 3
    assert {len(turns) for turns in drawn(max_turns=1)} == {1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": [0.0, 0.5, 0.5, 0.9, 1.0]}, "workload.levels must rise from 0 to 1"),
        ({"turns": [1, 2, 3]}, "workload.turns must rise, with a share"),
        ({"turns": [1, 2, 4, 3, 5]}, "workload.turns must rise, with a share"),
        ({"turns_up_to": [0.1, 0.25, 0.5, 0.9, 0.95]}, "workload.turns_up_to must not fall, and"),
        ({"turns_up_to": [0.1, 0.5, 0.25, 0.9, 1.0]}, "workload.turns_up_to must not fall, and"),
        ({"first_input_tokens": [[1] * 5] * 3}, "workload.first_input_tokens has more than two"),
        ({"from_turn": [0, 2, 3]}, "workload.from_turn"),
        ({"from_turn": [0, 1, 1]}, "workload.from_turn"),
        ({"output_tokens": [[1] * 5]}, "workload.output_tokens has 1 rows, expected 3"),
        ({"appended_tokens": [[1] * 5]}, "workload.appended_tokens has 1 rows, expected 2"),
        ({"kinds": {}}, "workload.kinds need 2 shares each"),
        (
            {"kinds": {"tool": {"share": [0.5, 1.0], "gap_s": [[0] * 5]}}},
            "workload.kinds: shares of a row add up to",
        ),
        ({"kinds": {"tool": {"share": [1, 1], "gap_s": []}}}, "workload.kinds.tool.gap_s needs"),
        ({"rewrites": REWRITES | {"share": [0.1]}}, "workload.rewrites.share needs 2 values"),
        ({"correlations": {"turns": {"gaps": 0.1}}}, "workload.correlations.turns.gaps must name"),
        (
            {
                "correlations": {
                    "turns": {"first_input": 0.9},
                    "peak": {"first_input": -0.9, "turns": 0.9},
                }
            },
            "workload.correlations cannot hold at once",
        ),
        ({"persistence": {"gaps": {}}}, "workload.persistence.gaps is none of output, appended"),
    ],
)
def test_figures_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        CopulaWorkload(**(FIGURES | changes))
