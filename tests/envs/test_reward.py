"""Reward terms: what each says of what became known."""

from __future__ import annotations

import math

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_gym.envs.configuration import load_scenario
from conserve_gym.envs.reward import TERMS, RewardWeights, reward_terms, weighted
from conserve_gym.metrics import Normalised

HELD = st.lists(st.floats(0.0, 2.0), min_size=1, max_size=16)
LATENCY = st.floats(0.5, 1e6)


def imbalance(held: list[float]) -> float:
    return reward_terms([], 0.0, np.array(held))["imbalance"]


@given(HELD, st.floats(0.01, 100.0), st.randoms())
def test_imbalance_is_bounded_and_knows_neither_order_nor_level(held, factor, random) -> None:
    value = imbalance(held)
    assert -math.sqrt(len(held) - 1) - 1e-9 <= value <= 0.0
    if min(held) > 1e-100:
        assert imbalance([factor * one for one in held]) == pytest.approx(value, abs=1e-6)
    random.shuffle(held)
    assert imbalance(held) == pytest.approx(value, abs=1e-9)


def test_imbalance_grows_from_even_to_one_engine_alone() -> None:
    even, uneven, alone = (imbalance(held) for held in ([1, 1, 1], [2, 1, 0.5], [1, 0, 0]))
    assert 0.0 == even > uneven > alone == pytest.approx(-math.sqrt(2))
    assert imbalance([0.0, 0.0]) == 0.0


@given(LATENCY, LATENCY, LATENCY, st.floats(0.0, 1e6))
def test_worse_latencies_and_more_energy_never_pay(ttfet, tbt, e2e, joules) -> None:
    nothing = np.zeros(3)
    better = reward_terms([Normalised(1.0, 1.0, 1.0)], 0.0, nothing)
    worse = reward_terms([Normalised(ttfet, tbt, e2e)], joules, nothing)
    assert all(worse[term] <= better[term] for term in TERMS)
    weights = RewardWeights(1.0, 0.1, 0.1, 0.1, 0.1, 0.1)
    assert weighted(worse, weights) <= weighted(better, weights)


def test_collapse_onto_one_decoder_costs() -> None:
    scenario = load_scenario(["workload.conversations=30", "reward=balanced"])
    env = gymnasium.make("conserve_gym/JointPlacement-v0", scenario=scenario).unwrapped

    def play(actions: tuple[int, ...]) -> float:
        env.reset(seed=0)
        terms, terminated = [], False
        while not terminated:
            action = np.int64(actions[len(terms) % len(actions)])
            _, _, terminated, _, info = env.step(action)
            terms.append(info["reward_terms"]["imbalance"])
        assert terms[-1] == 0.0, "at the end nothing is held"
        return float(np.mean(terms))

    spread, collapsed = play((1, 3, 5)), play((1,))
    assert collapsed < -1.2 < -0.8 < spread
