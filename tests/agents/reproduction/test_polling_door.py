"""The artifact's door: nobody stands in line, and who was inside tries first."""

from __future__ import annotations

import random
from collections.abc import Sequence

from examples import cluster_of, conversation, engine
from hypothesis import given
from hypothesis import strategies as st

from conserve_gym.agents.reproduction.artifact_cluster import ArtifactCluster
from conserve_gym.agents.reproduction.polling_door import PollingDoor, ProxyDoor
from conserve_gym.baselines.colocate import Colocate
from conserve_gym.baselines.full_disagg import FullDisagg
from conserve_gym.deployment import Deployment, Reservation
from conserve_gym.envs.serving.timeline import Timeline
from conserve_gym.envs.workloads.conversation import Conversation
from conserve_gym.fleet import Fleet, Role
from conserve_gym.ledger import Ledger, Placed, TurnFinished
from conserve_gym.observer import Observer
from conserve_gym.policy import Policy


def fleet_of(*capacities: int) -> Fleet:
    return Fleet((Role.PREFILL, Role.DECODE, Role.DECODE), capacities)


FLEET = fleet_of(80, 100, 200)
PEAK, PER_TURN = Reservation.ORACLE_PEAK, Reservation.PER_TURN


def door_of(
    reservation: Reservation, kind: type[PollingDoor] = PollingDoor, fleet: Fleet = FLEET
) -> PollingDoor:
    return kind(fleet, reservation, Observer(Ledger(), fleet, Deployment(reservation=reservation)))


def admitted(door: PollingDoor, decode_at: int) -> int:
    """Let in who tries next, which somebody must."""
    assert door.is_open()
    return door.admit(decode_at).conversation


@given(
    st.lists(st.integers(1, 100), min_size=1, max_size=30),
    st.integers(0, 10),
    st.randoms(use_true_random=False),
    st.sampled_from((PollingDoor, ProxyDoor)),
)
def test_nobody_is_let_in_over_capacity_and_everybody_is_in_the_end(
    peaks: list[int], patience: int, rng: random.Random, kind: type[PollingDoor]
) -> None:
    """Peaks up to 100 tokens at decoders of 100 and 200; a proxied prompt is all of its peak."""
    fleet = fleet_of(120, 100, 200)
    door = door_of(PEAK, kind, fleet)
    inside: dict[int, int] = {}
    come, gone = 0, 0

    def taken(engine: int) -> int:
        return sum(peaks[one] for one, at in inside.items() if at == engine)

    def fits(one: int) -> list[int]:
        if kind is ProxyDoor and sum(peaks[i] for i in inside) + peaks[one] > 120:
            return []
        return [at for at in (1, 2) if taken(at) + peaks[one] <= fleet.kv_capacity_tokens[at]]

    while gone < len(peaks):
        if come < len(peaks) and (not inside or rng.randrange(10) > patience):
            door.enqueue(come, 0, 1, peaks[come])
            come += 1
        elif inside:
            one = rng.choice(sorted(inside))
            door.leave(one)
            del inside[one]
            gone += 1
        while door.is_open():
            head = door.head
            assert head.conversation not in inside
            room = fits(head.conversation)
            assert room
            assert door.admit(room[-1]) == head
            inside[head.conversation] = room[-1]
        waiting = [one for one in range(come) if one not in inside and one in queued(door)]
        assert not any(fits(one) for one in waiting)  # it opens for whoever fits
    assert not inside and not queued(door)


def queued(door: PollingDoor) -> list[int]:
    return [one.conversation for one in door._queue]


def test_who_was_inside_goes_first() -> None:
    door = door_of(PER_TURN)
    door.enqueue(0, 0, 90, 0)
    assert admitted(door, 1) == 0
    door.enqueue(1, 0, 150, 0)
    assert admitted(door, 2) == 1
    door.enqueue(2, 0, 80, 0)
    door.enqueue(3, 0, 80, 0)
    assert not door.is_open()
    door.leave(0)
    door.enqueue(0, 1, 95, 0)  # its next turn: it has not slept
    assert admitted(door, 1) == 0
    assert not door.is_open()
    door.leave(0)
    door.enqueue(0, 2, 201, 0)  # too large now: a sleeper takes its place
    assert admitted(door, 1) in (2, 3)


def test_who_comes_tries_before_who_sleeps() -> None:
    door = door_of(PEAK)
    door.enqueue(0, 0, 1, 200)
    assert admitted(door, 2) == 0
    door.enqueue(1, 0, 1, 150)
    assert not door.is_open()
    door.enqueue(2, 0, 1, 60)
    assert admitted(door, 1) == 2
    door.leave(0)
    door.enqueue(3, 0, 1, 160)
    assert admitted(door, 2) == 3
    assert not door.is_open()


def test_all_who_are_awake_try_before_who_sleeps() -> None:
    door = door_of(PEAK, fleet=fleet_of(80, 10, 200))
    door.enqueue(0, 0, 1, 200)
    assert admitted(door, 2) == 0
    for sleeper in range(1, 8):
        door.enqueue(sleeper, 0, 1, 40)
    assert not door.is_open()
    door.leave(0)
    for newcomer in (8, 9, 10):
        door.enqueue(newcomer, 0, 1, 40)
    assert [admitted(door, 2) for _ in range(3)] == [8, 9, 10]
    assert admitted(door, 2) in range(1, 8)


