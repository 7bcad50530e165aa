"""Every packaged cluster, workload and arrival process composes and plays."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pytest

from conserve_gym.baselines.registry import make_baseline
from conserve_gym.envs.configuration import load_scenario
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.profile import site
from conserve_gym.envs.workloads.workload import draw_episode
from conserve_gym.ledger import Placed, TurnFinished


def options(group: str) -> list[str]:
    paths = files("conserve_gym.conf").joinpath(group).iterdir()
    return [f"{group}={path.name.removesuffix('.yaml')}" for path in paths]


OPTIONS = sorted(
    option
    for group in ("cluster", "workload", "arrivals")
    for option in options(group)
    if option not in ("workload=trace", "arrivals=replay")  # they need a file
)


@pytest.mark.parametrize("policy_name", ["colocate", "conserve"])
@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_plays_a_short_episode(option: str, policy_name: str) -> None:
    scenario = load_scenario([option, "workload.conversations=12"])
    rng = np.random.default_rng(0)
    conversations = draw_episode(scenario.workload, scenario.arrivals, rng)
    policy = make_baseline(policy_name, site(scenario.cluster))
    cluster = Cluster(scenario.cluster, policy.deployment, conversations)
    while cluster.advance():
        cluster.place(policy.decide(cluster.observe()))
    finished = [event for event in cluster.ledger if isinstance(event, TurnFinished)]
    assert len(finished) == sum(len(conversation.turns) for conversation in conversations)
    placed = [event for event in cluster.ledger if isinstance(event, Placed)]
    disaggregated = any(event.prefill_at != event.decode_at for event in placed)
    assert disaggregated == (policy_name == "conserve")
