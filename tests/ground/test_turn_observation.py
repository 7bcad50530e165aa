"""What a router knows of a conversation that comes back: where its KV was left, and how much."""

from __future__ import annotations

import pytest

from conserve_gym.costs import EngineCosts
from conserve_gym.deployment import Deployment
from conserve_gym.fleet import Fleet, Role
from conserve_gym.ledger import (
    FirstToken,
    Ledger,
    Placed,
    Prefilled,
    TurnArrived,
    TurnFinished,
)
from conserve_gym.observer import Observer

FLEET = Fleet((Role.PREFILL, Role.DECODE, Role.DECODE), (10_000,) * 3)
INFINITY = float("inf")


def observer_after_one_turn(**deployment: bool) -> tuple[Ledger, Observer]:
    """A prompt of 1,000 tokens, prefilled at engine 0, answered with 50 at engine 2."""
    ledger = Ledger()
    for event in (
        TurnArrived(0.0, 7, 0, 1000, 1000),
        Placed(0.0, 7, 0, 0, 2, INFINITY),
        Prefilled(1.0, 7, 0, 0, 1000, 0, 0.0),
        FirstToken(1.1, 7, 0, 2),
        TurnFinished(2.0, 7, 0, 2, 1000, 999, 50),
    ):
        ledger.append(event)
    return ledger, Observer(ledger, FLEET, Deployment(decides_every_turn=True, **deployment))


def test_a_first_turn_has_left_nothing_anywhere() -> None:
    ledger = Ledger()
    ledger.append(TurnArrived(0.0, 7, 0, 1000, 1000))
    seen = Observer(ledger, FLEET).observe(0.0, 7)
    assert seen.home == -1
    assert (seen["prompt"], seen["new"], seen["turn"]) == (1000, 1000, 0)
    assert seen.engine_field("holds").tolist() == [0, 0, 0]


def test_a_later_turn_finds_its_prompt_at_the_prefiller_and_its_answer_at_home() -> None:
    ledger, observer = observer_after_one_turn()
    ledger.append(TurnArrived(3.0, 7, 1, 1150, 100))
    seen = observer.observe(3.0, 7, 1)
    assert seen.home == 2
    assert (seen["prompt"], seen["new"], seen["turn"]) == (1150, 100, 1)
    assert seen.engine_field("holds").tolist() == [1000, 0, 1050]


def test_what_a_rewrite_makes_void_is_held_no_more() -> None:
    ledger, observer = observer_after_one_turn()
    ledger.append(TurnArrived(3.0, 7, 1, 900, 500))
    assert observer.observe(3.0, 7, 1).engine_field("holds").tolist() == [400, 0, 400]


def test_without_prefix_caching_nothing_is_held() -> None:
    ledger, observer = observer_after_one_turn(prefix_caching=False)
    ledger.append(TurnArrived(3.0, 7, 1, 1150, 100))
    seen = observer.observe(3.0, 7, 1)
    assert seen.home == 2
    assert seen.engine_field("holds").tolist() == [0, 0, 0]


def test_a_pinned_conversation_without_pulls_waits_with_what_its_prefiller_lacks() -> None:
    ledger = Ledger()
    for event in (
        TurnArrived(0.0, 7, 0, 1000, 1000),
        Placed(0.0, 7, 0, 0, 2, 0.0),  # every later turn goes through engine 0 too
        Prefilled(1.0, 7, 0, 0, 1000, 0, 0.0),
        FirstToken(1.1, 7, 0, 2),
        TurnFinished(2.0, 7, 0, 2, 1000, 999, 50),
        TurnArrived(3.0, 7, 1, 1150, 100),
        TurnArrived(3.0, 8, 0, 10, 10),
    ):
        ledger.append(event)
    for pulls, waiting in ((False, 150), (True, 100)):
        seen = Observer(ledger, FLEET, Deployment(pulls_history=pulls)).observe(3.0, 8)
        assert seen.engine_field("prompt_in_flight").tolist() == [waiting, 0, 0]


@pytest.mark.parametrize(
    ("deployment", "waiting"),
    [
        ({}, 100),  # the history is copied there
        ({"pulls_history": False}, 150),  # it holds 1,000 of 1,150 tokens
        ({"prefix_caching": False}, 1150),
    ],
)
def test_a_prompt_waits_with_what_its_engine_has_to_compute(
    deployment: dict[str, bool], waiting: int
) -> None:
    ledger, observer = observer_after_one_turn(**deployment)
    ledger.append(TurnArrived(3.0, 7, 1, 1150, 100))
    ledger.append(Placed(3.0, 7, 1, 0, 1, INFINITY))
    ledger.append(TurnArrived(3.0, 8, 0, 10, 10))
    seen = observer.observe(3.0, 8)
    assert seen.engine_field("prompt_in_flight").tolist() == [waiting, 0, 0]


def test_what_is_known_of_engines_beforehand() -> None:
    prefill, decode = EngineCosts(1.0, 0, 0, 2.0, 0, 0), EngineCosts(4.0, 0, 0, 1.0, 0, 0)
    fleet = Fleet((Role.PREFILL, Role.MIXED), (5, 7), (prefill, decode))
    ledger = Ledger()
    ledger.append(TurnArrived(0.0, 7, 0, 100, 100))
    seen = Observer(ledger, fleet).observe(0.0, 7)
    expected = {
        "prefills_for_others": [1, 1],
        "decodes": [0, 1],
        "kv_capacity": [5, 7],
        "prefill_speed": [1.0, 0.25],
        "decode_speed": [0.5, 1.0],
    }
    for name, values in expected.items():
        assert seen.engine_field(name).tolist() == values
