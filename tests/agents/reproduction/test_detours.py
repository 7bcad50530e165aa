"""Misrouted turns: what they wait for in the artifact, and what they do in a whole cluster."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from settings import arriving, drawn, tiny

from conserve_gym.agents.reproduction.detours import (
    Detours,
    MisroutingCluster,
    VirtualPrefiller,
    detour_s,
    misrouted,
)
from conserve_gym.agents.reproduction.recording import Draw
from conserve_gym.baselines.conserve import ConServe
from conserve_gym.envs.workloads.conversation import Conversation, Turn
from conserve_gym.ledger import KvMoved, Prefilled
from conserve_gym.observer import Observer


class LiteralPrefiller:
    """What ``VirtualPrefiller`` says, prompt by prompt and block by block."""

    def __init__(self, came_s: list[float], left_s: list[float]) -> None:
        self.came_s, self.left_s = came_s, left_s
        self.blocks: list[tuple[float, float]] = []

    def delay_s(self, came: float) -> float:
        """Wait at the gate for as long as somebody blocks the prefiller."""
        now = came
        while True:
            ends = [ends for begins, ends in self.blocks if begins <= now < ends]
            if not ends:
                return now - came
            now = ends[0]

    def block(self, now: float, seconds: float) -> float:
        until = now
        for came, left in zip(self.came_s, self.left_s, strict=True):
            delay = self.delay_s(came)
            if came + delay <= now < left + delay:
                until = max(until, left + delay)
        self.blocks.append((until, until + seconds))
        return until - now


GAPS = st.floats(0.0, 2.0, allow_subnormal=False)


@given(
    st.lists(st.tuples(GAPS, st.floats(0.01, 4.0)), min_size=1, max_size=12),
    st.lists(st.tuples(GAPS, st.floats(0.001, 1.5)), max_size=10),
)
def test_the_virtual_prefiller_does_what_it_says(
    prompts: list[tuple[float, float]], blocks: list[tuple[float, float]]
) -> None:
    now, came, left = 0.0, [], []
    for gap, stay in prompts:
        now += gap
        came.append(now)
        left.append(now + stay)
    ours, literal = VirtualPrefiller(came, left), LiteralPrefiller(came, left)
    assert ours.delays_s() == [0.0] * len(came)
    now = 0.0
    for gap, seconds in blocks:
        now += gap
        waited = ours.block(now, seconds)
        assert waited >= 0.0
        assert waited == pytest.approx(literal.block(now, seconds), abs=1e-9)
    delays = ours.delays_s()
    assert all(delay >= 0.0 for delay in delays)
    assert delays == pytest.approx([literal.delay_s(time) for time in came], abs=1e-9)


def test_a_block_waits_for_the_queue_and_puts_off_who_comes_meanwhile() -> None:
    # Two prompts leave at 2 and 3; a turn that comes at 1.5 blocks from 3 to 4; the third prompt
    # comes at 3.25 and is put off to 4, so that a turn at 5.5 waits for it until 5.75.
    prefiller = VirtualPrefiller([0.0, 1.0, 3.25, 9.0], [2.0, 3.0, 5.0, 10.0])
    assert prefiller.block(1.5, 1.0) == 1.5
    assert prefiller.delays_s() == [0.0, 0.0, 0.75, 0.0]
    assert prefiller.block(5.5, 0.1) == pytest.approx(0.25)
    assert prefiller.block(7.0, 0.1) == 0.0


def of_counts(counts: Sequence[int], numbers: Sequence[int], seed: int) -> Draw:
    """Return a draw of conversations with so many turns."""
    turns = tuple((Turn(1, 1, 1, 0.0),) * count for count in counts)
    times = (0.0,) * len(counts)
    return Draw(tuple(numbers), turns, times, times, seed)


COUNTS = st.lists(st.integers(1, 6), min_size=1, max_size=20)


@given(COUNTS, st.integers(0, 100))
def test_no_share_misroutes_nothing_and_the_whole_every_later_turn(
    counts: list[int], seed: int
) -> None:
    draw = of_counts(counts, range(len(counts)), seed)
    later = {(place, turn) for place, count in enumerate(counts) for turn in range(1, count)}
    assert misrouted(draw, 0.0) == frozenset()
    assert misrouted(draw, 1.0) == later
    few, many = (misrouted(draw, share) for share in (0.2, 0.6))
    assert few <= many <= later


@given(COUNTS, st.randoms(use_true_random=False), st.integers(0, 100))
def test_what_is_misrouted_does_not_depend_on_the_order(
    counts: list[int], rng: random.Random, seed: int
) -> None:
    """The artifact draws in the order of the workload, whoever comes first."""
    in_order = misrouted(of_counts(counts, range(len(counts)), seed), 0.4)
    numbers = list(range(len(counts)))
    rng.shuffle(numbers)
    in_places = [counts[number] for number in numbers]
    shuffled = misrouted(of_counts(in_places, numbers, seed), 0.4)
    assert {(numbers[place], turn) for place, turn in shuffled} == in_order


def test_a_tenth_of_the_later_turns_is_misrouted() -> None:
    assert 0.08 < len(misrouted(of_counts([5] * 2000, range(2000), 42), 0.1)) / 8000 < 0.12


@pytest.mark.parametrize(
    ("history", "new", "ms"),
    [
        # both moves short, the step short; bookkeeping 4 ms and 0.625 us a token
        (1000, 24, 4.849 + 14.5 + 4.849 + 4.64),
        (1024, 76, 4.849 + 14.5 + 4.849 + 4.6875),
        (1025, 75, 5.27 + 1.009625 + 14.5 + 4.849 + 4.6875),
        (100, 1025, 4.849 + 14.5 + 5.27 + 1.009625 + 4.703125),
        (11_900, 100, 5.27 + 11.7215 + 14.5 + 4.849 + 11.5),
        (11_901, 100, 5.27 + 11.722485 + 5.6 + 11.40095 + 4.849 + 11.500625),
    ],
)
def test_a_detour_by_hand(history: int, new: int, ms: float) -> None:
    assert detour_s(history, new) == pytest.approx(ms * 1e-3, rel=1e-9)


def test_overcounted_history_doubles_a_detour() -> None:
    """As the artifact's constants have it: about 60 ms, and 125 ms with 25,000 tokens too many."""
    conversation = Conversation(
        0.0, (Turn(15_900, 15_900, 100, 0.0), Turn(16_067, 67, 50, 0.0), Turn(16_100, 1, 9, 0.0))
    )
    waits = []
    for overcounted in (0, 25_000):
        detours = Detours(frozenset({(3, 1)}), VirtualPrefiller([0.0], [1.0]), overcounted)
        assert detours.pause_s(2.0, 3, conversation, 2) == 0.0
        assert detours.pause_s(2.0, 4, conversation, 1) == 0.0
        assert detours.seconds == 0.0
        waits.append(detours.pause_s(2.0, 3, conversation, 1))
        assert detours.seconds == waits[-1] == detour_s(16_000 + overcounted, 67)
    assert waits == pytest.approx([0.0608, 0.1248], abs=5e-5)


