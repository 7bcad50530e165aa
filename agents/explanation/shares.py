"""Which engines a policy sends its work to, and whether it herds onto one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from conserve_gym.fleet import Fleet
from conserve_gym.ledger import Ledger, Placed
from conserve_gym.observation import FloatArray


def share_rows(ledger: Ledger, fleet: Fleet) -> list[dict[str, Any]]:
    """Return what of an episode's placements went where.

    Returns:
        A row for the engines that prefill what is placed and one for those that decode it, with
        the normalised entropy and each engine's share in per cent.
    """
    placed = [event for event in ledger if isinstance(event, Placed)]
    anywhere = range(len(fleet.roles))
    rows = []
    for end, able in (("prefill_at", anywhere), ("decode_at", fleet.decoders)):
        counts = np.bincount(
            [getattr(event, end) for event in placed], minlength=len(fleet.roles)
        ).astype(np.float64)
        shares = counts / counts.sum()
        row: dict[str, Any] = {"end": end, "entropy": normalised_entropy(shares, able)}
        row |= {f"engine_{i}_pct": 100.0 * float(share) for i, share in enumerate(shares)}
        rows.append(row)
    return rows


def normalised_entropy(shares: FloatArray, able: Sequence[int]) -> float:
    """Return the entropy of shares over the largest that there could be.

    Args:
        shares: Share of each engine.
        able: Engines that could have one.

    Returns:
        1 where all that are able have the same, 0 where one has all; NaN if only one is able.
    """
    if len(able) < 2:
        return math.nan
    taken = shares[shares > 0.0]
    return float(-(taken * np.log(taken)).sum() / math.log(len(able)))
