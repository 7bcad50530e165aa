"""The paper's AMPD emulation, and AMPD's cost rule."""

from __future__ import annotations

import math

import pytest
from turn_observations import KV_CAPACITY, D, P, toy_site, turn_at_door

from conserve_gym.baselines.registry import make_baseline
from conserve_gym.observation import Observation
from conserve_gym.placement import Placement
from conserve_gym.policy import Policy

SITE = toy_site(P, D)
LOCAL, REMOTE = Placement(1, 1), Placement(0, 1)


def later_turn(conversation: int, turn: int) -> Observation:
    return turn_at_door(P, D, prompt=9000, new=60, turn=turn, home=1, conversation=conversation)


def detours(policy: Policy, turns: list[tuple[int, int]]) -> set[tuple[int, int]]:
    return {turn for turn in turns if policy.decide(later_turn(*turn)) == REMOTE}


def test_a_tenth_of_later_turns_takes_a_detour_and_every_first_one_is_disaggregated() -> None:
    policy = make_baseline("ampd_emulation", SITE)
    policy.reset(3)
    turns = [(c, t) for c in range(1000) for t in range(1, 5)]
    taken = detours(policy, turns)
    assert abs(len(taken) - 400) < 4 * math.sqrt(4000 * 0.1 * 0.9)
    assert policy.decide(turn_at_door(P, D, prompt=9000)) == REMOTE
    assert detours(policy, turns[::-1]) == taken  # in whatever order they come
    policy.reset(4)
    assert detours(policy, turns) != taken


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (1.0, 100)])
def test_the_share_is_a_parameter(share: float, expected: int) -> None:
    policy = make_baseline("ampd_emulation", SITE, {"share": share})
    policy.reset(0)
    assert len(detours(policy, [(c, 1) for c in range(100)])) == expected


@pytest.mark.parametrize("name", ["ampd_emulation", "ampd_cost"])
def test_detours_pull_the_history(name: str) -> None:
    assert make_baseline(name, SITE).deployment.pulls_history


@pytest.mark.parametrize(
    ("engines", "placement"),
    [
        ({}, LOCAL),  # the same prefill, and no KV moves
        ({"prompt_in_flight": {1: 4000}}, REMOTE),
        ({"prompt_in_flight": {0: 4000, 1: 4000}}, LOCAL),
        # The window says what the queue of tokens does not, but only where prompts wait.
        ({"prompt_in_flight": {0: 1, 1: 4000}, "ttft_recent": {0: 2.0, 1: 0.1}}, LOCAL),
        ({"prompt_in_flight": {1: 4000}, "ttft_recent": {0: 2.0, 1: 0.1}}, REMOTE),
    ],
)
def test_a_prefill_goes_where_its_first_token_is_sooner(
    engines: dict[str, dict[int, float]], placement: Placement
) -> None:
    seen = turn_at_door(P, D, prompt=2000, engines=engines)
    assert make_baseline("ampd_cost", SITE).decide(seen) == placement


@pytest.mark.parametrize(
    ("tbt_s", "slo", "placement"),
    [
        # A lone step takes 10.2 ms; the prompt stalls 10 turns by 0.22 s less two steps' worth:
        # 2 ms a token over 100 outputs.
        (0.048, 5.0, LOCAL),
        (0.050, 5.0, REMOTE),
        (0.050, 6.0, LOCAL),
        (0.0, 5.0, LOCAL),  # nothing in the window: the profile says 20 ms
    ],
)
def test_running_decodes_must_bear_the_prefill(
    tbt_s: float, slo: float, placement: Placement
) -> None:
    engines = {
        "decoding": {1: 10},
        "pinned": {1: 10},
        "turns_in_flight": {1: 10},
        "kv_known": {1: 100_000 / KV_CAPACITY},
        "tbt_recent": {1: tbt_s},
        "prompt_in_flight": {0: 9000},
    }
    cluster = {"output_mean": 100.0}
    seen = turn_at_door(P, D, prompt=2000, engines=engines, cluster=cluster)
    assert make_baseline("ampd_cost", SITE, {"slo": slo}).decide(seen) == placement
