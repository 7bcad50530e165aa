"""Metrics that are computed from numbers alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from conserve_gym.metrics import normalised_entropy


@given(st.lists(st.integers(0, 50), min_size=1, max_size=16).filter(any))
def test_entropy_is_normalised(counts: list[int]) -> None:
    shares = np.array(counts) / sum(counts)
    entropy = normalised_entropy(shares, len(counts))
    assert -1e-12 <= entropy <= 1.0 + 1e-12
    assert (entropy < 1e-12) == (len(counts) > 1 and max(counts) == sum(counts))
    assert (entropy > 1.0 - 1e-12) == (len(set(counts)) == 1)
