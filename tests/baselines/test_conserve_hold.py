"""ConServe that holds, on states made by hand and on an episode under overload."""

from __future__ import annotations

import numpy as np
from hand_made import D, P, observed

from conserve_gym.agents.evaluation import play
from conserve_gym.baselines.conserve import ConServe
from conserve_gym.baselines.conserve_hold import ConServeHold
from conserve_gym.envs.configuration import load_scenario
from conserve_gym.placement import HOLD, Placement


def test_a_conversation_is_held_while_prompts_queue_at_every_prefiller() -> None:
    rule = ConServeHold(tokens=1000)
    for waiting, expected in (
        ([999.0, 2000.0, 0.0], Placement(0, 2)),
        ([1000.0, 2000.0, 0.0], HOLD),
        ([1000.0, 500.0, 0.0], Placement(1, 2)),
    ):
        seen = observed((P, P, D), free=(0, 0, 500), prompt_in_flight=waiting)
        assert rule.decide(seen) == expected


def test_under_overload_more_conversations_meet_their_slos_and_all_are_served() -> None:
    scenario = load_scenario(["arrivals.rate=3", "workload.conversations=200"])
    held, not_held = (
        np.mean([play(scenario, rule, seed).metrics["slo_attainment_pct"] for seed in (0, 1)])
        for rule in (ConServeHold(24_576), ConServe())
    )
    assert held > not_held + 10.0
    assert len(play(scenario, ConServeHold(24_576), 0).normalised) == 200
