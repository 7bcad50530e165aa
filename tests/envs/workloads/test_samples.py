"""What conversations say, counted by hand and from series with known dependence."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from conserve_gym.envs.workloads.conversation import Turn, WorkloadError
from conserve_gym.envs.workloads.copula import LATENTS
from conserve_gym.envs.workloads.match import differences
from conserve_gym.envs.workloads.samples import Samples

A = (
    Turn(100, 100, 10, 0.0),
    Turn(130, 20, 30, 5.0, "tool"),
    Turn(150, 20, 5, math.nan, "user"),  # 30 of 160 dropped
    Turn(80, 60, 4, 60.0, "user"),  # 20 of 155 kept: rewritten
)
B = (Turn(7, 7, 1, 0.0),)


def test_figures_of_two_conversations() -> None:
    samples = Samples.of([A, B])
    assert samples.turns.tolist() == [4, 1]
    assert samples.first_input.tolist() == [100, 7]
    assert samples.peak.tolist() == [160, 8]
    assert samples.output.tolist() == [10, 30, 5, 4, 1]
    assert samples.output_turn.tolist() == [0, 1, 2, 3, 0]
    assert samples.conversation.tolist() == [0, 0, 0]
    assert samples.turn.tolist() == [1, 2, 3]
    assert samples.new.tolist() == [20, 20, 60]
    assert samples.held.tolist() == [110, 160, 155]
    assert samples.kept.tolist() == [110, 130, 20]
    assert samples.rewrites.tolist() == [False, False, True]
    assert samples.kinds == ("user", "tool")
    assert samples.kind.tolist() == [1, 0, 0]
    assert samples.marginals()["gap_s"].tolist() == [5, 60]


def test_one_turn_each_has_no_later_turns() -> None:
    samples = Samples.of([B, B])
    assert samples.new.size == 0
    assert not np.any(samples.rank_correlations() - np.eye(len(LATENTS)))
    assert set(samples.persistence().values()) == {(0.0, 0.0)}
    with pytest.raises(WorkloadError, match="no conversations"):
        Samples.of([])


def conversation(outputs: list[int]) -> tuple[Turn, ...]:
    turns = [Turn(10, 10, outputs[0], 0.0)]
    for before, output in pairwise(outputs):
        held = turns[-1].input_tokens + before
        turns.append(Turn(held + 5, 5, output, 1.0, "tool"))
    return tuple(turns)


def test_persistence_tells_levels_from_neighbours() -> None:
    rng = np.random.default_rng(0)
    level = np.repeat(rng.normal(size=(400, 1)), 30, axis=1)
    walk = np.cumsum(rng.normal(size=(400, 30)), axis=1)
    noise = rng.normal(size=(400, 30))
    found = {}
    for name, scores in (("level", level), ("walk", walk), ("noise", noise)):
        outputs = np.exp(scores * 0.5 + 6.0).astype(int)
        found[name] = Samples.of(map(conversation, outputs.tolist())).persistence()["output"]
    assert found["level"] == pytest.approx((1.0, 1.0), abs=0.02)
    assert found["noise"] == pytest.approx((0.0, 0.0), abs=0.05)
    share, lag_1 = found["walk"]
    assert lag_1 > 0.9 > share > 0.2


def test_rank_correlations_are_of_conversations() -> None:
    rng = np.random.default_rng(1)
    conversations = []
    for level in rng.normal(size=500):
        count = 2 + int(20 * (level > 0))
        conversations.append(
            conversation(rng.integers(1, 50 if level > 0 else 2000, count).tolist())
        )
    matrix = Samples.of(conversations).rank_correlations()
    names = {name: i for i, name in enumerate(LATENTS)}
    assert matrix[names["output"], names["turns"]] < -0.6
    assert matrix[names["first_input"], names["turns"]] == 0.0  # constant
    assert np.allclose(matrix, matrix.T)


def test_nothing_differs_from_itself_and_a_shift_is_found() -> None:
    rng = np.random.default_rng(2)
    one = Samples.of([conversation(rng.integers(1, 900, 20).tolist()) for _ in range(50)])
    for found in differences(one, one):
        assert found.recorded == found.drawn or found.statistic == "ks_distance"
        assert found.drawn == 0.0 or found.statistic != "ks_distance"
    rng = np.random.default_rng(2)
    other = Samples.of([conversation((2 * rng.integers(1, 900, 20)).tolist()) for _ in range(50)])
    errors = {(one.quantity, one.statistic): one for one in differences(one, other)}
    assert errors["output", "p95"].error_pct == pytest.approx(100.0)
    assert errors["output", "ks_distance"].drawn > 0.3
    assert errors["turns", "p50"].error_pct == 0.0
