"""The generator draws what its tables say."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from conserve_gym.envs.configuration import load_scenario
from conserve_gym.envs.workloads.conversation import Turn, WorkloadError
from conserve_gym.envs.workloads.quantiles import QuantileWorkload

LEVELS = [0.0, 0.25, 0.5, 0.9, 1.0]
TABLES: dict[str, Any] = dict(
    name="example",
    conversations=20_000,
    max_turns=4,
    gap_s=0.5,
    levels=LEVELS,
    turns=[1, 2, 3, 6, 9],
    first_input_tokens=[100, 200, 1000, 5000, 60_000],
    appended_tokens=[7, 7, 7, 7, 700],
    output_tokens=[[1, 10, 20, 30, 40], [5, 5, 50, 60, 900]],
)


def drawn(seed: int = 0, **changes: Any) -> list[tuple[Turn, ...]]:
    return QuantileWorkload(**(TABLES | changes)).draw(np.random.default_rng(seed))


def assert_has_quantiles(values: list[int], table: list[int], levels: list[float]) -> None:
    sample = np.array(values)
    tolerance = 4.0 * 0.5 / np.sqrt(sample.size)  # four standard errors of a share
    assert sample.min() >= table[0]
    assert sample.max() <= table[-1]
    for level, quantile in zip(levels, table, strict=True):
        assert (sample <= quantile).mean() >= level - tolerance
        assert (sample < quantile).mean() <= level + tolerance


def test_marginals_match_the_tables() -> None:
    conversations = drawn()
    later = [turn for turns in conversations for turn in turns[1:]]
    counts = [min(count, 4) for count in TABLES["turns"]]  # cut at max_turns
    assert_has_quantiles([len(turns) for turns in conversations], counts, LEVELS)
    first = [turns[0].input_tokens for turns in conversations]
    assert_has_quantiles(first, TABLES["first_input_tokens"], LEVELS)
    assert_has_quantiles([turn.new_tokens for turn in later], TABLES["appended_tokens"], LEVELS)
    for turn in range(4):
        outputs = [turns[turn].output_tokens for turns in conversations if len(turns) > turn]
        table = TABLES["output_tokens"][min(turn, 1)]  # the last row serves all turns beyond it
        assert_has_quantiles(outputs, table, LEVELS)


def test_marginals_of_the_packaged_workload_match_its_tables() -> None:
    workload = load_scenario(["workload.conversations=5000", "workload.max_turns=10"]).workload
    conversations = workload.draw(np.random.default_rng(0))
    assert isinstance(workload, QuantileWorkload)
    levels = workload._levels.tolist()
    first = [turns[0].input_tokens for turns in conversations]
    assert_has_quantiles(first, workload._first_input.tolist(), levels)
    assert_has_quantiles([len(turns) for turns in conversations], workload._turns.tolist(), levels)
    for turn, table in enumerate(workload._output):
        outputs = [turns[turn].output_tokens for turns in conversations if len(turns) > turn]
        assert_has_quantiles(outputs, table.tolist(), levels)


def test_a_prompt_is_the_history_and_what_was_appended() -> None:
    for turns in drawn(conversations=500):
        assert turns[0].new_tokens == turns[0].input_tokens
        assert turns[0].gap_s == 0.0
        for before, turn in pairwise(turns):
            history = before.input_tokens + before.output_tokens
            assert turn.input_tokens == history + turn.new_tokens
            assert turn.gap_s == 0.5


def test_draws_are_independent_of_each_other() -> None:
    spread = [1, 10_000, 20_000, 30_000, 60_000]  # hardly any ties
    conversations = drawn(turns=[4] * 5, appended_tokens=spread, output_tokens=[spread])
    columns = [[turns[0].input_tokens for turns in conversations]]
    columns += [[turns[i].output_tokens for turns in conversations] for i in range(4)]
    columns += [[turns[i].new_tokens for turns in conversations] for i in range(1, 4)]
    ranks = np.argsort(np.argsort(np.array(columns), axis=1), axis=1)
    correlations = np.corrcoef(ranks)[np.triu_indices(len(columns), 1)]
    assert np.abs(correlations).max() < 5.0 / np.sqrt(len(conversations))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**63))
def test_draws_are_reproducible(seed: int) -> None:
    few = {"conversations": 20}
    assert drawn(seed, **few) == drawn(seed, **few)
    assert drawn(seed, **few) != drawn(seed + 1, **few)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": []}, "workload.levels must rise from 0 to 1"),
        ({"levels": [0.0, 0.5, 0.5, 0.9, 1.0]}, "workload.levels must rise from 0 to 1"),
        ({"levels": [0.1, 0.25, 0.5, 0.9, 1.0]}, "workload.levels must rise from 0 to 1"),
        ({"levels": [0.0, 0.25, 0.5, 0.9, 0.99]}, "workload.levels must rise from 0 to 1"),
        ({"turns": [1, 2, 3]}, "workload.turns has 3 values for 5 levels"),
        ({"turns": [0, 1, 2, 3, 4]}, "workload.turns must not fall, and start at 1"),
        ({"appended_tokens": [1, 3, 2, 4, 5]}, "workload.appended_tokens must not fall"),
        ({"first_input_tokens": [1, 2, 3, 4, np.inf]}, "workload.first_input_tokens must not"),
        ({"output_tokens": [[1, 2, 3, 4, 5], [1, 2]]}, r"workload.output_tokens\[1\] has 2 values"),
        ({"output_tokens": []}, "workload.output_tokens needs at least one row"),
    ],
)
def test_tables_that_are_no_quantiles_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        QuantileWorkload(**(TABLES | changes))


@pytest.mark.parametrize(
    ("field", "value"), [("conversations", 0), ("max_turns", 2.5), ("gap_s", -1.0)]
)
def test_counts_and_gaps_that_cannot_be_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValidationError, match=field):
        QuantileWorkload(**(TABLES | {field: value}))
