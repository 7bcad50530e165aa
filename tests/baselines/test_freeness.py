"""Freeness on observations made by hand."""

import pytest
from hand_made import M, observed

from conserve_gym.baselines.freeness import Freeness


@pytest.mark.parametrize(
    ("free", "in_flight", "closed", "engine"),
    [
        ([900, 300], [10, 3], (), 1),  # 90 tokens a turn against 100
        ([900, 300], [10, 4], (), 0),  # 90 against 75
        ([900, 100, 200], [1, 0, 0], (), 2),  # nothing is freer than an idle engine
        ([-90, -50], [9, 2], (), 0),  # memory overdrawn: -10 against -25
        ([900, 300], [1, 3], (0,), 1),  # one with room
    ],
)
def test_takes_the_freest_engine(
    free: list[float], in_flight: list[int], closed: tuple[int, ...], engine: int
) -> None:
    seen = observed((M,) * len(free), free=free, closed=closed, turns_in_flight=in_flight)
    assert Freeness().decide(seen)[:2] == (engine, engine)
