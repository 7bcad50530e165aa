"""Estimates of a turn's times, against sums done by hand."""

from __future__ import annotations

import pytest
from turn_observations import KV_CAPACITY, D, P, toy_site, turn_at_door

from conserve_gym.baselines.turn_costs import TurnCosts
from conserve_gym.observation import EngineExport

COSTS = TurnCosts(toy_site(P, D, D), pulls_history=True)
RECOMPUTING = TurnCosts(toy_site(P, D, D), pulls_history=False)


@pytest.mark.parametrize(
    ("tokens", "prompts", "seconds"),
    [
        (0, 0, 0.0),
        (4000, 1, 0.42),
        (4000, 2, 0.0101 + 2 * (0.21 - 0.0101)),
        (100, 100, 0.0101),  # single tokens share a step
    ],
)
def test_queues(tokens: int, prompts: int, seconds: float) -> None:
    engines = {"prompt_in_flight": {0: tokens}, "turns_in_flight": {0: prompts}}
    seen = turn_at_door(P, D, D, prompt=10, engines=engines)
    assert COSTS.queue_s(seen, 0) == pytest.approx(seconds)


def test_exports_replace_the_ledger() -> None:
    exports = (EngineExport(2000, 0, 0, 0), EngineExport(0, 0, 3, 777), EngineExport(0, 0, 0, 0))
    engines = {"prompt_in_flight": {0: 9000}, "decoding": {1: 9}}
    seen = turn_at_door(P, D, D, prompt=10, engines=engines, exports=exports)
    assert COSTS.queue_s(seen, 0) == pytest.approx(0.21)
    assert COSTS.batch(seen, 1) == (3, 777)


def test_a_batch_is_the_decoding_share_of_what_the_pinned_turns_hold() -> None:
    engines = {"decoding": {1: 2}, "pinned": {1: 8}, "kv_known": {1: 80_000 / KV_CAPACITY}}
    assert COSTS.batch(turn_at_door(P, D, D, prompt=10, engines=engines), 1) == (2, 20_000)


def test_a_later_turn_by_way_of_the_prefiller() -> None:
    seen = turn_at_door(
        P, D, D, prompt=6000, new=1000, turn=1, home=1, engines={"holds": {0: 4000, 1: 5000}}
    )
    # 1,000 tokens of history to the prefiller, 1,000 to compute, and 1,000 to the decoder.
    assert COSTS.remote_ttft_s(seen, 0, 1) == pytest.approx(0.006 + 0.11 + 0.006)
    assert RECOMPUTING.remote_ttft_s(seen, 0, 1) == pytest.approx(0.21 + 0.006)
    assert COSTS.local_ttft_s(seen, 1) == pytest.approx(0.11)
    assert COSTS.local_ttft_s(seen, 2) == pytest.approx(0.005 + 5000e-6 + 0.11)
    assert RECOMPUTING.local_ttft_s(seen, 2) == pytest.approx(0.63)


def test_decodes_are_stalled_by_what_chunks_take_longer() -> None:
    engines = {"decoding": {1: 1}, "pinned": {1: 1}, "kv_known": {1: 100_000 / KV_CAPACITY}}
    seen = turn_at_door(P, D, D, prompt=3000, engines=engines)
    chunks = COSTS.chunks(seen, 1, 1000)
    assert chunks == (pytest.approx(3 * 0.12), 3)
    assert COSTS.longest_step_s(seen, 1, 1000) == pytest.approx(0.12)
    assert COSTS.longest_step_s(seen, 1, 4000) == pytest.approx(0.32)
    assert COSTS.stall_s(seen, 1, chunks) == pytest.approx(0.3)
    assert COSTS.stall_s(seen, 2, COSTS.chunks(seen, 2, 1000)) == 0.0
