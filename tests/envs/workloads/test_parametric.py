"""Families draw what their parameters say."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from conserve_gym.envs.configuration import load_scenario
from conserve_gym.envs.workloads.conversation import WorkloadError
from conserve_gym.envs.workloads.parametric import LogNormal, ParametricWorkload

ONE: dict[str, Any] = dict(
    name="example",
    conversations=300,
    first_input_tokens=[{"median": 1000, "mean": 2000}],
    appended_tokens=[{"median": 100, "mean": 100}],
    output_tokens=[{"median": 50, "mean": 60, "most": 200}],
    gap_s=[{"median": 2, "mean": 3}],
    turns=[{"median": 5, "mean": 5}],
    reset=None,
    max_context_tokens=100_000,
)


def test_a_log_normal_has_its_median_and_mean() -> None:
    values = LogNormal(median=4000, mean=6000).draw(np.random.default_rng(0), 200_000)
    assert np.median(values) == pytest.approx(4000, rel=0.01)
    assert values.mean() == pytest.approx(6000, rel=0.01)
    moved = LogNormal(median=4000, mean=6000, most=5000, plus=7).draw(np.random.default_rng(0), 99)
    assert moved == pytest.approx(np.minimum(values[:99], 5000) + 7)
    assert set(LogNormal(median=3, mean=3).draw(np.random.default_rng(0), 9)) == {3.0}


def test_a_mixture_has_its_shares_and_kinds() -> None:
    gaps = [
        {"share": 3, "median": 1, "mean": 1, "kind": "tool"},
        {"share": 1, "median": 50, "mean": 50, "kind": "user"},
    ]
    drawn = ParametricWorkload(**(ONE | {"gap_s": gaps})).draw(np.random.default_rng(0))
    later = [turn for turns in drawn for turn in turns[1:]]
    assert {(turn.gap_s, turn.gap_kind) for turn in later} == {(1.0, "tool"), (50.0, "user")}
    share = sum(turn.gap_kind == "user" for turn in later) / len(later)
    assert share == pytest.approx(0.25, abs=2 / np.sqrt(len(later)))


def test_prompts_grow_and_end_at_the_context() -> None:
    drawn = ParametricWorkload(**(ONE | {"max_context_tokens": 1500})).draw(
        np.random.default_rng(0)
    )
    assert {len(turns) for turns in drawn} == {1, 2, 3, 4, 5}
    for turns in drawn:
        assert all(turn.input_tokens < 1500 for turn in turns[1:])
        for before, turn in pairwise(turns):
            held = before.input_tokens + before.output_tokens
            assert turn.input_tokens == held + turn.new_tokens


def test_the_packaged_prior_has_the_turns_that_its_generator_published() -> None:
    workload = load_scenario(["workload=aiperf_agentic", "workload.conversations=2000"]).workload
    drawn = workload.draw(np.random.default_rng(0))
    turns = np.array([len(one) for one in drawn])
    # docs/traces/inference-day-2026/comparison.txt of AIPerf; restarts, which it has, split 6 %.
    assert turns.mean() == pytest.approx(11.6, rel=0.07)
    assert np.percentile(turns, [5, 25, 50, 75, 95]) == pytest.approx([1, 5, 11, 17, 25], abs=1)
    first = np.array([one[0].input_tokens for one in drawn])
    assert np.median(first) == pytest.approx(47_263, rel=0.02)
    assert first.mean() == pytest.approx(54_702, rel=0.05)
    new = np.array([turn.new_tokens for one in drawn for turn in one[1:]])
    assert (new.mean(), np.median(new)) == pytest.approx((5757.8, 3883), rel=0.04)


def test_a_family_can_be_swept_from_the_command_line() -> None:
    overrides = ["workload=lognormal", "workload.appended_tokens.0.mean=5000"]
    scenario = load_scenario(overrides)
    drawn = scenario.workload.draw(np.random.default_rng(0))
    assert len(drawn) == 255
    new = [turn.new_tokens for turns in drawn for turn in turns[1:]]
    assert np.median(new) == pytest.approx(250, rel=0.2)
    assert np.percentile(new, 95) > 10_000


def test_draws_are_reproducible() -> None:
    one, other = (ParametricWorkload(**ONE).draw(np.random.default_rng(7)) for _ in range(2))
    assert one == other


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValidationError, match="mean=1 is below median=2"):
        LogNormal(median=2, mean=1)
    for wrong in ({"turns": None}, {"reset": {"base_probability": 0.1, "context_scaling": 1}}):
        with pytest.raises(WorkloadError, match="either turns or reset"):
            ParametricWorkload(**(ONE | wrong))
    with pytest.raises(ValidationError, match="gap_s"):
        ParametricWorkload(**(ONE | {"gap_s": []}))
