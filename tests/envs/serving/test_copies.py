"""A copy of a cluster in mid-episode has the same future, and the original does not notice."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
from examples import cluster_of, conversation, engine
from hypothesis import given
from hypothesis import strategies as st
from random_episodes import FEW, Episode, after_every_event, episodes

from conserve_gym.baselines.registry import BASELINES, make_baseline
from conserve_gym.deployment import Deployment, Reservation
from conserve_gym.envs.configuration import load_scenario
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.profile import site
from conserve_gym.envs.workloads.workload import draw_episode
from conserve_gym.fleet import Role
from conserve_gym.observation import Observation
from conserve_gym.placement import Placement

Choice = Callable[[Observation], Placement]


def future(cluster: Cluster, choose: Choice) -> str:
    """Play on to the end; returns a digest of everything, with the energy of it."""
    while cluster.advance():
        cluster.place(choose(cluster.observe()))
    cluster.meter()
    return cluster.ledger.digest()


@FEW
@given(episodes(), st.data())
def test_a_copy_at_a_decision_has_the_same_future(episode: Episode, data: st.DataObject) -> None:
    begun = Cluster(episode.spec, episode.deployment, episode.conversations)
    undisturbed = future(copy.deepcopy(begun), episode.choose)
    turns = sum(len(one.turns) for one in episode.conversations)
    each = turns if episode.deployment.decides_every_turn else len(episode.conversations)
    decisions = data.draw(st.integers(0, each), label="decisions before the copy")
    for _ in range(decisions):
        assert begun.advance()
        begun.place(episode.choose(begun.observe()))
    at_door = data.draw(st.booleans(), label="at the door of the next") and begun.advance()
    before, after = copy.deepcopy(begun), copy.deepcopy(begun)
    past = list(begun.ledger)
    assert future(before, episode.choose) == undisturbed
    assert list(begun.ledger) == past
    if at_door:
        assert np.array_equal(begun.observe().raw, after.observe().raw)
    assert future(begun, episode.choose) == undisturbed
    assert future(after, episode.choose) == undisturbed


@FEW
@given(episodes(), st.integers(0, 300))
def test_a_copy_between_any_two_events_has_the_same_future(episode: Episode, events: int) -> None:
    undisturbed = future(
        Cluster(episode.spec, episode.deployment, episode.conversations), episode.choose
    )
    copies: list[Cluster] = []
    left = events

    def watch(cluster: Cluster) -> None:
        def count_down() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                copies.append(copy.deepcopy(cluster))
                assert future(copy.deepcopy(cluster), episode.choose) == undisturbed

        after_every_event(cluster, count_down)

    cluster = episode.play(before=watch)
    cluster.meter()
    assert cluster.ledger.digest() == undisturbed
    assert [future(one, episode.choose) for one in copies] == [undisturbed] * len(copies)


def under_way(cluster: Cluster) -> set[str]:
    """Return the kinds of things that a copy would now find half done."""
    found = set()
    for move in cluster._network._flowing:
        found.add("pull" if move.payload.is_history else "transfer")
    for one in cluster.engines:
        if one._run is not None:
            found.add("run of decodes")
        if any(chunk.computed for chunk in one._chunks if one._run is None and not one.is_idle):
            found.add("chunked prompt")
        if any(request.generated for request in one._waiting):
            found.add("preempted turn")
    if cluster._without_room:
        found.add("prompt without room")
    return found


def test_a_copy_is_right_whatever_is_under_way() -> None:
    pool = engine(Role.MIXED, kv_capacity_tokens=320)
    spec = cluster_of(engine(Role.PREFILL), pool, pool)
    # Growing answers that preempt each other, and conversations that change their decoder.
    conversations = [
        conversation(0.01 * i, (150, 150, 60 + i, 0.0), (220 + i, 10, 30, 0.05)) for i in range(5)
    ]
    deployment = Deployment(reservation=Reservation.NONE, decides_every_turn=True)

    def choose(observation: Observation) -> Placement:
        decode_at = 1 + (observation.conversation + observation.turn) % 2
        prefill_at = 0 if observation.conversation % 2 else decode_at
        return Placement(prefill_at, decode_at, 0.0)

    undisturbed = future(Cluster(spec, deployment, conversations), choose)
    seen: set[str] = set()
    cluster = Cluster(spec, deployment, conversations)

    def check() -> None:
        seen.update(under_way(cluster))
        assert future(copy.deepcopy(cluster), choose) == undisturbed

    after_every_event(cluster, check)
    assert future(cluster, choose) == undisturbed
    assert seen == {
        "transfer",
        "pull",
        "run of decodes",
        "chunked prompt",
        "preempted turn",
        "prompt without room",
    }


@pytest.mark.parametrize("name", BASELINES)
def test_a_policy_and_its_cluster_can_be_copied_together(name: str) -> None:
    scenario = load_scenario(["workload.conversations=14", "cluster=a40_4mixed", "arrivals.rate=4"])
    policy = make_baseline(name, site(scenario.cluster))
    policy.reset(7)
    drawn = draw_episode(scenario.workload, scenario.arrivals, np.random.default_rng(7))
    cluster = Cluster(scenario.cluster, policy.deployment, drawn)
    for _ in range(12):
        cluster.advance()
        cluster.place(policy.decide(cluster.observe()))
    twin_policy, twin = copy.deepcopy((policy, cluster))
    assert future(twin, twin_policy.decide) == future(cluster, policy.decide)


def test_copies_share_what_never_changes() -> None:
    scenario = load_scenario(["workload.conversations=4"])
    drawn = draw_episode(scenario.workload, scenario.arrivals, np.random.default_rng(0))
    cluster = Cluster(scenario.cluster, Deployment(), drawn)
    cluster.advance()
    twin = copy.deepcopy(cluster)
    assert twin.spec is cluster.spec
    assert all(map(lambda a, b: a is b, twin.conversations, cluster.conversations))
    assert all(map(lambda a, b: a is b, twin.ledger, cluster.ledger))
    twin.meter()
    assert len(twin.ledger) == len(cluster.ledger) + 1
