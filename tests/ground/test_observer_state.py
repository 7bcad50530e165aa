"""What an observer knows is saved and restored exactly, and forgets turns that were given up."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_gym.fleet import Fleet, Role
from conserve_gym.ledger import (
    ConversationEnded,
    Event,
    FirstToken,
    KvMoved,
    Ledger,
    LedgerError,
    Placed,
    Prefilled,
    TurnAborted,
    TurnArrived,
    TurnFinished,
)
from conserve_gym.observer import Observer

FLEET = Fleet((Role.PREFILL, Role.DECODE, Role.MIXED), (10_000, 20_000, 30_000))


def turn(conversation: int, index: int, tokens: int, *, at: int, to: int) -> list[Event]:
    """The events of a turn, without their times."""
    placed: list[Event] = []
    if index == 0:
        placed.append(Placed(0.0, conversation, 0, at, to, math.inf))
    elsewhere: list[Event] = []
    if index == 0 and at != to:
        elsewhere = [
            Prefilled(0.0, conversation, 0, at, tokens, 0, 0.01),
            KvMoved(0.0, conversation, 0, at, to, tokens, 0.02),
        ]
    return [
        TurnArrived(0.0, conversation, index, tokens, tokens if index == 0 else 20),
        *placed,
        *elsewhere,
        FirstToken(0.0, conversation, index, to),
        TurnFinished(0.0, conversation, index, to, tokens, tokens - 1, 30),
    ]


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """Conversations whose events mix, each in its own order; some turns are given up."""
    waiting: list[list[Event]] = []
    for conversation in range(draw(st.integers(1, 6))):
        to = draw(st.sampled_from((1, 2)))
        at = draw(st.sampled_from((0, to)))
        events: list[Event] = []
        for index in range(draw(st.integers(1, 3))):
            whole = turn(conversation, index, 100 + 50 * index, at=at, to=to)
            if draw(st.booleans()):
                events += whole
            else:
                cut = draw(st.integers(2 if index == 0 else 1, len(whole) - 1))
                events += [*whole[:cut], TurnAborted(0.0, conversation, index)]
        if draw(st.booleans()):
            events.append(ConversationEnded(0.0, conversation, index + 1))
        waiting.append(events)
    mixed: list[Event] = []
    time = 0.0
    while any(waiting):
        queue = draw(st.sampled_from([events for events in waiting if events]))
        time += draw(st.floats(0.0, 5.0))
        mixed.append(queue.pop(0)._replace(time=time))
    return mixed


@given(histories(), st.data())
def test_a_restored_observer_goes_on_as_the_one_that_was_saved(
    history: list[Event], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(history)))
    one, other = Observer(Ledger(), FLEET), Observer(Ledger(), FLEET)
    one.read(history[:cut])
    other.restore(json.loads(json.dumps(one.state())))
    assert other.unfinished() == one.unfinished()
    for event in history[cut:]:
        one.read([event])
        other.read([event])
        ours, theirs = one.blank(event.time + 1.0), other.blank(event.time + 1.0)
        np.testing.assert_array_equal(ours.raw, theirs.raw)
        np.testing.assert_array_equal(ours.free_kv_tokens, theirs.free_kv_tokens)
    assert json.dumps(one.state()) == json.dumps(other.state())


@given(histories())
def test_nothing_is_left_when_every_conversation_has_ended(history: list[Event]) -> None:
    observer = Observer(Ledger(), FLEET)
    observer.read(history)
    now = history[-1].time
    for conversation, index in observer.unfinished():
        observer.read([TurnAborted(now, conversation, index)])
    ended = {event.conversation for event in history if isinstance(event, ConversationEnded)}
    for conversation in {event.conversation for event in history} - ended:  # type: ignore[union-attr]
        observer.read([ConversationEnded(now, conversation, 1)])
    blank = observer.blank(now)
    assert (blank["live_conversations"], blank["at_door"]) == (0, 0)
    for name in ("pinned", "kv_known", "turns_in_flight", "decoding", "prompt_in_flight"):
        assert not blank.engine_field(name).any(), name


def test_a_client_that_leaves_the_door_is_not_counted_there() -> None:
    observer = Observer(Ledger(), FLEET)
    observer.read([TurnArrived(0.0, 7, 0, 100, 100)])
    assert observer.blank(0.0)["at_door"] == 1
    observer.read([TurnAborted(1.0, 7, 0), ConversationEnded(1.0, 7, 1)])
    assert observer.blank(1.0)["at_door"] == 0
    assert observer.blank(1.0)["live_conversations"] == 0


def test_a_decoder_that_takes_a_failed_prefill_over() -> None:
    observer = Observer(Ledger(), FLEET)
    observer.read(
        [
            TurnArrived(0.0, 7, 0, 100, 100),
            Placed(0.0, 7, 0, 0, 1, math.inf),
            FirstToken(1.0, 7, 0, 1),
        ]
    )
    blank = observer.blank(1.0)
    assert blank.engine_field("turns_in_flight").tolist() == [0, 1, 0]
    assert blank.engine_field("prompt_in_flight").tolist() == [0, 0, 0]


def test_a_state_of_another_fleet_is_refused() -> None:
    state = Observer(Ledger(), FLEET).state()
    other = Observer(Ledger(), Fleet((Role.MIXED,), (10_000,)))
    with pytest.raises(LedgerError, match="3 engines"):
        other.restore(state)
