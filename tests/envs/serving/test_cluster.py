"""Conversations whose timelines were worked out by hand."""

from __future__ import annotations

import math
import random
from dataclasses import replace

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
from hypothesis import given
from hypothesis import strategies as st
from random_episodes import EXAMPLES, hardware, link, unprofiled

from conserve_gym.deployment import Deployment, Reservation
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.cluster_spec import ClusterError, ClusterSpec
from conserve_gym.envs.serving.hardware import Hardware
from conserve_gym.envs.serving.network_spec import LinkSpec, NetworkSpec
from conserve_gym.envs.workloads.conversation import Conversation, Turn
from conserve_gym.fleet import Role
from conserve_gym.ledger import FirstToken, KvMoved, Placed, Prefilled, TurnArrived, TurnFinished
from conserve_gym.placement import Placement

HERE = Placement(0, 0)
FROM_0_TO_1 = Placement(0, 1)
MICROSECOND = 1e-6


def exactly(seconds: float) -> object:
    return pytest.approx(seconds, rel=1e-12, abs=1e-12)


def chunk_s(tokens: int, done: int) -> float:
    """Return the time of a step with one chunk and nothing else."""
    return 0.002 + 1e-4 * tokens + 1e-6 * tokens * (done + tokens / 2)


# --- on one engine ---


def test_two_conversations_on_one_engine() -> None:
    cluster = play(
        cluster_of(engine(Role.MIXED)),
        NO_RESERVATION,
        [conversation(0.0, (80, 80, 3, 0.0)), conversation(0.012, (150, 150, 2, 0.0))],
        [HERE, HERE],
    )
    # 80 tokens: 2 + 8 + 3.2 ms. The second conversation comes meanwhile.
    first = 0.0132
    # 99 of its tokens beside one decode that reads 80: 2 + 10 + 4.9005 + 1 + 8 ms.
    second = first + 0.0259005
    # The other 51 after 99, beside one that reads 81: 2 + 5.2 + 6.3495 + 1 + 8.1 ms.
    third = second + 0.0226495
    # One decode that reads 150: 3 + 1 + 7.5 ms.
    last = third + 0.0115
    assert times(cluster, FirstToken) == {(0, 0): exactly(first), (1, 0): exactly(third)}
    assert times(cluster, TurnFinished) == {(0, 0): exactly(third), (1, 0): exactly(last)}
    assert cluster.engines[0].steps == 4


def test_a_later_turn_reuses_whole_blocks() -> None:
    cluster = play(
        cluster_of(engine(Role.MIXED)),
        NO_RESERVATION,
        [conversation(0.0, (80, 80, 3, 0.0), (190, 107, 1, 0.5))],
        [HERE],
    )
    # 13.2 ms of prefill; decodes that read 80 and 81 tokens take the floor of 10.2 ms.
    first_turn = 0.0132 + 2 * 0.0102
    # 82 tokens are held, 80 of them in whole blocks: 110 are computed, 100 and 10 a step.
    step_of_100 = 0.002 + 0.010 + 1e-6 * 100 * (80 + 50)
    step_of_10 = 0.002 + 0.001 + 1e-6 * 10 * (180 + 5)
    second_turn = first_turn + 0.5 + step_of_100 + step_of_10
    assert times(cluster, TurnFinished) == {
        (0, 0): exactly(first_turn),
        (0, 1): exactly(second_turn),
    }
    cached = [event.cached_tokens for event in cluster.ledger if isinstance(event, TurnFinished)]
    assert cached == [0, 80]


def test_a_rewritten_context_reuses_only_what_is_still_valid() -> None:
    cluster = play(
        cluster_of(engine(Role.MIXED)),
        NO_RESERVATION,
        [conversation(0.0, (80, 80, 30, 0.0), (60, 20, 1, 0.0))],
        [HERE],
    )
    cached = [event.cached_tokens for event in cluster.ledger if isinstance(event, TurnFinished)]
    assert cached == [0, 32]  # 40 of the 109 tokens held are valid, 32 of them in whole blocks