def test_a_detour_waits_for_the_queue_and_has_at_least_one_new_token() -> None:
    conversation = Conversation(0.0, (Turn(1000, 1000, 100, 0.0), Turn(900, 50, 50, 0.0)))
    detours = Detours(frozenset({(0, 1)}), VirtualPrefiller([0.0, 1.0], [1.0, 3.0]), 0)
    assert detours.pause_s(1.5, 0, conversation, 1) == pytest.approx(1.5 + detour_s(1100, 1))
    assert detours.seconds == pytest.approx(detour_s(1100, 1))  # without the queue


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from((0.0, 0.1, 0.5, 1.0)))
def test_misrouted_turns_and_only_they_go_to_the_prefill_engine(seed: int, share: float) -> None:
    draw = drawn(seed)
    conversations = arriving(draw)
    turns = misrouted(draw, share)
    policy = ConServe()
    cluster = MisroutingCluster(tiny().cluster, policy.deployment, conversations, turns)
    while cluster.advance():
        cluster.place(policy.decide(cluster.observe()))

    prefilled = [event for event in cluster.ledger if isinstance(event, Prefilled)]
    assert {event.engine for event in prefilled} == {0}
    later = [(event.conversation, event.turn) for event in prefilled if event.turn]
    assert len(later) == len(set(later))
    assert set(later) == turns
    moved = {(event.conversation, event.turn) for event in cluster.ledger if type(event) is KvMoved}
    assert moved == turns | {(i, 0) for i in range(len(conversations))}
    for engine in cluster.engines:
        assert engine.is_idle
        assert engine.kv.available_blocks == engine.kv.capacity_blocks
    replayed = Observer(cluster.ledger, cluster.fleet, policy.deployment)
    observation = replayed.blank(cluster.now)
    assert replayed.kv_known_tokens == [0] * 4
    nothing = (
        "pinned",
        "kv_known",
        "turns_in_flight",
        "decoding",
        "prompt_in_flight",
        "prompt_waited",
    )
    assert not any(observation.engine_field(name).any() for name in nothing)
