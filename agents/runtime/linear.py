"""One weight for each estimate of a placement: it serves any fleet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from conserve_gym.estimates import COLUMNS, TABLE_COLUMNS

Float32Array = npt.NDArray[np.float32]
_FIRST = TABLE_COLUMNS - len(COLUMNS)


class Linear:
    """Scores placements by the weighted sum of their estimates.

    Args:
        weights: One for each of ``conserve_gym.estimates.COLUMNS``. With a knob from latency to
            energy, (2, columns): those at a preference of 0, and what one of 1 adds to them.
    """

    def __init__(self, weights: Float32Array) -> None:
        """Take the weights."""
        self.weights = weights

    def at(self, preference: float) -> Float32Array:
        """Return the weights at a preference; there is none without the knob."""
        if self.weights.ndim == 1:
            return self.weights
        weights: Float32Array = self.weights[0] + np.float32(preference) * self.weights[1]
        return weights

    def scores(self, scaled: Float32Array, placements: Float32Array) -> Float32Array:
        """Return one score a placement.

        Args:
            scaled: Scaled observation, which the estimates are made from: of it only the
                preference is looked at, the first number, with a knob for it.
            placements: As ``conserve_gym.actions`` gives them, (placements, columns).
        """
        scores: Float32Array = placements[:, _FIRST:] @ self.at(scaled[0])
        return scores

    @classmethod
    def from_header(cls, network: Mapping[str, Any], tensors: Mapping[str, Float32Array]) -> Linear:
        """Build it from a header's ``network``.

        Raises:
            ValueError: The estimates are not those of this version.
        """
        ours = [column.name for column in COLUMNS]
        weights = tensors["weights"]
        if network["columns"] != ours or weights.shape not in ((len(ours),), (2, len(ours))):
            raise ValueError(f"network.columns={network['columns']} differ from {ours}")
        return cls(weights)
