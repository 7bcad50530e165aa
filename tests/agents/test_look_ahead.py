"""The bound that sees the future: never worse than its base, and marked."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conserve_gym.agents.evaluation import Episode, play
from conserve_gym.agents.look_ahead import play_look_ahead
from conserve_gym.agents.policies import resolve
from conserve_gym.envs.configuration import ConfigurationError, Scenario, load_scenario
from conserve_gym.ledger import Placed


def small(*overrides: str) -> Scenario:
    return load_scenario(
        [
            "workload.conversations=10",
            "arrivals.rate=6",
            "cluster.engines.0.kv_capacity_tokens=81920",
            "cluster.engines.1.kv_capacity_tokens=81920",
            *overrides,
        ]
    )


def closeness(episode: Episode) -> float:
    """The look-ahead's own order among episodes with equal attainment, up to a monotone map."""
    worst = 1.0
    for latencies in episode.normalised:
        worst *= max(one for one in latencies if one == one)
    return -worst


@pytest.mark.parametrize(
    ("base", "actions"),
    [
        ("conserve", "conversation"),
        ("colocate", "joint"),
        ("random", "conversation"),
        ("full_disagg", "turn"),
    ],
)
@given(seed=st.integers(0, 999))
@settings(max_examples=3, deadline=None)
def test_no_episode_ends_worse_than_with_the_base(base: str, actions: str, seed: int) -> None:
    # A decision a turn is five times as many.
    scenario = small(*(["workload.conversations=5"] if actions == "turn" else []))
    policy = resolve(base, scenario.cluster)
    plain = play(scenario, policy, seed)
    ahead = play_look_ahead(scenario, policy, seed, actions)
    first, second = (one.metrics["slo_attainment_pct"] for one in (plain, ahead))
    assert (second, closeness(ahead)) >= (first, closeness(plain) * (1.0 + 1e-12))
    assert [one.conversation for one in ahead.ledger if isinstance(one, Placed)] == [
        one.conversation for one in plain.ledger if isinstance(one, Placed)
    ] or policy.deployment.decides_every_turn


def test_it_finds_what_is_to_be_won() -> None:
    """In crowded episodes it gains, and it says how it is called."""
    scenario = load_scenario(["workload.conversations=50", "arrivals.rate=4"])
    policy = resolve("colocate", scenario.cluster)
    gains = []
    for seed in range(2):
        ahead = play_look_ahead(scenario, policy, seed, "conversation")
        assert ahead.sees_future
        assert ahead.policy == "look_ahead(colocate)"
        plain = play(scenario, policy, seed)
        assert not plain.sees_future
        gains.append(ahead.metrics["slo_attainment_pct"] - plain.metrics["slo_attainment_pct"])
    assert min(gains) >= 0.0
    assert max(gains) > 0.0


def test_playing_it_again_gives_the_same_episode() -> None:
    scenario = small("workload.conversations=6")
    ledgers = [
        play_look_ahead(scenario, resolve("random", scenario.cluster), 3, "joint").ledger.digest()
        for _ in range(2)
    ]
    assert ledgers[0] == ledgers[1]


@pytest.mark.parametrize("actions", ["all", "conversation"])
def test_actions_that_there_are_not_are_refused(actions: str) -> None:
    scenario = small("cluster.engines.0.role=decode")
    with pytest.raises(ConfigurationError, match=f"look_ahead.actions='{actions}'"):
        play_look_ahead(scenario, resolve("conserve", scenario.cluster), 0, actions)
