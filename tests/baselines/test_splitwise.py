"""Splitwise on observations made by hand."""

from __future__ import annotations

from collections.abc import Sequence

from hand_made import M, observed

from conserve_gym.baselines.splitwise import Splitwise
from conserve_gym.observation import Observation


def seen(
    waiting: Sequence[float],
    *,
    free: Sequence[float] = (900, 900, 500, 700),
    prompt: float = 100,
    **engine_fields: Sequence[float],
) -> Observation:
    return observed(
        (M,) * 4, free=free, fields={"prompt": prompt}, prompt_in_flight=waiting, **engine_fields
    )


def splitwise() -> Splitwise:
    """Engines 0 and 1 are the prompt pool, 2 and 3 the token pool."""
    return Splitwise((0, 1), queue_tokens=1000)


def test_prompt_and_answer_go_to_the_least_loaded_of_their_pools() -> None:
    assert splitwise().decide(seen([500, 400, 0, 0]))[:2] == (1, 3)
    assert splitwise().decide(seen([901, 900, 0, 0]))[:2] == (1, 3)


def test_a_prompt_may_be_longer_than_a_queue_that_is_empty() -> None:
    placement = splitwise().decide(seen([5, 0, 0, 0], prompt=5000, free=[0, 0, 6000, 7000]))
    assert placement[:2] == (1, 3)


def test_what_is_cached_at_the_prompt_engine_is_not_pending() -> None:
    holds = [60, 0, 0, 0]
    assert splitwise().decide(seen([960, 970, 0, 0], holds=holds))[:2] == (0, 3)


def test_full_queues_borrow_the_token_engine_that_waits_least_until_it_is_idle() -> None:
    policy = splitwise()
    full = [901, 901, 5, 9]
    assert policy.decide(seen(full))[:2] == (2, 3)  # 2 is mixed now
    busy = [9, 9, 1, 0]
    # The mixed pool comes before another token engine, and the token pool before it.
    assert policy.decide(seen(full, turns_in_flight=busy))[:2] == (2, 3)
    full[2] = 901
    assert policy.decide(seen(full, turns_in_flight=busy))[:2] == (3, 3)
    # Nothing is left of the token pool: all are equals, and one engine does both.
    full[3] = 950
    assert policy.decide(seen(full, turns_in_flight=[9, 9, 1, 1]))[:2] == (0, 0)


def test_an_engine_leaves_the_mixed_pool_when_it_is_idle() -> None:
    policy = splitwise()
    free = (900, 900, 800, 700)
    assert policy.decide(seen([901, 901, 5, 9], free=free))[0] == 2  # mixed from now on
    assert policy.decide(seen([0, 9, 0, 0], free=free, turns_in_flight=[0, 0, 1, 9]))[:2] == (0, 3)
    assert policy.decide(seen([0, 9, 0, 0], free=free, turns_in_flight=[0, 0, 0, 9]))[:2] == (0, 2)


def test_full_token_engines_borrow_the_prompt_engine_with_most_free_kv() -> None:
    policy = splitwise()
    assert policy.decide(seen([0, 9, 0, 0], free=[300, 400, 100, 50]))[:2] == (0, 1)
    # Engine 1 has left the prompt pool, though its queue is shorter.
    later = seen([9, 0, 0, 0], free=[300, 400, 100, 50], turns_in_flight=[0, 1, 3, 3])
    assert policy.decide(later)[:2] == (0, 1)
    policy.reset(0)
    assert policy.decide(seen([9, 0, 0, 0]))[:2] == (1, 3)


def test_where_both_pools_are_full_one_engine_does_both() -> None:
    policy = Splitwise((0,), queue_tokens=1000)
    both = observed((M, M), free=[0, 0], fields={"prompt": 200}, prompt_in_flight=[950, 900])
    assert policy.decide(both)[:2] == (1, 0)  # each pool lends its only engine
    stuck = observed(
        (M, M),
        free=[0, 0],
        fields={"prompt": 200},
        prompt_in_flight=[950, 900],
        turns_in_flight=[3, 3],
    )
    assert policy.decide(stuck)[:2] == (1, 1)
