"""Means over seeds with their confidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


class Estimate(NamedTuple):
    """A mean over seeds with its 95 % confidence interval."""

    mean: float
    low: float
    high: float


def estimate(values: Sequence[float]) -> Estimate:
    """Return mean and Student's t interval; one value has no interval (NaN).

    Source: the seeds are independent episodes, and few; the t interval is exact for normal means.
    """
    sample = np.asarray(values, dtype=np.float64)
    mean = float(sample.mean())
    if sample.size < 2:
        return Estimate(mean, float("nan"), float("nan"))
    half = float(half_width(stats.sem(sample), sample.size))
    return Estimate(mean, mean - half, mean + half)


def half_width(standard_error: ArrayLike, count: ArrayLike) -> np.ndarray:
    """Return half the width of Student's 95 % interval; NaN for a count of 1."""
    half: np.ndarray = stats.t.ppf(0.975, np.asarray(count) - 1) * standard_error
    return half
