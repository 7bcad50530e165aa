"""The contract: a policy sees what has happened, and nothing of what is still to come.

Twin worlds share a past and differ in their futures. Their observations must be equal, byte for
byte, up to the first event that differs.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twin_worlds import another_future, shared_past, twin_of

from conserve_gym.envs.configuration import Scenario, load_scenario
from conserve_gym.envs.placement_env import (
    ConversationPlacementEnv,
    JointPlacementEnv,
    PlacementEnv,
    TurnPlacementEnv,
)
from conserve_gym.envs.serving import cluster as cluster_module
from conserve_gym.envs.workloads.conversation import Conversation
from conserve_gym.observation import Observation
from conserve_gym.observer import Observer

CONVERSATIONS = 14
KINDS = (ConversationPlacementEnv, JointPlacementEnv, TurnPlacementEnv)


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario([f"workload.conversations={CONVERSATIONS}", "arrivals.rate=2.5"])


def play(env: PlacementEnv, episode: list[Conversation], actions: list[int]) -> list:
    """Return (ledger length, observation bytes, mask) at each decision of an episode."""
    env.reset(seed=0)
    env._cluster = cluster_module.Cluster(env.scenario.cluster, env.deployment, episode)
    env._cluster.advance()
    env._read = 0
    observation = env._scaled(env._observe())
    seen = []
    terminated = False
    for action in actions:
        if terminated:
            break
        seen.append(
            (
                len(env.cluster.ledger),
                b"".join(group.tobytes() for group in observation.values()),
                env.action_masks().tobytes(),
            )
        )
        observation, _, terminated, _, _ = env.step(np.int64(action % env.action_space.n))
    return seen


def decisions_in_the_shared_past(one: PlacementEnv, first: list, twin: PlacementEnv) -> int:
    """Return how many decisions come before the first event that differs."""
    shared = shared_past(list(one.cluster.ledger), list(twin.cluster.ledger))
    return sum(length <= shared for length, _, _ in first)


def differ_while_the_past_is_shared(
    kind: type[PlacementEnv], scenario: Scenario, seed: int
) -> tuple[int, int]:
    """Return (decisions compared, decisions at which the twins' observations differ)."""
    rng = np.random.default_rng(seed)
    env, twin = kind(scenario), kind(scenario)
    env.reset(seed=seed)
    episode = list(env.cluster.conversations)
    changed = twin_of(episode, 4, rng)
    actions = [int(a) for a in rng.integers(0, 1000, size=5 * CONVERSATIONS)]
    first, second = play(env, episode, actions), play(twin, changed, actions)
    compared = decisions_in_the_shared_past(env, first, twin)
    differing = sum(a != b for a, b in zip(first[:compared], second[:compared], strict=True))
    return compared, differing


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_twin_worlds_look_alike_until_they_differ(
    kind: type[PlacementEnv], scenario: Scenario, seed: int
) -> None:
    compared, differing = differ_while_the_past_is_shared(kind, scenario, seed)
    assert compared > 0
    assert differing == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_contract_test_catches_each_leak(
    kind: type[PlacementEnv], scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An observation that holds any hidden quantity must be caught."""
    hidden = {
        "output length": lambda plan: float(plan.turns[0].output_tokens),
        "number of turns": lambda plan: float(len(plan.turns)),
        "tool time": lambda plan: sum(turn.gap_s for turn in plan.turns),
        "peak KV": lambda plan: float(plan.peak_tokens),
    }
    observe = Observer.observe
    for quantity, reveal in hidden.items():
        plans: dict[Observer, list[Conversation]] = {}

        class LeakyCluster(cluster_module.Cluster):
            def __init__(self, spec, deployment, conversations, timeline=None) -> None:
                super().__init__(spec, deployment, conversations, timeline)
                plans[self.observer] = conversations  # noqa: B023 - used within the iteration

        def leaky_observe(self: Observer, *args, **kwargs) -> Observation:
            observation = observe(self, *args, **kwargs)
            plan = plans[self][observation.conversation]  # noqa: B023
            observation.raw[0] = reveal(plan) * 1e-3  # noqa: B023
            return observation

        with monkeypatch.context() as patch:
            patch.setattr(Observer, "observe", leaky_observe)
            patch.setattr(cluster_module, "Cluster", LeakyCluster)
            patch.setattr("conserve_gym.envs.placement_env.Cluster", LeakyCluster)
            caught = sum(
                differ_while_the_past_is_shared(kind, scenario, seed)[1] for seed in range(6)
            )
        assert caught > 0, f"a leak of {quantity} went unseen"


def test_an_oracle_reservation_is_caught_and_marked(scenario: Scenario) -> None:
    """Reserving the peak opens the door by what nobody can know; the deployment says so."""
    from dataclasses import replace

    from conserve_gym.deployment import Deployment, Reservation

    oracle = Deployment(reservation=Reservation.ORACLE_PEAK)
    assert oracle.sees_future
    small = replace(
        scenario,
        deployment=oracle,
        cluster=replace(
            scenario.cluster,
            engines=tuple(
                replace(engine, kv_capacity_tokens=40_000) for engine in scenario.cluster.engines
            ),
        ),
    )
    # With the oracle the door itself depends on futures: the ledgers part at once.
    parted = False
    for seed in range(6):
        rng = np.random.default_rng(seed)
        env, twin = ConversationPlacementEnv(small), ConversationPlacementEnv(small)
        env.reset(seed=seed)
        episode = list(env.cluster.conversations)
        changed = [another_future(one, len(one.turns) - 1, rng) for one in episode]
        first = play(env, episode, [0] * 14)
        play(twin, changed, [0] * 14)
        times = [event.time for event in twin.cluster.ledger]
        assert all(a <= b for a, b in pairwise(times))
        parted |= decisions_in_the_shared_past(env, first, twin) < len(first)
    assert parted
