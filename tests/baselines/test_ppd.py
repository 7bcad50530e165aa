"""PPD's first turns, short appends, and its cost comparison."""

from __future__ import annotations

import pytest
from turn_observations import KV_CAPACITY, D, P, toy_site, turn_at_door

from conserve_gym.baselines.registry import make_baseline
from conserve_gym.placement import Placement

SITE = toy_site(P, D)
LOCAL, REMOTE = Placement(1, 1), Placement(0, 1)
STALLED = {"decoding": {1: 10}, "pinned": {1: 10}, "kv_known": {1: 100_000 / KV_CAPACITY}}


def test_a_first_turn_goes_to_the_prefiller_however_short() -> None:
    seen = turn_at_door(P, D, prompt=10, engines={"prompt_in_flight": {0: 10**6}})
    assert make_baseline("ppd", SITE).decide(seen) == REMOTE


@pytest.mark.parametrize(("new", "placement"), [(511, LOCAL), (512, REMOTE)])
def test_short_appends_stay_whatever_it_costs(new: int, placement: Placement) -> None:
    engines = {"holds": {0: 9000, 1: 9000}, "prompt_in_flight": {1: 50_000}}
    seen = turn_at_door(P, D, prompt=9000 + new, new=new, turn=1, home=1, engines=engines)
    assert make_baseline("ppd", SITE).decide(seen) == placement


def test_a_long_append_stays_where_the_prefiller_would_compute_the_history_too() -> None:
    seen = turn_at_door(P, D, prompt=11_000, new=2000, turn=1, home=1, engines={"holds": {1: 9000}})
    assert make_baseline("ppd", SITE).decide(seen) == LOCAL


@pytest.mark.parametrize(
    ("output_mean", "weights", "placement"),
    [
        # TTFT remote: 4,000 tokens queued 0.42 + prefill 0.21 + move 0.007 = 0.637 s. Local: two
        # chunks (1,990 and 10 tokens beside 10 turns) of 0.22 s + 20 ms of KV: gain 0.62. The stall
        # of 0.2 s over 10 outputs doubles a TPOT of 21 ms; over 100 it adds 10 %.
        (10.0, {}, REMOTE),
        (100.0, {}, LOCAL),
        (10.0, {"w_tpot": 0.5}, LOCAL),
        (100.0, {"w_ttft": 0.1}, REMOTE),
    ],
)
def test_the_gain_in_ttft_is_weighed_against_the_stall_of_those_who_decode(
    output_mean: float, weights: dict[str, float], placement: Placement
) -> None:
    engines = {
        "holds": {0: 9000, 1: 9000},
        "prompt_in_flight": {0: 4000},
        "turns_in_flight": {0: 1, 1: 10},
        **STALLED,
    }
    seen = turn_at_door(
        P,
        D,
        prompt=11_000,
        new=2000,
        turn=1,
        home=1,
        engines=engines,
        cluster={"output_mean": output_mean},
    )
    assert make_baseline("ppd", SITE, weights).decide(seen) == placement
