"""Every registered baseline plays on clusters of any roles and tiers."""

from __future__ import annotations

from functools import cache

import pytest

from conserve_gym.agents.evaluation import play
from conserve_gym.baselines.registry import BASELINES, make_baseline
from conserve_gym.envs.configuration import Scenario, load_scenario
from conserve_gym.envs.serving.profile import site
from conserve_gym.ledger import ConversationEnded

CLUSTERS = (
    "a40_1p3d",
    "a40_4mixed",
    "a40_2p2d",
    "a40_1p7d",
    "a40_1m3d",
    "h100_prefill_l40s_decode",
)


@cache
def scenario(cluster: str) -> Scenario:
    """Tools and long appends, at a rate that lets queues grow."""
    return load_scenario(
        [
            f"cluster={cluster}",
            "workload=miniswe_heavy_appends",
            "workload.conversations=14",
            "arrivals.rate=8",
        ]
    )


@pytest.mark.parametrize("cluster", CLUSTERS)
@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_plays_a_short_episode(name: str, cluster: str) -> None:
    its = scenario(cluster)
    policy = make_baseline(name, site(its.cluster))
    first, again = (play(its, policy, 3).ledger for _ in range(2))
    assert sum(isinstance(event, ConversationEnded) for event in first) == 14
    assert first.digest() == again.digest()  # nothing is left of an earlier episode


@pytest.mark.parametrize("name", BASELINES)
def test_parameters_at_the_ends_of_their_ranges_play(name: str) -> None:
    its = scenario("a40_2p2d")
    for key, parameter in BASELINES[name].parameters.items():
        for value in parameter.choices or (parameter.low, parameter.high):
            policy = make_baseline(name, site(its.cluster), {key: value})
            ledger = play(its, policy, 3).ledger
            assert sum(isinstance(event, ConversationEnded) for event in ledger) == 14
