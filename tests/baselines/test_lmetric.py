"""LMetric on observations made by hand."""

import pytest
from hand_made import M, observed

from conserve_gym.baselines.lmetric import LMetric


@pytest.mark.parametrize(
    ("holds", "queued", "in_flight", "engine"),
    [
        ([0, 900], [0, 0], [0, 0], 1),  # 1000 x 1 against 100 x 1
        ([0, 900], [0, 0], [0, 8], 1),  # 1000 x 1 against 100 x 9
        ([0, 900], [0, 0], [0, 10], 0),  # 1000 x 1 against 100 x 11
        ([0, 900], [0, 500], [1, 2], 1),  # 1000 x 2 against 600 x 3
        ([0, 900], [0, 600], [1, 2], 0),  # 1000 x 2 against 700 x 3
    ],
)
def test_takes_the_least_product(
    holds: list[int], queued: list[int], in_flight: list[int], engine: int
) -> None:
    seen = observed(
        (M, M),
        free=[0, 0],
        fields={"prompt": 1000, "turn": 1},
        holds=holds,
        prompt_in_flight=queued,
        turns_in_flight=in_flight,
    )
    assert LMetric().decide(seen)[:2] == (engine, engine)


def test_of_equals_each_is_taken_in_turn() -> None:
    policy = LMetric()
    seen = observed((M,) * 3, free=[0] * 3, fields={"prompt": 9}, turns_in_flight=[0, 1, 0])
    assert [policy.decide(seen).decode_at for _ in range(3)] == [0, 2, 0]
    policy.reset(0)
    assert policy.decide(seen).decode_at == 0