def test_a_turn_that_finds_no_block_makes_the_youngest_wait_and_compute_again() -> None:
    # Six blocks. The first turn takes three, the second two; the first takes the last one when it
    # has 48 tokens, and when the second one has 32 there is none left.
    cluster = play(
        cluster_of(engine(Role.MIXED, kv_capacity_tokens=96)),
        NO_RESERVATION,
        [conversation(0.0, (46, 46, 20, 0.0)), conversation(0.001, (30, 30, 8, 0.0))],
        [HERE, HERE],
    )
    assert cluster.engines[0].preemptions == 1
    # 46 tokens; then 30 beside a decode that reads 46.
    both_decode = 0.002 + 0.0046 + 1e-6 * 46 * 23 + 0.002 + 0.0031 + 1e-6 * 30 * 15 + 0.001 + 0.0046
    # Two steps of two sequences take the floor, 10.4 ms; 17 steps of the first alone 10.2 ms.
    alone = both_decode + 2 * 0.0104
    ends = alone + 16 * 0.0102
    # The second one had three tokens: for its fourth it computes 17 again after the 16 of the block
    # that the first one has left it.
    again = ends + 0.002 + 0.0017 + 1e-6 * 17 * (16 + 8.5)
    assert times(cluster, TurnFinished) == {
        (0, 0): exactly(ends),
        (1, 0): exactly(again + 4 * 0.0102),
    }
    assert times(cluster, FirstToken)[1, 0] == exactly(both_decode)


# --- across engines ---


def prefill_s(tier: Hardware, tokens: int, budget: int) -> float:
    law, seconds, done = tier.prefill, 0.0, 0
    while done < tokens:
        chunk = min(budget, tokens - done)
        matrices_ms = math.hypot(law.weights_ms, law.token_us * chunk / 1e3)
        attended_ms = law.attention_ns * chunk * (done + chunk / 2) / 1e6
        work_ms = law.base_ms + matrices_ms + math.hypot(law.scan_us * done / 1e3, attended_ms)
        seconds += (tier.overhead.step_ms + (law.floor_ms**8 + work_ms**8) ** 0.125) / 1e3
        done += chunk
    return seconds


def decode_s(tier: Hardware, held_tokens: int, steps: int) -> float:
    law = tier.decode
    floor_ms = law.floor_ms + law.floor_sequence_us / 1e3
    lone_ms = law.base_ms + law.sequence_us / 1e3
    overhead_ms = tier.overhead.step_ms + tier.overhead.sequence_us / 1e3
    return sum(
        overhead_ms / 1e3 + max(floor_ms, lone_ms + law.kv_us * (held_tokens + step) / 1e3) / 1e3
        for step in range(steps)
    )


def test_a_lone_disaggregated_turn() -> None:
    cluster = play(
        cluster_of(engine(Role.PREFILL), engine(Role.DECODE)),
        NO_RESERVATION,
        [conversation(1.0, (150, 150, 3, 0.0))],
        [FROM_0_TO_1],
    )
    # 100 tokens: 2 + 10 + 5 ms; 50 after them: 2 + 5 + 50 (100 + 25) us.
    prefilled = 1.0 + 0.017 + 0.01325
    # 150 tokens are moved: 4 + 15 ms.
    moved = prefilled + 0.019
    # The prompt's last token is computed where the KV has come to: 149 tokens are read.
    first_token = moved + 0.003 + 0.001 + 149 * 50e-6
    last_token = first_token + 0.003 + 0.001 + 150 * 50e-6 + 0.003 + 0.001 + 151 * 50e-6
    assert times(cluster, Prefilled) == {(0, 0): exactly(prefilled)}
    assert times(cluster, KvMoved) == {(0, 0): exactly(moved)}
    assert times(cluster, FirstToken) == {(0, 0): exactly(first_token)}
    assert times(cluster, TurnFinished) == {(0, 0): exactly(last_token)}


