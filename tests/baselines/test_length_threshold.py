"""Dynamo's classic rule and llm-d's, at their thresholds."""

from __future__ import annotations

from typing import Any

import pytest
from turn_observations import D, P, toy_site, turn_at_door

from conserve_gym.baselines.registry import make_baseline
from conserve_gym.placement import Placement

SITE = toy_site(P, D, D)
LOCAL, REMOTE = Placement(1, 1), Placement(0, 1)


def later_turn(uncached: int, **given: Any) -> Any:
    """A turn whose decoder, engine 1, lacks some tokens of 5,000."""
    engines = {"holds": {1: 5000 - uncached}, **given}
    return turn_at_door(P, D, D, prompt=5000, new=10, turn=1, home=1, engines=engines)


@pytest.mark.parametrize(("uncached", "placement"), [(1000, LOCAL), (1001, REMOTE)])
def test_dynamo_prefills_up_to_1000_tokens_locally(uncached: int, placement: Placement) -> None:
    assert make_baseline("dynamo_classic", SITE).decide(later_turn(uncached)) == placement


@pytest.mark.parametrize(("in_flight", "placement"), [(2, REMOTE), (3, LOCAL)])
def test_dynamo_stays_local_while_two_prompts_wait_behind_the_one_that_runs(
    in_flight: int, placement: Placement
) -> None:
    seen = later_turn(4000, turns_in_flight={0: in_flight})
    assert make_baseline("dynamo_classic", SITE).decide(seen) == placement
    assert make_baseline("dynamo_classic", SITE, {"queue": 3}).decide(seen) == REMOTE


def test_dynamo_has_one_queue_for_all_prefillers() -> None:
    seen = turn_at_door(P, P, D, prompt=5000, engines={"turns_in_flight": {0: 2, 1: 2}})
    policy = make_baseline("dynamo_classic", toy_site(P, P, D))
    assert policy.decide(seen) == Placement(2, 2)


def test_what_a_prefiller_holds_does_not_count() -> None:
    seen = later_turn(4000, holds={0: 5000, 1: 1000})
    assert make_baseline("dynamo_classic", SITE).decide(seen) == REMOTE
    assert make_baseline("llm_d", SITE).decide(seen) == REMOTE


@pytest.mark.parametrize(
    ("tokens", "uncached", "placement"),
    [
        (16, 15, LOCAL),
        (16, 16, REMOTE),
        (512, 511, LOCAL),
        (512, 512, REMOTE),
        (0, 5000, LOCAL),  # turns disaggregation off
    ],
)
def test_llm_d_disaggregates_from_its_threshold(
    tokens: int, uncached: int, placement: Placement
) -> None:
    policy = make_baseline("llm_d", SITE, {"tokens": tokens})
    assert policy.decide(later_turn(uncached)) == placement


def test_a_decoder_without_room_is_left_and_its_cache_does_not_count() -> None:
    seen = turn_at_door(
        P, D, D, prompt=5000, new=5, turn=1, home=1, closed=(1,), engines={"holds": {1: 4995}}
    )
    assert make_baseline("llm_d", SITE).decide(seen) == Placement(0, 2)


@pytest.mark.parametrize("name", ["dynamo_classic", "llm_d"])
def test_prefillers_compute_what_they_do_not_hold(name: str) -> None:
    deployment = make_baseline(name, SITE).deployment
    assert deployment.decides_every_turn
    assert deployment.prefix_caching
    assert not deployment.pulls_history


@pytest.mark.parametrize("name", ["dynamo_classic", "llm_d"])
def test_where_nobody_prefills_for_the_decoder_it_colocates(name: str) -> None:
    seen = turn_at_door(D, D, prompt=50_000, free=[1.0, 2.0])
    assert make_baseline(name, toy_site(D, D)).decide(seen) == Placement(1, 1)