def test_which_sleeper_wakes_is_drawn_and_the_same_each_time() -> None:
    def order() -> list[int]:
        door = door_of(PEAK)
        door.enqueue(0, 0, 1, 200)
        admitted(door, 2)
        for sleeper in range(1, 7):
            door.enqueue(sleeper, 0, 1, 150)
        assert not door.is_open()
        last, seen = 0, []
        for _ in range(6):
            door.leave(last)
            last = admitted(door, 2)
            seen.append(last)
        return seen

    assert sorted(order()) == [1, 2, 3, 4, 5, 6] != order()
    assert order() == order()


def test_the_proxy_counts_prompts_at_the_prefill_engine_until_their_turn_is_over() -> None:
    door = door_of(PER_TURN, ProxyDoor)
    door.enqueue(0, 0, 50, 0)
    assert admitted(door, 2) == 0
    door.enqueue(1, 0, 40, 0)
    assert not door.is_open()  # the decoders have room, the prefill engine's 80 tokens do not
    door.enqueue(2, 0, 30, 0)
    assert admitted(door, 2) == 2
    door.leave(0)
    assert admitted(door, 2) == 1


def played(
    policy: Policy,
    conversations: Sequence[Conversation],
    kind: type[PollingDoor],
    capacities: tuple[int, int],
) -> ArtifactCluster:
    """Play conversations with a prefill engine and a decoder of so many tokens."""
    spec = cluster_of(
        engine(Role.PREFILL, kv_capacity_tokens=capacities[0]),
        engine(Role.DECODE, kv_capacity_tokens=capacities[1]),
    )
    timeline = Timeline(spec.deployed(policy.deployment))
    cluster = ArtifactCluster(spec, policy.deployment, conversations, timeline, kind, None)
    while cluster.advance():
        cluster.place(policy.decide(cluster.observe()))
    return cluster


CONVERSATIONS = st.lists(
    st.tuples(
        st.floats(0.0, 0.3),
        st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20)), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=10,
)


def grown(drawn: list[tuple[float, list[tuple[int, int]]]]) -> list[Conversation]:
    """Return conversations of turns of (appended, output) tokens, without gaps."""
    now, conversations = 0.0, []
    for gap, turns in drawn:
        now += gap
        held, played = 0, []
        for appended, output in turns:
            played.append((held + appended, appended, output, 0.0))
            held += appended + output
        conversations.append(conversation(now, *played))
    return conversations


@given(CONVERSATIONS)
def test_full_disagg_never_has_more_prompt_inside_than_the_prefill_engine_holds(
    drawn: list[tuple[float, list[tuple[int, int]]]],
) -> None:
    conversations = grown(drawn)
    capacity = 16 * (-(-max(one.peak_tokens for one in conversations) // 16) + 2)
    cluster = played(FullDisagg(), conversations, ProxyDoor, (capacity, 1600))
    inside: dict[int, int] = {}
    for event in cluster.ledger:
        if isinstance(event, Placed):
            turn = conversations[event.conversation].turns[event.turn]
            inside[event.conversation] = turn.input_tokens
            assert sum(inside.values()) <= capacity
        elif isinstance(event, TurnFinished):
            del inside[event.conversation]
    placed = [event for event in cluster.ledger if isinstance(event, Placed)]
    assert len(placed) == sum(len(one.turns) for one in conversations)
    assert cluster._door._peak_tokens == [0, 0]


@given(CONVERSATIONS, st.sampled_from((PEAK, PER_TURN)))
def test_room_is_counted_by_peaks_or_by_turns_with_their_outputs(
    drawn: list[tuple[float, list[tuple[int, int]]]], reservation: Reservation
) -> None:
    conversations = grown(drawn)
    capacity = 16 * (-(-max(one.peak_tokens for one in conversations) // 16) + 4)
    policy = Colocate(reservation)
    spec = cluster_of(engine(Role.DECODE, kv_capacity_tokens=capacity, count=2))
    timeline = Timeline(spec.deployed(policy.deployment))
    cluster = ArtifactCluster(spec, policy.deployment, conversations, timeline, PollingDoor, None)
    while cluster.advance():
        cluster.place(policy.decide(cluster.observe()))
        counted = [0, 0]
        turn_of: dict[int, int] = {}
        home: dict[int, int] = {}
        for event in cluster.ledger:
            if isinstance(event, Placed):
                home[event.conversation], turn_of[event.conversation] = event.decode_at, 0
            elif isinstance(event, TurnFinished):
                turn_of[event.conversation] = event.turn + 1
        for one, turn in turn_of.items():
            turns = conversations[one].turns
            if turn < len(turns):
                now = turns[turn].input_tokens + turns[turn].output_tokens
                counted[home[one]] += conversations[one].peak_tokens if reservation is PEAK else now
        assert cluster._door._peak_tokens == counted
        if reservation is PEAK:
            assert max(counted) <= capacity
    assert cluster._door._peak_tokens == [0, 0]


def test_growth_is_counted_but_not_asked_for() -> None:
    door = door_of(PER_TURN, fleet=fleet_of(80, 96, 10))
    door.enqueue(0, 0, 40, 0)
    door.enqueue(1, 0, 40, 0)
    for one in (0, 1):
        assert admitted(door, 1) == one
        door.grow(one, 8)
    door.grow(0, 1000)
    door.enqueue(2, 0, 1, 0)
    assert admitted(door, 2) == 2
    door.enqueue(3, 0, 10, 0)
    assert not door.is_open()
    door.leave(0)
    assert admitted(door, 1) == 3


def test_peaks_do_not_grow() -> None:
    door = door_of(PEAK)
    door.enqueue(0, 0, 1, 60)
    assert admitted(door, 1) == 0
    door.grow(0, 1000)
    door.enqueue(1, 0, 1, 40)
    assert admitted(door, 1) == 1