@EXAMPLES
@given(
    seed=st.integers(0, 2**32),
    tokens=st.integers(1, 400),
    output=st.integers(1, 60),
    budgets=st.tuples(st.integers(1, 300), st.integers(1, 300)),
)
def test_a_lone_disaggregated_turn_is_prefill_transfer_and_decode(
    seed: int, tokens: int, output: int, budgets: tuple[int, int]
) -> None:
    rng = random.Random(seed)
    decoder = hardware(rng)
    prefiller = replace(hardware(rng), figures=decoder.figures)
    kv_bytes = decoder.figures.kv_bytes_per_token * tokens
    law = link(rng, decoder.figures.kv_bytes_per_token)
    spec = ClusterSpec(
        name="two tiers",
        hardware={"prefiller": prefiller, "decoder": decoder},
        engines=(
            engine(Role.PREFILL, hardware="prefiller", token_budget=budgets[0]),
            engine(Role.DECODE, hardware="decoder", token_budget=budgets[1]),
        ),
        network=NetworkSpec(same_node=law),
        mixed_token_budget=100,
        standalone="decoder",
    )
    lone = Conversation(rng.uniform(0.0, 10.0), (Turn(tokens, tokens, output, 0.0),))
    with unprofiled():
        cluster = play(spec, NO_RESERVATION, [lone], [FROM_0_TO_1])
    move_ms = law.latency_ms + law.exposed_share * kv_bytes / law.gb_per_s / 1e6
    expected = prefill_s(prefiller, tokens, budgets[0]) + move_ms / 1e3
    expected += decode_s(decoder, tokens - 1, output)
    e2e = times(cluster, TurnFinished)[0, 0] - lone.arrival_s
    assert e2e == pytest.approx(expected, rel=1e-9)


@EXAMPLES
@given(
    seed=st.integers(0, 2**32),
    first=st.integers(1, 400),
    later=st.lists(st.integers(1, 200), max_size=3),
    output=st.integers(1, 60),
    budget=st.integers(1, 300),
    offload_above=st.sampled_from((0.0, 50.0, math.inf)),
)
def test_on_an_idle_cluster_of_equals_colocation_is_never_slower(
    seed: int, first: int, later: list[int], output: int, budget: int, offload_above: float
) -> None:
    rng = random.Random(seed)
    tier = hardware(rng)
    spec = ClusterSpec(
        name="equals",
        hardware={"example": tier},
        engines=(engine(Role.MIXED, count=2, token_budget=budget),),
        network=NetworkSpec(same_node=link(rng, tier.figures.kv_bytes_per_token)),
        mixed_token_budget=100,
        standalone="example",
    )
    turns = [Turn(first, first, output, 0.0)]
    for appended in later:
        turns.append(Turn(sum(turns[-1][:3:2]) + appended, appended, output, rng.uniform(0.0, 1.0)))
    lone = [Conversation(0.0, tuple(turns))]
    placement = Placement(0, 1, offload_above)
    with unprofiled():
        colocated = times(play(spec, NO_RESERVATION, lone, [Placement(1, 1)]), TurnFinished)
        disaggregated = times(play(spec, NO_RESERVATION, lone, [placement]), TurnFinished)
    for turn, ended_s in colocated.items():
        assert disaggregated[turn] >= ended_s * (1.0 - 1e-12)


def test_moves_from_one_engine_share_its_way_out() -> None:
    cluster = play(
        cluster_of(engine(Role.PREFILL), engine(Role.DECODE, count=2)),
        NO_RESERVATION,
        [conversation(0.0, (95, 95, 1, 0.0)), conversation(0.0, (20, 20, 1, 0.0))],
        [FROM_0_TO_1, Placement(0, 2)],
    )
    # The second one arrives when the first one's step has begun: 2 + 9.5 + 4.5125 and 4.2 ms.
    first, second = 0.0160125, 0.0160125 + 0.0042
    # Alone the moves would take 4 + 9.5 and 4 + 2 ms. When the second one has waited its 4 ms, the
    # first one has had its port alone for 4.2: they share it for twice the second one's 2.
    moved = (first + 0.004 + 0.0095 + 0.002, second + 0.004 + 2 * 0.002)
    assert times(cluster, Prefilled) == {(0, 0): exactly(first), (1, 0): exactly(second)}
    assert times(cluster, KvMoved) == {(i, 0): exactly(s) for i, s in enumerate(moved)}
    seconds = {e.conversation: e.seconds for e in cluster.ledger if isinstance(e, KvMoved)}
    assert seconds == {0: exactly(0.0155), 1: exactly(0.008)}


