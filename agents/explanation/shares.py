"""Which engines a policy sends its work to, and whether it herds onto one."""

from __future__ import annotations

from typing import Any

import numpy as np

from conserve_gym.fleet import Fleet
from conserve_gym.ledger import Ledger, Placed
from conserve_gym.metrics import normalised_entropy


def share_rows(ledger: Ledger, fleet: Fleet) -> list[dict[str, Any]]:
    """Return what of an episode's placements went where.

    Returns:
        A row for the engines that prefill what is placed and one for those that decode it, with
        the normalised entropy and each engine's share in per cent.
    """
    placed = [event for event in ledger if isinstance(event, Placed)]
    rows = []
    for end, able in (("prefill_at", fleet.roles), ("decode_at", fleet.decoders)):
        counts = np.bincount(
            [getattr(event, end) for event in placed], minlength=len(fleet.roles)
        ).astype(np.float64)
        shares = counts / counts.sum()
        row: dict[str, Any] = {"end": end, "entropy": normalised_entropy(shares, len(able))}
        row |= {f"engine_{i}_pct": 100.0 * float(share) for i, share in enumerate(shares)}
        rows.append(row)
    return rows
