"""Confidence intervals against known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from conserve_gym.agents.statistics import estimate


def test_the_interval_of_five_values_by_hand() -> None:
    mean, low, high = estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    half = 2.776445105 * math.sqrt(2.5 / 5)  # t of 4 degrees of freedom at 97.5 %
    assert mean == 3.0
    assert (low, high) == pytest.approx((3.0 - half, 3.0 + half))


def test_one_value_has_no_interval() -> None:
    mean, low, high = estimate([7.0])
    assert mean == 7.0
    assert math.isnan(low) and math.isnan(high)


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for sample in rng.normal(10.0, 3.0, size=(2000, 5)):
        _, low, high = estimate(sample)
        covered += low <= 10.0 <= high
    assert 0.94 < covered / 2000 < 0.96