def test_a_prompt_without_room_at_its_decoder_waits_and_others_overtake_it() -> None:
    # Engine 1 has 4 blocks. The first conversation takes 3 of them, so the second one waits for
    # its end; the third one goes to engine 2.
    cluster = play(
        cluster_of(
            engine(Role.PREFILL),
            engine(Role.DECODE, kv_capacity_tokens=64),
            engine(Role.DECODE),
        ),
        NO_RESERVATION,
        [
            conversation(0.0, (40, 40, 5, 0.0)),
            conversation(0.001, (30, 30, 1, 0.0)),
            conversation(0.002, (45, 45, 1, 0.0)),
        ],
        [FROM_0_TO_1, FROM_0_TO_1, Placement(0, 2)],
    )
    first_prefilled = 0.0068
    third_prefilled = first_prefilled + 0.002 + 0.0045 + 1e-6 * 45 * 22.5
    first_ended = first_prefilled + 0.008 + 5 * 0.0102
    second_prefilled = first_ended + 0.002 + 0.003 + 1e-6 * 30 * 15
    assert times(cluster, Prefilled) == {
        (0, 0): exactly(first_prefilled),
        (1, 0): exactly(second_prefilled),
        (2, 0): exactly(third_prefilled),
    }
    queued = [event.queued_s for event in cluster.ledger if isinstance(event, Prefilled)]
    assert queued == [0.0, exactly(first_prefilled - 0.002), exactly(first_ended - 0.001)]


def test_an_engine_that_decodes_takes_up_a_prompt_for_another_as_soon_as_there_is_room() -> None:
    # Engine 0 decodes a long answer when a prompt of 4 blocks for engine 1 comes. There, a turn
    # holds 7 of 9 blocks until its end. The prompt begins with engine 0's next step after that,
    # not when the long answer is done.
    cluster = play(
        cluster_of(engine(Role.MIXED), engine(Role.DECODE, kv_capacity_tokens=144)),
        NO_RESERVATION,
        [
            conversation(0.0, (40, 40, 100, 0.0)),
            conversation(0.003, (100, 100, 5, 0.0)),
            conversation(0.01, (50, 50, 1, 0.0)),
        ],
        [Placement(0, 0), Placement(1, 1), FROM_0_TO_1],
    )
    room_freed = 0.003 + 0.017 + 4 * 0.0102
    assert times(cluster, TurnFinished)[1, 0] == exactly(room_freed)
    next_step = 0.0068 + 6 * 0.0102
    assert next_step - 0.0102 < room_freed < next_step
    # 50 tokens beside a decode that reads 46.
    prefilled = next_step + 0.002 + 0.0051 + 1e-6 * 50 * 25 + 0.001 + 46 * 100e-6
    assert times(cluster, Prefilled) == {(2, 0): exactly(prefilled)}


def test_a_prompt_for_another_engine_is_never_preempted() -> None:
    # Engine 0 has 5 blocks: the first turn takes 2, a prompt for engine 1 that comes later 3. When
    # the turn has 32 tokens and finds no block, it is itself the youngest that may lose its KV.
    cluster = play(
        cluster_of(engine(Role.MIXED, kv_capacity_tokens=80, token_budget=10), engine(Role.DECODE)),
        NO_RESERVATION,
        [conversation(0.0, (30, 30, 12, 0.0)), conversation(0.001, (45, 45, 1, 0.0))],
        [Placement(0, 0), FROM_0_TO_1],
    )
    assert cluster.engines[0].preemptions == 1
    # Three chunks of 10; two of 9 beside a decode, at its floor; 10, 10 and 7 alone.
    alone = sum(chunk_s(10, done) for done in (0, 10, 20, 18, 28)) + chunk_s(7, 38)
    prefilled = alone + 2 * 0.0102
    assert times(cluster, Prefilled) == {(1, 0): exactly(prefilled)}
    # The move of 45 tokens frees the room for a third block. The 32 tokens of the other two are
    # still there: one is computed again; 8 decodes are left.
    moved = prefilled + 0.004 + 0.0045
    assert times(cluster, TurnFinished)[0, 0] == exactly(moved + chunk_s(1, 32) + 8 * 0.0102)


