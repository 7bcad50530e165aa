"""The expert's values: what playing the episode again with that action comes to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conserve_gym.actions import Actions, actions_of
from conserve_gym.agents.evaluation import Episode, play
from conserve_gym.agents.imitation.expert import STEEPNESS, Expert
from conserve_gym.agents.policies import resolve
from conserve_gym.deployment import Deployment
from conserve_gym.envs.configuration import Scenario, load_scenario
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.standalone import StandaloneEngine
from conserve_gym.envs.workloads.workload import draw_episode
from conserve_gym.metrics import SLO_FACTOR
from conserve_gym.observation import Observation
from conserve_gym.placement import Placement
from conserve_gym.policy import Policy


class Scripted:
    """Takes given actions, and then goes on as another policy."""

    def __init__(self, actions: Actions, script: list[int], then: Policy) -> None:
        self.name = "scripted"
        self.deployment: Deployment = then.deployment
        self.actions = actions
        self.script = script
        self.then = then

    def reset(self, seed: int) -> None:
        self.left = list(self.script)
        self.then.reset(seed)

    def decide(self, observation: Observation) -> Placement:
        placement = self.then.decide(observation)
        return self.actions.placement(observation, self.left.pop(0)) if self.left else placement


def worth(episode: Episode) -> float:
    worst = np.array([np.nanmax(latencies) for latencies in episode.normalised])
    return float((1.0 / (1.0 + (worst / SLO_FACTOR) ** STEEPNESS)).sum())


@pytest.fixture(scope="module")
def crowded() -> Scenario:
    return load_scenario(
        [
            "workload.conversations=8",
            "arrivals.rate=6",
            *(f"cluster.engines.{i}.kv_capacity_tokens=32768" for i in range(2)),
        ]
    )


@pytest.mark.parametrize(
    ("base", "kind"), [("conserve", "conversation"), ("random", "joint"), ("colocate", "joint")]
)
@given(seed=st.integers(0, 999), data=st.data())
@settings(max_examples=3, deadline=None)
def test_a_value_is_what_playing_it_again_comes_to(
    crowded: Scenario, base: str, kind: str, seed: int, data: st.DataObject
) -> None:
    scenario = crowded
    spec = scenario.cluster
    rule, again = resolve(base, spec), resolve(base, spec)
    actions = actions_of(kind, spec.fleet(rule.deployment))
    drawn = draw_episode(scenario.workload, scenario.arrivals, np.random.default_rng(seed))
    lone = StandaloneEngine.of(spec)
    cluster = Cluster(spec, rule.deployment, drawn)
    rule.reset(seed)
    expert = Expert(rule, [lone.latencies(one.turns) for one in drawn])
    script: list[int] = []
    while cluster.advance():
        observation = cluster.observe()
        values = expert.values(cluster, observation, actions)
        assert (np.isnan(values) == ~actions.mask(observation)).all()
        for action in np.flatnonzero(actions.mask(observation)).tolist():
            if data.draw(st.integers(0, 9)) == 0:
                played = play(scenario, Scripted(actions, [*script, action], again), seed)
                assert values[action] == pytest.approx(worth(played), rel=1e-9)
        script.append(data.draw(st.sampled_from(np.flatnonzero(~np.isnan(values)).tolist())))
        expert.taken(values[script[-1]])
        cluster.place(actions.placement(observation, script[-1]))
    whole = play(scenario, Scripted(actions, script, again), seed)
    assert values[script[-1]] == pytest.approx(worth(whole), rel=1e-9)
