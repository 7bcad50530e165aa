"""Least outstanding on observations made by hand."""

import pytest
from hand_made import M, observed

from conserve_gym.baselines.least_outstanding import LeastOutstanding


@pytest.mark.parametrize(
    ("in_flight", "free", "closed", "engine"),
    [
        ([3, 1, 2], [900, 100, 500], (), 1),  # the shortest queue, however little KV is free
        ([2, 2, 5], [100, 300, 900], (), 1),  # of equals the one with most free KV
        ([2, 2, 2], [300, 300, 300], (), 0),
        ([0, 4, 3], [0, 900, 500], (0,), 2),  # the shortest that has room
        ([0, 4], [0, 5], (0, 1), 0),  # none has
    ],
)
def test_takes_the_shortest_queue(
    in_flight: list[int], free: list[int], closed: tuple[int, ...], engine: int
) -> None:
    seen = observed((M,) * len(free), free=free, closed=closed, turns_in_flight=in_flight)
    assert LeastOutstanding().decide(seen)[:2] == (engine, engine)
