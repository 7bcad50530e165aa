"""Checks of quantile tables, which generators draw from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from conserve_gym.envs.workloads.conversation import WorkloadError


def checked_levels(levels: Sequence[float]) -> np.ndarray:
    """Return the probabilities that belong to the columns of tables.

    Raises:
        WorkloadError: They do not rise from 0 to 1.
    """
    checked = np.asarray(levels, dtype=np.float64)
    ends = checked[[0, -1]].tolist() if checked.size else []
    if ends != [0.0, 1.0] or not (np.diff(checked) > 0.0).all():
        raise WorkloadError("workload.levels must rise from 0 to 1")
    return checked


def checked_table(
    field: str, values: Sequence[float], levels: np.ndarray, least: float
) -> np.ndarray:
    """Return the quantiles at levels.

    Args:
        field: Where they stand, for errors.
        values: The quantiles.
        levels: Their probabilities.
        least: What the first may be at least.

    Raises:
        WorkloadError: They are no quantile function.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.shape != levels.shape:
        raise WorkloadError(f"workload.{field} has {table.size} values for {levels.size} levels")
    if not np.isfinite(table).all() or table[0] < least or (np.diff(table) < 0.0).any():
        raise WorkloadError(
            f"workload.{field} must not fall, and start at {least:g} or above: {list(values)}"
        )
    return table
