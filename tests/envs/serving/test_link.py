"""The law of KV moves, and moves that share a way out."""

from __future__ import annotations

import pytest
from examples import LINK
from hypothesis import given
from hypothesis import strategies as st

from conserve_gym.envs.serving.link import Link


@pytest.mark.parametrize(
    ("tokens", "milliseconds"), [(0, 1.0), (20, 1.0), (21, 4.0 + 2.1), (1000, 4.0 + 100.0)]
)
def test_small_moves_take_a_constant_time_and_larger_ones_grow(
    tokens: int, milliseconds: float
) -> None:
    assert Link(LINK).seconds(tokens) == pytest.approx(milliseconds * 1e-3, rel=1e-12)


def test_moves_follow_one_another() -> None:
    link = Link(LINK)
    assert link.send(1.0, 60) == pytest.approx(0.010)  # until 1.010
    assert link.send(1.004, 160) == pytest.approx(0.006 + 0.020)  # until 1.030
    assert link.send(1.030, 20) == pytest.approx(0.001)
    assert link.send(2.0, 60) == pytest.approx(0.010)


@given(st.lists(st.tuples(st.floats(0.0, 10.0), st.integers(0, 5000)), max_size=30).map(sorted))
def test_moves_arrive_in_the_order_in_which_they_began(moves: list[tuple[float, int]]) -> None:
    link, free_s = Link(LINK), 0.0
    for now, tokens in moves:
        expected = max(now, free_s) + link.seconds(tokens)
        free_s = now + link.send(now, tokens)
        assert free_s == pytest.approx(expected, rel=1e-12)
