"""Choices by weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

T = TypeVar("T", bound=str)


def weights_of(weights: dict[T, float]) -> dict[T, float]:
    """Return weights, as a check that something can be chosen.

    Raises:
        ValueError: They are all 0, or there are none.
    """
    if not sum(weights.values()) > 0.0:
        raise ValueError("needs a weight above 0")
    return weights


def chosen(weights: Mapping[T, float], rng: np.random.Generator) -> T:
    """Return one of the names, by its share of the weights."""
    edges = np.cumsum(list(weights.values()))
    index = int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))
    return list(weights)[index]
