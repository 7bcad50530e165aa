"""Cache-aware routing on observations made by hand."""

import pytest
from hand_made import M, observed

from conserve_gym.baselines.cache_aware import CacheAware


def policy() -> CacheAware:
    return CacheAware(match=0.3, imbalance_turns=64, imbalance_ratio=1.5)


@pytest.mark.parametrize(
    ("holds", "in_flight", "engine"),
    [
        ([0, 310, 900], [9, 9, 9], 2),  # the best match
        ([0, 301, 0], [9, 9, 9], 1),
        ([0, 300, 0], [9, 9, 9], 0),  # no more than 0.3: the smallest tree, all empty
        # Uneven: the longest queue exceeds the shortest by more than 64 turns, and 1.5 times.
        ([0, 0, 900], [0, 30, 64], 2),
        ([0, 0, 900], [1, 0, 65], 1),
        ([0, 0, 900], [140, 130, 195], 2),  # exactly 1.5 times
        ([0, 0, 900], [140, 130, 196], 1),
    ],
)
def test_follows_the_prefix_while_queues_are_even(
    holds: list[int], in_flight: list[int], engine: int
) -> None:
    seen = observed(
        (M,) * 3,
        free=[0] * 3,
        fields={"prompt": 1000, "turn": 1},
        holds=holds,
        turns_in_flight=in_flight,
    )
    assert policy().decide(seen)[:2] == (engine, engine)


def test_a_new_prompt_goes_to_the_smallest_tree_and_a_prefix_counts_once() -> None:
    router = policy()

    def send(conversation: int, prompt: int, holds: tuple[int, ...] = (0, 0)) -> int:
        seen = observed(
            (M, M),
            free=[0, 0],
            conversation=conversation,
            fields={"prompt": prompt},
            holds=holds,
        )
        return router.decide(seen).decode_at

    assert send(0, 100) == 0
    assert send(1, 60) == 1
    assert send(1, 90, (0, 70)) == 1  # 30 more: 100 and 90
    assert send(2, 30) == 1  # 100 and 120
    assert send(3, 10) == 0
    router.reset(0)
    assert send(4, 10) == 0


def test_what_was_sent_to_the_shortest_queue_is_in_its_tree_too() -> None:
    router = policy()
    uneven = observed((M, M), free=[0, 0], fields={"prompt": 50}, turns_in_flight=[0, 100])
    assert router.decide(uneven).decode_at == 0
    assert router.decide(observed((M, M), free=[0, 0], fields={"prompt": 50})).decode_at == 1