def test_kv_that_was_moved_waits_for_a_place_in_the_batch() -> None:
    # The decoder runs one turn at a time, as it would if both were prefilled there.
    cluster = play(
        cluster_of(engine(Role.PREFILL), engine(Role.DECODE, max_sequences=1)),
        NO_RESERVATION,
        [conversation(0.0, (40, 40, 5, 0.0)), conversation(0.0, (50, 50, 2, 0.0))],
        [FROM_0_TO_1, FROM_0_TO_1],
    )
    first_ended = 0.0148 + 5 * 0.0102
    assert times(cluster, KvMoved)[1, 0] < first_ended
    assert times(cluster, FirstToken)[1, 0] == exactly(first_ended + 0.0102)


def test_moves_between_different_engines_do_not_meet() -> None:
    cluster = play(
        cluster_of(engine(Role.PREFILL, count=2), engine(Role.DECODE, count=2)),
        NO_RESERVATION,
        [conversation(0.0, (40, 40, 1, 0.0)), conversation(0.001, (40, 40, 1, 0.0))],
        [Placement(0, 2), Placement(1, 3)],
    )
    assert times(cluster, KvMoved) == {(0, 0): exactly(0.0148), (1, 0): exactly(0.0158)}


def test_the_nodes_of_two_engines_decide_which_wires_connect_them() -> None:
    cluster = play(
        cluster_of(
            engine(Role.PREFILL),
            engine(Role.DECODE, node=1),
            engine(Role.DECODE),
            network=replace(NETWORK, cross_node=LinkSpec(7.0, 1.0, 1.0)),
        ),
        NO_RESERVATION,
        [conversation(0.0, (40, 40, 1, 0.0)), conversation(1.0, (40, 40, 1, 0.0))],
        [FROM_0_TO_1, Placement(0, 2)],
    )
    seconds = {e.conversation: e.seconds for e in cluster.ledger if isinstance(e, KvMoved)}
    assert seconds == {0: exactly(0.007 + 0.040), 1: exactly(0.004 + 0.004)}


def moves(cluster: Cluster) -> list[tuple[int, int, int, int, int]]:
    """Return conversation, turn, source, target and tokens of every KV move."""
    return [(e[1], e[2], e[3], e[4], e[5]) for e in cluster.ledger if isinstance(e, KvMoved)]


def move_s(tokens: int) -> float:
    """Return the time of a lone move of what a prefill has hidden half of."""
    return 0.004 + 1e-4 * tokens


def pull_s(tokens: int) -> float:
    """Return the time of a lone move that nothing hides."""
    return 0.004 + 2e-4 * tokens


def test_an_offloaded_turn_pulls_what_the_prefill_engine_lacks_and_sends_what_is_new() -> None:
    # Turn 0: 40 tokens at engine 0, 5 more at engine 1, where 44 are held then, 32 of them in two
    # whole blocks. Turn 1 keeps 45 of its 100 tokens. Engine 0 still has 40, 32 in whole blocks:
    # there is nothing to pull.
    plan = conversation(0.0, (40, 40, 5, 0.0), (100, 55, 1, 1.0))
    spec = cluster_of(engine(Role.PREFILL), engine(Role.DECODE))
    cluster = play(spec, NO_RESERVATION, [plan], [Placement(0, 1, 50.0)])
    assert moves(cluster) == [(0, 0, 0, 1, 40), (0, 1, 0, 1, 68)]
    first_turn = chunk_s(40, 0) + move_s(40) + 5 * 0.0102
    # 68 tokens after 32; the last of them is decoded at engine 1.
    second_turn = first_turn + 1.0 + chunk_s(68, 32) + move_s(68) + 0.0102
    assert times(cluster, TurnFinished) == {
        (0, 0): exactly(first_turn),
        (0, 1): exactly(second_turn),
    }

    # With 60 tokens out, 96 are in whole blocks of engine 1: 64 more than at engine 0.
    plan = conversation(0.0, (40, 40, 60, 0.0), (200, 101, 1, 1.0))
    cluster = play(spec, NO_RESERVATION, [plan], [Placement(0, 1, 50.0)])
    assert moves(cluster) == [(0, 0, 0, 1, 40), (0, 1, 1, 0, 64), (0, 1, 0, 1, 104)]
    pulled = times(cluster, TurnFinished)[0, 0] + 1.0 + pull_s(64)
    computed = pulled + chunk_s(100, 96) + chunk_s(4, 196)
    assert times(cluster, Prefilled)[0, 1] == exactly(computed)
    assert times(cluster, FirstToken)[0, 1] == exactly(
        computed + move_s(104) + decode_s(HARDWARE, 199, 1)
    )


