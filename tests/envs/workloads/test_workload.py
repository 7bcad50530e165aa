"""Episodes are drawn before they begin, from streams that nothing else touches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conserve_gym.baselines.registry import BASELINES, make_baseline
from conserve_gym.envs.configuration import load_scenario
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.profile import site
from conserve_gym.envs.workloads.conversation import Conversation, Turn
from conserve_gym.envs.workloads.workload import draw_episode
from conserve_gym.ledger import TurnArrived, TurnFinished

SCENARIO = load_scenario(["workload.conversations=12", "arrivals.rate=5"])


def episode(seed: int, *overrides: str) -> list[Conversation]:
    scenario = load_scenario(["workload.conversations=12", *overrides])
    return draw_episode(scenario.workload, scenario.arrivals, np.random.default_rng(seed))


def test_a_conversation_peaks_at_its_longest_turn() -> None:
    turns = (Turn(10, 10, 5, 0.0), Turn(100, 90, 7, 0.0), Turn(20, 20, 1, 0.0))
    assert Conversation(0.0, turns).peak_tokens == 107


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**63))
def test_an_episode_is_reproducible(seed: int) -> None:
    draws = [
        draw_episode(SCENARIO.workload, SCENARIO.arrivals, np.random.default_rng(seed))
        for _ in range(2)
    ]
    assert draws[0] == draws[1]


def test_lengths_do_not_depend_on_arrivals_nor_arrivals_on_lengths() -> None:
    slow, fast = episode(3, "arrivals.rate=1"), episode(3, "arrivals.rate=4")
    assert [one.turns for one in slow] == [one.turns for one in fast]
    assert [one.arrival_s for one in slow] == pytest.approx([one.arrival_s * 4 for one in fast])
    longer = episode(3, "arrivals.rate=1", "workload.max_turns=10")
    assert [one.arrival_s for one in slow] == [one.arrival_s for one in longer]
    assert [one.turns for one in slow] != [one.turns for one in longer]


def test_every_policy_meets_the_same_episode() -> None:
    met = []
    for name in BASELINES:
        policy = make_baseline(name, site(SCENARIO.cluster))
        policy.reset(5)
        drawn = draw_episode(SCENARIO.workload, SCENARIO.arrivals, np.random.default_rng(5))
        cluster = Cluster(SCENARIO.cluster, policy.deployment, drawn)
        while cluster.advance():
            cluster.place(policy.decide(cluster.observe()))
        arrivals = [e for e in cluster.ledger if isinstance(e, TurnArrived) and e.turn == 0]
        ends = {
            (e.conversation, e.turn, e.input_tokens, e.output_tokens)
            for e in cluster.ledger
            if isinstance(e, TurnFinished)
        }
        met.append((arrivals, ends))
    assert all(one == met[0] for one in met)
    assert [e.time for e in met[0][0]] == pytest.approx([one.arrival_s for one in drawn])
