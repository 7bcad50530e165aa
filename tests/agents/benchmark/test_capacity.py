"""Bisection finds the highest load that is carried, and says what it cannot know."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_gym.agents.benchmark.capacity import Search, most_probes

GRID = (0.5, 1.0, 1.5, 3.0)


def found(attained: Callable[[float], float], tolerance: float) -> tuple[Search, int]:
    """Return a search at its end, and how many loads it added."""
    search = Search({rate: attained(rate) for rate in GRID}, tolerance)
    added = 0
    while (rate := search.next_rate) is not None:
        assert rate not in search.attained
        search = Search({**search.attained, rate: attained(rate)}, tolerance)
        added += 1
    return search, added


@given(st.floats(0.5, 2.99), st.sampled_from([0.02, 0.05, 0.3]))
def test_capacity_is_known_to_the_tolerance(true: float, tolerance: float) -> None:
    search, added = found(lambda rate: 100.0 if rate <= true else 50.0, tolerance)
    assert search.carried <= true < search.failed
    assert search.failed - search.carried <= tolerance * search.carried
    assert added <= most_probes(GRID, tolerance)
    assert str(search) == f"{search.carried:.3g}"


def test_a_tolerance_finer_than_the_loads_can_be_told_apart_ends_too() -> None:
    search, _ = found(lambda rate: 100.0 if rate <= 1.2 else 50.0, 1e-12)
    assert search.carried == pytest.approx(1.2, rel=1e-5)


def test_outside_of_the_grid_it_says_so() -> None:
    assert [str(one) for one in (found(lambda _: 94.9, 0.1)[0], found(lambda _: 95.0, 0.1)[0])] == [
        "< 0.5",
        "≥ 3",
    ]
    assert found(lambda _: 0.0, 0.1)[0].carried == 0.0


def test_a_load_that_is_carried_by_luck_does_not_count() -> None:
    search = Search({0.5: 99.0, 1.0: 90.0, 1.5: 96.0}, 0.5)
    assert (search.carried, search.failed) == (0.5, 1.0)


def test_the_highest_load_of_the_grid_alone() -> None:
    assert most_probes((1.0,), 0.05) == 0
    assert Search({1.0: 99.0}, 0.05).next_rate is None
    assert Search({1.0: 99.0, 2.0: 1.0}, 0.05).next_rate == pytest.approx(1.5)