def test_a_turn_that_is_placed_elsewhere_pulls_its_history() -> None:
    every_turn = Deployment(reservation=Reservation.NONE, decides_every_turn=True)
    cluster = Cluster(
        cluster_of(engine(Role.MIXED), engine(Role.MIXED), engine(Role.MIXED)),
        every_turn,
        [conversation(0.0, (80, 80, 1, 0.0), (120, 40, 1, 1.0), (160, 40, 1, 1.0))],
    )
    for placement in (Placement(0, 0), Placement(1, 1), Placement(2, 0, 0.0)):
        assert cluster.advance()
        cluster.place(placement)
    assert not cluster.advance()
    # To engine 1, and computed there; from there whole blocks to engine 2, and home to engine 0,
    # which still has the 80 tokens of turn 0.
    assert moves(cluster) == [(0, 1, 0, 1, 80), (0, 2, 1, 2, 112), (0, 2, 2, 0, 80)]
    home_s = 0.004 + 48 * 1e-4 + 32 * 2e-4  # the 48 that were computed, and 32 of those pulled
    first = chunk_s(80, 0)
    second = first + 1.0 + pull_s(80) + chunk_s(40, 80)
    third = second + 1.0 + pull_s(112) + chunk_s(48, 112) + home_s + decode_s(HARDWARE, 159, 1)
    assert list(times(cluster, TurnFinished).values()) == [
        exactly(first),
        exactly(second),
        exactly(third),
    ]


def test_a_context_that_was_rewritten_is_forgotten_everywhere() -> None:
    # Turn 1 keeps 20 tokens of turn 0, at engine 0 as well: of what turn 2 keeps, engine 0 has one
    # whole block, and the rest comes from engine 1.
    cluster = play(
        cluster_of(engine(Role.PREFILL), engine(Role.DECODE)),
        NO_RESERVATION,
        [conversation(0.0, (80, 80, 1, 0.0), (60, 40, 10, 1.0), (160, 92, 1, 1.0))],
        [Placement(0, 1, 50.0)],
    )
    assert moves(cluster) == [(0, 0, 0, 1, 80), (0, 2, 1, 0, 48), (0, 2, 0, 1, 96)]
    cached = [event.cached_tokens for event in cluster.ledger if isinstance(event, TurnFinished)]
    assert cached == [79, 16, 159]


@pytest.mark.parametrize(("ended_arrives_s", "cached_tokens"), [(0.0, 48), (1.0, 0)])
def test_kv_of_conversations_that_have_ended_ages_out_like_any_other(
    ended_arrives_s: float, cached_tokens: int
) -> None:
    # Ten blocks. One conversation ends with 4 blocks, another one leaves 4 behind in a gap. A third
    # one takes the two free ones and four of whichever was used first.
    in_gap = conversation(0.5, (60, 60, 1, 0.0), (70, 10, 1, 5.0))
    ended = conversation(ended_arrives_s, (61, 61, 1, 0.0))
    plans = sorted([in_gap, ended], key=lambda plan: plan.arrival_s)
    cluster = play(
        cluster_of(engine(Role.MIXED, kv_capacity_tokens=160)),
        NO_RESERVATION,
        [*plans, conversation(3.0, (90, 90, 1, 0.0))],
        [HERE, HERE, HERE],
    )
    last = [event for event in cluster.ledger if isinstance(event, TurnFinished)][-1]
    assert (last.turn, last.cached_tokens) == (1, cached_tokens)


