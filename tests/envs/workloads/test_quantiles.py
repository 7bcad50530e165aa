"""The generator draws what its tables say."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from conserve_gym.envs.configuration import ConfigurationError, load_scenario
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


def assert_has_quantiles(values: list[float], table: list[float], levels: list[float]) -> None:
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


PACKAGED = ("miniswe", "miniswe_tools", "miniswe_10_turns", "miniswe_heavy_appends")


@pytest.mark.parametrize("name", PACKAGED)
def test_marginals_of_the_packaged_workloads_match_their_tables(name: str) -> None:
    overrides = [f"workload={name}", "workload.conversations=5000", "workload.max_turns=10"]
    workload = load_scenario(overrides).workload
    conversations = workload.draw(np.random.default_rng(0))
    assert isinstance(workload, QuantileWorkload)
    assert workload.name == name
    levels = workload._levels.tolist()
    first = [turns[0].input_tokens for turns in conversations]
    assert_has_quantiles(first, workload._first_input.tolist(), levels)
    appended = [turn.new_tokens for turns in conversations for turn in turns[1:]]
    assert_has_quantiles(appended, workload._appended.tolist(), levels)
    gaps = [turn.gap_s for turns in conversations for turn in turns[1:]]
    assert_has_quantiles(gaps, np.broadcast_to(workload._gap_s, len(levels)).tolist(), levels)
    assert_has_quantiles([len(turns) for turns in conversations], workload._turns.tolist(), levels)
    for turn, table in enumerate(workload._output):
        outputs = [turns[turn].output_tokens for turns in conversations if len(turns) > turn]
        assert_has_quantiles(outputs, table.tolist(), levels)


def test_the_packaged_workloads_differ_in_one_thing() -> None:
    miniswe, tools, longer, heavy = (
        load_scenario([f"workload={name}"]).workload.draw(np.random.default_rng(0))
        for name in PACKAGED
    )

    def lengths(conversations: list[tuple[Turn, ...]]) -> list[list[tuple[int, ...]]]:
        return [[turn[:3] for turn in turns] for turns in conversations]

    assert lengths(tools) == lengths(miniswe)
    assert {len(turns) for turns in miniswe} == {5}
    assert {len(turns) for turns in longer} == {8, 9, 10}
    for plain, one in zip(miniswe, heavy, strict=True):
        assert plain[0] == one[0]
        assert [turn.output_tokens for turn in plain] == [turn.output_tokens for turn in one]


def test_heavy_appends_are_as_heavy_as_their_file_says_and_fit_a_pool() -> None:
    overrides = ["workload=miniswe_heavy_appends", "workload.conversations=20000"]
    workload = load_scenario(overrides).workload
    assert isinstance(workload, QuantileWorkload)
    conversations = workload.draw(np.random.default_rng(0))
    appended = [turn.new_tokens for turns in conversations for turn in turns[1:]]
    assert np.quantile(appended, [0.5, 0.95]) == pytest.approx([247, 6165], rel=0.05)
    first = sum(turns[0].new_tokens for turns in conversations)
    assert first / (first + sum(appended)) == pytest.approx(0.75, abs=0.01)
    for turns, most in ((5, 154_896), (10, 298_052)):
        outputs = sum(row[-1] for row in workload._output[:turns])
        appends = (turns - 1) * workload._appended[-1]
        assert workload._first_input[-1] + appends + outputs == most


GAPS_S = [0.0, 2.0, 10.0, 60.0, 600.0]


def test_gaps_may_have_quantiles_too() -> None:
    gaps = [turn.gap_s for turns in drawn(gap_s=GAPS_S) for turn in turns[1:]]
    assert_has_quantiles(gaps, GAPS_S, LEVELS)
    assert len(set(gaps)) > 0.99 * len(gaps)  # not rounded, and each is drawn anew


def test_a_table_of_gaps_changes_no_length_and_a_constant_draws_nothing() -> None:
    lengths = [[turn[:3] for turn in turns] for turns in drawn()]
    assert lengths == [[turn[:3] for turn in turns] for turns in drawn(gap_s=GAPS_S)]
    rng, other = np.random.default_rng(0), np.random.default_rng(0)
    few = TABLES | {"conversations": 20}
    QuantileWorkload(**few).draw(rng)
    other.random(20 + 20 + 20 * 4 + 20 * 4)  # turns, first inputs, appends, outputs
    assert rng.random() == other.random()


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
        ({"gap_s": [0, 1, 2]}, "workload.gap_s has 3 values for 5 levels"),
        ({"gap_s": [0, 1, 2, 5, 4]}, r"workload.gap_s must not fall, .* 0 or above: \[.*5.0, 4.0"),
        ({"gap_s": [-1, 1, 2, 3, 4]}, r"workload.gap_s must not fall, .*: \[-1.0, 1.0"),
        ({"output_tokens": []}, "workload.output_tokens needs at least one row"),
    ],
)
def test_tables_that_are_no_quantiles_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        QuantileWorkload(**(TABLES | changes))


@pytest.mark.parametrize(
    ("field", "value"),
    [("conversations", 0), ("max_turns", 2.5), ("gap_s", -1.0), ("gap_s", [0, 1, "long", 3, 4])],
)
def test_counts_and_gaps_that_cannot_be_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        QuantileWorkload(**(TABLES | {field: value}))


@pytest.mark.parametrize(
    ("gap_s", "message"),
    [
        ("-1", r"workload\.gap_s\.constant=-1: Input should be greater than or equal to 0$"),
        ("soon", r"workload\.gap_s\.constant='soon': Input should be a valid number"),
        ("[0,later]", r"workload\.gap_s\.quantiles\.1='later': Input should be a valid number"),
    ],
)
def test_an_error_names_one_form_of_the_gap(gap_s: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_scenario([f"workload.gap_s={gap_s}"])
