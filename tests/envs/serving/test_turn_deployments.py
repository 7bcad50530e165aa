"""Turns that are decided one by one: what is copied, what is computed again, what engines tell."""

from __future__ import annotations

import pytest
from examples import cluster_of, conversation, engine

from conserve_gym.deployment import Deployment
from conserve_gym.envs.configuration import load_scenario
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.profile import site
from conserve_gym.envs.serving.standalone import StandaloneEngine
from conserve_gym.fleet import Role
from conserve_gym.ledger import KvMoved, Prefilled, TurnFinished
from conserve_gym.placement import Placement

EVERY_TURN = Deployment(decides_every_turn=True)


def played(deployment: Deployment, placements: list[Placement]) -> Cluster:
    """Play one conversation of two turns on a prefiller and two decoders."""
    spec = cluster_of(engine(Role.PREFILL), engine(Role.DECODE, count=2))
    turns = conversation(0.0, (640, 640, 33, 0.0), (640 + 33 + 64, 64, 8, 0.0))
    cluster = Cluster(spec, deployment, [turns])
    for placement in placements:
        assert cluster.advance()
        cluster.place(placement)
    assert not cluster.advance()
    return cluster


def moves(cluster: Cluster) -> list[tuple[int, int, int, int]]:
    return [(e.turn, e.source, e.target, e.tokens) for e in cluster.ledger if type(e) is KvMoved]


def cached(cluster: Cluster) -> list[int]:
    return [e.cached_tokens for e in cluster.ledger if type(e) is TurnFinished]


def test_a_turn_that_moves_on_takes_its_history_along() -> None:
    cluster = played(EVERY_TURN, [Placement(1, 1), Placement(2, 2)])
    assert moves(cluster) == [(1, 1, 2, 672)]
    assert cached(cluster) == [0, 672]


def test_without_pulls_it_is_computed_again_and_nothing_moves() -> None:
    cluster = played(
        Deployment(decides_every_turn=True, pulls_history=False), [Placement(1, 1), Placement(2, 2)]
    )
    assert moves(cluster) == []
    assert cached(cluster) == [0, 0]


@pytest.mark.parametrize("pulls", [True, False])
def test_a_prefiller_keeps_the_prompts_that_it_has_computed(pulls: bool) -> None:
    deployment = Deployment(decides_every_turn=True, pulls_history=pulls)
    cluster = played(deployment, [Placement(0, 1), Placement(0, 1)])
    (second,) = (e for e in cluster.ledger if type(e) is Prefilled and e.turn == 1)
    # The answer of 33 tokens was never there: it is copied, or computed again.
    assert second.cached_tokens == (672 if pulls else 640)


def test_engines_tell_their_queues_where_the_deployment_asks() -> None:
    spec = cluster_of(engine(Role.PREFILL), engine(Role.DECODE, count=2))
    episode = [conversation(0.0, (640, 640, 200, 0.0)) for _ in range(3)]
    cluster = Cluster(spec, Deployment(engine_exports=True), episode)
    assert cluster.advance()
    empty = cluster.observe().exports
    assert [(one.prompt_tokens, one.decoding, one.kv_read_tokens) for one in empty] == [
        (0, 0, 0)
    ] * 3
    assert [one.kv_free_tokens for one in empty] == list(cluster.fleet.kv_capacity_tokens)
    for _ in range(2):
        cluster.place(Placement(0, 1))
        assert cluster.advance()
    told = cluster.observe().exports
    assert told[0].prompt_tokens == 1280  # one is being computed, and no step has ended
    assert told[2] == empty[2]


def test_a_running_prompt_counts_with_what_is_left_of_it() -> None:
    spec = load_scenario().cluster
    long = conversation(0.0, (20_000, 20_000, 2, 0.0))
    later = conversation(0.5, (100, 100, 2, 0.0))
    cluster = Cluster(spec, Deployment(engine_exports=True), [long, later])
    cluster.advance()
    cluster.place(Placement(0, 1))
    cluster.advance()
    seen = cluster.observe()
    assert seen.engine_field("prompt_in_flight")[0] == 20_000
    assert seen.exports[0].prompt_tokens == 20_000 - 8192  # its first step has ended


def test_a_prompt_whose_history_is_being_copied_counts_with_what_it_has_to_compute() -> None:
    spec = cluster_of(engine(Role.PREFILL), engine(Role.DECODE, count=2))
    moving = conversation(0.0, (640, 640, 33, 0.0), (640 + 33 + 64, 64, 8, 0.0))
    # Copies of 672 tokens take 4 + 134 ms; the other comes in the middle of it.
    deployment = Deployment(decides_every_turn=True, engine_exports=True)
    cluster = Cluster(spec, deployment, [moving])
    cluster.advance()
    cluster.place(Placement(1, 1))
    cluster.advance()
    came = conversation(cluster.now + 0.05, (16, 16, 1, 0.0))
    cluster = Cluster(spec, deployment, [moving, came])
    for at in (1, 2):
        cluster.advance()
        cluster.place(Placement(at, at))
    assert cluster.advance()
    seen = cluster.observe()
    assert seen.conversation == 1
    assert seen.engine_field("prompt_in_flight")[2] == 64
    assert seen.exports[2].prompt_tokens == 64


def test_nothing_is_told_where_nobody_asks() -> None:
    cluster = Cluster(
        load_scenario().cluster, Deployment(), [conversation(0.0, (100, 100, 2, 0.0))]
    )
    cluster.advance()
    assert cluster.observe().exports == ()


def test_a_profile_is_the_law_that_engines_obey() -> None:
    spec = load_scenario().cluster
    known = site(spec)
    assert known.prefillers == (0,)
    alone = StandaloneEngine.of(spec).latencies(conversation(0.0, (9000, 9000, 1, 0.0)).turns)
    assert known.engines[1].prefill_s(9000, 0) == pytest.approx(alone.ttfet_s)
    assert known.engines[0].prefill_s(9000, 0) < alone.ttfet_s  # in larger chunks
    assert 0.0 < known.network.transfer_s(0, 1, 100) < known.network.transfer_s(0, 1, 9000)
