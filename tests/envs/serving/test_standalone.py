"""Standalone latencies are those of a conversation that has the engine to itself."""

from __future__ import annotations

import random

import pytest
from examples import (
    HARDWARE,
    NETWORK,
    NO_RESERVATION,
    cluster_of,
    conversation,
    engine,
    play,
    times,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_episodes import hardware, turns, unprofiled

from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.envs.serving.standalone import StandaloneEngine
from conserve_gym.envs.workloads.conversation import Conversation
from conserve_gym.fleet import Role
from conserve_gym.ledger import FirstToken, TurnFinished
from conserve_gym.placement import Placement


def test_latencies_by_hand() -> None:
    lone = conversation(0.0, (80, 80, 3, 0.0), (190, 107, 2, 0.5))
    # 80 tokens, two decodes at the floor, the gap, 100 tokens after 80 cached ones and the last 10;
    # then a decode that reads 190.
    first_token = 0.0132 + 2 * 0.0102 + 0.5 + (0.002 + 0.010 + 0.013) + (0.002 + 0.001 + 0.00185)
    decode = 0.003 + 0.001 + 190 * 50e-6
    latencies = StandaloneEngine(HARDWARE, 100, 16).latencies(lone.turns)
    assert latencies == pytest.approx((first_token, decode, first_token + decode), rel=1e-12)


def test_a_last_turn_of_one_token_has_no_gap_between_tokens() -> None:
    latencies = StandaloneEngine(HARDWARE, 100, 16).latencies(
        conversation(0.0, (80, 80, 1, 0.0)).turns
    )
    assert latencies == pytest.approx((0.0132, 0.0, 0.0132), rel=1e-12)


def test_it_is_the_lone_engine_of_a_cluster() -> None:
    spec = cluster_of(engine(Role.MIXED))
    played = conversation(0.0, (150, 150, 20, 0.0)).turns
    by_hand = StandaloneEngine(HARDWARE, spec.mixed_token_budget, 16)
    assert StandaloneEngine.of(spec).latencies(played) == by_hand.latencies(played)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    data=st.data(),
    seed=st.integers(0, 2**32),
    token_budget=st.integers(1, 300),
    block_tokens=st.sampled_from((1, 4, 16)),
)
def test_latencies_are_those_of_a_simulated_lone_conversation(
    data: st.DataObject, seed: int, token_budget: int, block_tokens: int
) -> None:
    rng = random.Random(seed)
    tier = hardware(rng)
    lone = Conversation(rng.uniform(0.0, 5.0), data.draw(turns(rng)))
    spec = ClusterSpec(
        name="lone",
        hardware={"example": tier},
        engines=(
            engine(
                Role.MIXED,
                token_budget=token_budget,
                block_tokens=block_tokens,
                kv_capacity_tokens=1600,
            ),
        ),
        network=NETWORK,
        mixed_token_budget=token_budget,
        standalone="example",
    )
    with unprofiled():
        cluster = play(spec, NO_RESERVATION, [lone], [Placement(0, 0)])
    last = len(lone.turns) - 1
    ttfet_s = times(cluster, FirstToken)[0, last] - lone.arrival_s
    e2e_s = times(cluster, TurnFinished)[0, last] - lone.arrival_s
    gaps = lone.turns[-1].output_tokens - 1
    tbt_s = (e2e_s - ttfet_s) / gaps if gaps else 0.0
    expected = StandaloneEngine.of(spec).latencies(lone.turns)
    assert expected == pytest.approx((ttfet_s, tbt_s, e2e_s), rel=1e-9, abs=1e-12)
