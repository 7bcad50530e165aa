"""Running statistics equal those of all values at once."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_gym.running_statistics import DecayedMean, RunningMoments

TIMED_VALUES = st.lists(
    st.tuples(st.floats(0.0, 500.0), st.floats(0.0, 1e6)), min_size=1, max_size=50
).map(sorted)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50))
def test_moments_are_those_of_all_values(values: list[float]) -> None:
    moments = RunningMoments()
    for value in values:
        moments.add(value)
    assert moments.mean == pytest.approx(np.mean(values), rel=1e-9, abs=1e-6)
    assert moments.std == pytest.approx(np.std(values), rel=1e-6, abs=1e-3)


def test_moments_without_spread_are_zero() -> None:
    moments = RunningMoments()
    assert (moments.mean, moments.std) == (0.0, 0.0)
    moments.add(5.0)
    assert (moments.mean, moments.std) == (5.0, 0.0)


@given(TIMED_VALUES, st.floats(1.0, 100.0))
def test_a_decayed_mean_weights_values_by_age(
    timed: list[tuple[float, float]], time_constant_s: float
) -> None:
    mean = DecayedMean(time_constant_s)
    for time, value in timed:
        mean.add(time, value)
    last = timed[-1][0]
    weights = np.exp([(time - last) / time_constant_s for time, _ in timed])
    expected = np.average([value for _, value in timed], weights=weights)
    assert mean.mean == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(TIMED_VALUES, st.floats(1.0, 100.0), st.floats(0.0, 100.0))
def test_a_rate_is_the_weight_left_over_the_time_seen(
    timed: list[tuple[float, float]], time_constant_s: float, later_s: float
) -> None:
    counter = DecayedMean(time_constant_s)
    for time, _ in timed:
        counter.add(time, 1.0)
    now = timed[-1][0] + later_s
    weight = math.fsum(math.exp((time - now) / time_constant_s) for time, _ in timed)
    seen_s = time_constant_s * (1.0 - math.exp(-now / time_constant_s))
    assert counter.rate(now) == pytest.approx(weight / max(seen_s, 1.0), rel=1e-9, abs=1e-12)


def test_a_steady_stream_has_its_rate_from_the_start() -> None:
    counter = DecayedMean(30.0)
    for i in range(1, 4000):
        counter.add(i * 0.25, 1.0)
        if i in (40, 400, 3999):
            assert counter.rate(i * 0.25) == pytest.approx(4.0, rel=0.03)


def test_without_values_all_is_zero() -> None:
    empty = DecayedMean(30.0)
    assert empty.mean == 0.0
    assert empty.rate(0.0) == empty.rate(100.0) == 0.0
