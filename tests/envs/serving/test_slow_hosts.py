"""What llama.cpp on a processor adds: requests that take time, copies that stop engines, tiles."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
from examples import HARDWARE, NO_RESERVATION, cluster_of, conversation, engine, play, times
from hypothesis import HealthCheck, given, settings
from random_episodes import Episode, episodes

from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.envs.serving.network_spec import LinkSpec, NetworkSpec
from conserve_gym.envs.serving.standalone import StandaloneEngine
from conserve_gym.envs.serving.step_time import StepTime
from conserve_gym.fleet import Role
from conserve_gym.ledger import FirstToken, KvMoved, TurnFinished
from conserve_gym.placement import Placement

# 4 ms and 0.2 ms a token, half of it at each engine.
STOPPING = NetworkSpec(LinkSpec(4.0, gb_per_s=5.0, exposed_share=1.0, stops_engines=True))
PAIR = (engine(Role.PREFILL), engine(Role.DECODE))
AWAY = Placement(0, 1)


def with_requests_of(spec: ClusterSpec, request_ms: float) -> ClusterSpec:
    tiers = {
        name: replace(tier, overhead=replace(tier.overhead, request_ms=request_ms))
        for name, tier in spec.hardware.items()
    }
    return replace(spec, hardware=tiers)


def stopping(spec: ClusterSpec) -> ClusterSpec:
    def link(of: LinkSpec | None) -> LinkSpec | None:
        return of and replace(of, stops_engines=True)

    network = spec.network
    pairs = tuple(replace(pair, link=link(pair.link)) for pair in network.pairs)
    both = NetworkSpec(link(network.same_node), link(network.cross_node), pairs)
    return replace(spec, network=both)


def test_a_request_takes_its_time_at_every_engine() -> None:
    alone = [conversation(0.0, (80, 80, 5, 0.0), (100, 16, 5, 0.5))]
    at_home, away = Placement(1, 1), AWAY
    for placement, engines in ((at_home, 1), (away, 2)):
        found = [
            times(play(spec, NO_RESERVATION, alone, [placement]), FirstToken)
            for spec in (cluster_of(*PAIR), with_requests_of(cluster_of(*PAIR), 7.0))
        ]
        assert found[1][0, 0] - found[0][0, 0] == pytest.approx(engines * 7e-3)
        assert found[1][0, 1] - found[0][0, 1] == pytest.approx((engines + 1) * 7e-3)


def test_a_conversation_alone_pays_for_its_requests() -> None:
    turns = conversation(0.0, (80, 80, 5, 0.0), (100, 16, 5, 0.5)).turns
    slow = replace(HARDWARE, overhead=replace(HARDWARE.overhead, request_ms=7.0))
    found = [StandaloneEngine(tier, 100, 16).latencies(turns) for tier in (HARDWARE, slow)]
    assert found[1].ttfet_s - found[0].ttfet_s == pytest.approx(14e-3)


def test_a_copy_waits_for_a_step_and_stops_both_engines() -> None:
    spec = with_requests_of(cluster_of(*PAIR, network=STOPPING), 1.0)
    # Only one of these prompts fits into a step: the second one's begins where the first one's
    # ends, before the request for a copy has come.
    given = [conversation(at, (60, 60, 5, 0.0)) for at in (0.0, 1e-3)]
    cluster = play(spec, NO_RESERVATION, given, [AWAY, AWAY])
    prefill_s = 2e-3 + 60e-4 + 60 * 30e-6
    half_s = (4.0 + 0.2 * 60) / 2 * 1e-3
    first, second = (event for event in cluster.ledger if isinstance(event, KvMoved))
    assert first.seconds == pytest.approx(prefill_s + half_s + 1e-3 + half_s)
    # The other copy is written while the first one is read, a request after it was.
    assert second.seconds == pytest.approx(half_s + half_s + 1e-3 + half_s)


def test_decodes_stand_still_while_a_copy_is_read() -> None:
    decoding = conversation(0.0, (16, 16, 30, 0.0))
    given = [decoding, conversation(0.1, (90, 90, 2, 0.0))]
    spec = cluster_of(*PAIR, network=STOPPING)
    free = cluster_of(*PAIR, network=NetworkSpec(LinkSpec(4.0, 5.0, 1.0)))
    ends = [
        times(play(one, NO_RESERVATION, given, [Placement(1, 1), AWAY]), TurnFinished)[0, 0]
        for one in (free, spec)
    ]
    half_s = (4.0 + 0.2 * 89) / 2 * 1e-3
    assert ends[1] - ends[0] == pytest.approx(half_s, rel=0.2)


def test_a_chunk_below_a_tile_attends_at_another_cost() -> None:
    tiled = replace(HARDWARE, prefill=replace(HARDWARE.prefill, untiled=3.0, tile_from=64))
    for tokens, times_as_much in ((63, 3.0), (64, 1.0)):
        attention_s = 1e-6 * tokens * (1000 + tokens / 2)
        found = StepTime(tiled).step(tokens, 1000) - StepTime(HARDWARE).step(tokens, 1000)
        assert found == pytest.approx((times_as_much - 1.0) * attention_s, abs=1e-12)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(episodes())
def test_everything_is_served_and_copies_of_a_cluster_go_on_alike(episode: Episode) -> None:
    slow = replace(episode, spec=with_requests_of(stopping(episode.spec), 3.0))
    halves = []

    def keep(cluster: object) -> None:
        if not halves:
            halves.append(copy.deepcopy(cluster))

    cluster = slow.play(at_door=keep)
    finished = sum(isinstance(event, TurnFinished) for event in cluster.ledger)
    assert finished == sum(len(one.turns) for one in slow.conversations)
    for each in cluster.engines:
        assert each.is_idle
        assert each.kv.available_blocks == each.kv.capacity_blocks
    if halves:
        half = halves[0]
        while half.advance():
            half.place(slow.choose(half.observe()))
        assert list(half.ledger) == list(cluster.ledger)
