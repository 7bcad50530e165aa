"""Kairos: when a prompt is deflected, and where to."""

from __future__ import annotations

import pytest
from turn_observations import KV_CAPACITY, D, P, toy_site, turn_at_door

from conserve_gym.baselines.registry import BASELINES, make_baseline
from conserve_gym.observation import EngineExport, Observation
from conserve_gym.placement import Placement
from conserve_gym.policy import Reads

SITE = toy_site(P, D, D)
REMOTE = Placement(0, 1)


def loaded(
    queued: int = 0,
    deflected: tuple[int, ...] = (),
    kv_tokens: int = 100_000,
    decoding: int = 10,
    exports: tuple[EngineExport, ...] = (),
) -> Observation:
    """A prompt of 4,000 tokens; both decoders read some KV at each step.

    With 100,000 KV tokens a chunk of 256 is the largest whose step stays within 5 x 10 ms: 45.6 ms,
    and the prompt takes 16 of them, 0.72 s. The prefiller takes 0.42 s, and the move 9 ms.
    """
    engines = {
        "prompt_in_flight": {0: queued, **dict.fromkeys(deflected, 1000)},
        "decoding": dict.fromkeys((1, 2), decoding),
        "turns_in_flight": {0: 1, 1: 10, 2: 10},
        "pinned": {1: 10, 2: 10},
        "kv_known": dict.fromkeys((1, 2), kv_tokens / KV_CAPACITY),
    }
    return turn_at_door(P, D, D, prompt=4000, engines=engines, exports=exports)


@pytest.mark.parametrize(
    ("seen", "placement"),
    [
        (loaded(), REMOTE),  # 0.72 > 1.3 x 0.43
        (loaded(queued=2000), Placement(1, 1)),  # 0.72 <= 1.3 x 0.64
        (loaded(queued=2000, deflected=(1,)), Placement(2, 2)),  # one at a time a decoder
        (loaded(queued=2000, deflected=(1, 2)), REMOTE),
        (loaded(queued=50_000, kv_tokens=390_000), REMOTE),  # no chunk of 128 is safe
        (loaded(decoding=0), Placement(1, 1)),  # nobody to spare: 0.42 <= 1.3 x 0.43
    ],
)
def test_a_prompt_is_deflected_where_that_is_safe_and_not_much_slower(
    seen: Observation, placement: Placement
) -> None:
    assert make_baseline("kairos", SITE).decide(seen) == placement


@pytest.mark.parametrize(
    ("parameters", "placement"),
    [({"alpha": 1.7}, Placement(1, 1)), ({"beta": 4.0}, Placement(1, 1)), ({}, REMOTE)],
)
def test_wider_margins_deflect_more(parameters: dict[str, float], placement: Placement) -> None:
    assert make_baseline("kairos", SITE, parameters).decide(loaded()) == placement


def test_what_breaks_the_slo_of_its_ttft_is_not_deflected() -> None:
    # Its history is at a decoder without room. Alone its 100 tokens take 20 ms, so that the SLO is
    # 0.1 s, and the other decoder would compute 4,000 tokens.
    seen = turn_at_door(
        P,
        D,
        D,
        prompt=4000,
        new=100,
        turn=1,
        home=1,
        closed=(1,),
        engines={"holds": {0: 3900, 1: 3900}, "prompt_in_flight": {0: 10**6}},
    )
    assert make_baseline("kairos", SITE).decide(seen) == Placement(0, 2)


def test_exports_tell_what_the_ledger_counts_as_wholly_waiting() -> None:
    def export(prompt_tokens: int, decoding: int) -> EngineExport:
        return EngineExport(prompt_tokens, KV_CAPACITY, decoding, 100_000 if decoding else 0)

    nearly_done = (export(100, 0), export(0, 10), export(0, 10))
    assert make_baseline("kairos", SITE).decide(loaded(queued=2000)) == Placement(1, 1)
    policy = make_baseline("kairos_exports", SITE)
    assert policy.deployment.engine_exports
    assert policy.decide(loaded(queued=2000, exports=nearly_done)) == REMOTE
    deflected = (export(2000, 0), export(50, 10), export(0, 10))
    assert policy.decide(loaded(exports=deflected)) == Placement(2, 2)
    assert BASELINES["kairos_exports"].reads is Reads.EXPORTS
    assert not make_baseline("kairos", SITE).deployment.engine_exports