def test_kv_that_was_moved_counts_as_cached_even_if_it_is_lost_again() -> None:
    # Engine 1 has 5 blocks and an older turn that grows into the last of them.
    cluster = play(
        cluster_of(engine(Role.PREFILL), engine(Role.DECODE, kv_capacity_tokens=80)),
        NO_RESERVATION,
        [conversation(0.0, (40, 40, 30, 0.0)), conversation(0.001, (30, 30, 9, 0.0))],
        [Placement(1, 1), FROM_0_TO_1],
    )
    assert cluster.engines[1].preemptions == 1
    cached = {
        e.conversation: e.cached_tokens for e in cluster.ledger if isinstance(e, TurnFinished)
    }
    assert cached == {0: 0, 1: 29}


# --- the door ---


def test_the_door_opens_when_a_rewritten_context_is_known_to_hold_less() -> None:
    cluster = play(
        cluster_of(engine(Role.MIXED, kv_capacity_tokens=160)),
        Deployment(reservation=Reservation.PER_TURN),
        [
            conversation(0.0, (100, 100, 20, 0.0), (50, 50, 100, 1.0)),
            conversation(0.5, (60, 60, 1, 0.0)),
        ],
        [HERE, HERE],
    )
    # The first conversation is known to hold 120 of 160 tokens until its second turn arrives.
    assert times(cluster, Placed)[1, 0] == times(cluster, TurnArrived)[0, 1]


def test_the_oracle_counts_peaks_and_the_router_what_it_has_seen() -> None:
    conversations = [
        conversation(0.0, (50, 50, 70, 0.0)),  # will hold 120 of 160 tokens
        conversation(0.1, (50, 50, 1, 0.0)),
    ]
    spec = cluster_of(engine(Role.MIXED, kv_capacity_tokens=160))

    def placed_s(reservation: Reservation) -> float:
        deployment = Deployment(reservation=reservation)
        cluster = play(spec, deployment, conversations, [HERE, HERE])
        ended = times(cluster, TurnFinished)[0, 0]
        placed = times(cluster, Placed)[1, 0]
        assert placed in (0.1, ended)
        return placed

    assert placed_s(Reservation.NONE) == placed_s(Reservation.PER_TURN) == 0.1
    assert placed_s(Reservation.ORACLE_PEAK) > 0.1


# --- what a cluster refuses ---


def test_a_conversation_larger_than_the_smallest_pool_is_refused() -> None:
    spec = cluster_of(engine(Role.MIXED), engine(Role.PREFILL, kv_capacity_tokens=96))
    fits = conversation(0.0, (90, 90, 6, 0.0))
    assert len(play(spec, NO_RESERVATION, [fits], [Placement(1, 0)]).ledger)
    too_long = conversation(0.0, (90, 90, 7, 0.0))
    with pytest.raises(ClusterError, match=r"conversation 1 grows to 97 tokens.*'example', 96 "):
        Cluster(spec, NO_RESERVATION, [fits, too_long])


def test_a_conversation_without_turns_is_refused() -> None:
    with pytest.raises(ClusterError, match="conversation 0 has no turns"):
        Cluster(cluster_of(engine(Role.MIXED)), NO_RESERVATION, [Conversation(0.0, ())])


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        (Placement(0, 0), "engine 0 does not decode"),
        (Placement(0, 3), "engine 3 does not decode"),
        (Placement(1, 2), "engine 1 does not prefill for others"),
        (Placement(3, 1), "engine 3 does not prefill for others"),
    ],
)
def test_a_placement_against_the_roles_is_refused(placement: Placement, message: str) -> None:
    spec = cluster_of(engine(Role.PREFILL), engine(Role.DECODE, count=2))
    cluster = Cluster(spec, NO_RESERVATION, [conversation(0.0, (10, 10, 1, 0.0))])
    assert cluster.advance()
    with pytest.raises(ValueError, match=message):
        cluster.place(placement)


def test_a_cluster_without_conversations_has_ended() -> None:
    cluster = Cluster(cluster_of(engine(Role.MIXED)), NO_RESERVATION, [])
    assert not cluster.advance()
    assert cluster.observe().conversation == -1
