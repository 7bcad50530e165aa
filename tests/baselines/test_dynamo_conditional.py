"""Dynamo's conditional disaggregation at its thresholds."""

from __future__ import annotations

import pytest
from turn_observations import D, P, ToyEngine, toy_site, turn_at_door

from conserve_gym.baselines.registry import make_baseline
from conserve_gym.placement import Placement

SITE = toy_site(P, D, D)
LOCAL, REMOTE = Placement(1, 1), Placement(0, 1)
BUSY = 16 * ToyEngine.token_budget + 1


@pytest.mark.parametrize(
    ("prompt", "effective", "placement"),
    [
        (10_000, 2047, LOCAL),
        (10_000, 2048, REMOTE),
        (2000, 1399, LOCAL),
        (2000, 1400, REMOTE),  # short enough, but 0.7 of the prompt
        (100, 100, REMOTE),  # a short first turn: its ratio is 1
    ],
)
def test_isl_bounding_needs_both_conditions(
    prompt: int, effective: int, placement: Placement
) -> None:
    engines = {"holds": {1: prompt - effective}, "prompt_in_flight": {0: 10 * BUSY}}
    seen = turn_at_door(P, D, D, prompt=prompt, new=1, turn=1, home=1, engines=engines)
    assert make_baseline("dynamo_isl", SITE).decide(seen) == placement
    assert make_baseline("dynamo_isl_or_load", SITE).decide(seen) == LOCAL  # it is busy


@pytest.mark.parametrize(("in_flight", "placement"), [(BUSY - 1, REMOTE), (BUSY, LOCAL)])
def test_prefill_load_looks_at_the_chosen_prefiller_alone(
    in_flight: int, placement: Placement
) -> None:
    seen = turn_at_door(
        P, D, D, prompt=9000, turn=1, home=1, engines={"prompt_in_flight": {0: in_flight}}
    )
    assert make_baseline("dynamo_load", SITE).decide(seen) == placement
    assert make_baseline("dynamo_isl_or_load", SITE).decide(seen) == placement


def test_prefill_load_sends_even_a_cached_prompt_to_an_idle_prefiller() -> None:
    seen = turn_at_door(P, D, D, prompt=9000, new=1, turn=1, home=1, engines={"holds": {1: 8999}})
    assert make_baseline("dynamo_load", SITE).decide(seen) == REMOTE
    assert make_baseline("dynamo_isl_or_load", SITE).decide(seen) == LOCAL


def test_a_busy_prefiller_does_not_matter_while_another_is_free() -> None:
    seen = turn_at_door(P, P, D, prompt=9000, engines={"prompt_in_flight": {0: 10 * BUSY}})
    policy = make_baseline("dynamo_load", toy_site(P, P, D))
    assert policy.decide(seen) == Placement(1, 2)
