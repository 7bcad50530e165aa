"""Placements: where a conversation is prefilled and decoded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from conserve_gym.fleet import Fleet


class Placement(NamedTuple):
    """Where a conversation runs.

    Attributes:
        prefill_at: Engine that prefills the turn that is placed: a conversation's first, or each
            where every turn is decided.
        decode_at: Engine that decodes and keeps the conversation's KV cache.
        offload_above: Number of new tokens from which a *later* turn is prefilled at
            ``prefill_at``: what it lacks of the conversation's KV cache is moved there, and the
            new KV to ``decode_at``. Infinity: later turns stay where they are decoded (ConServe);
            0: every turn is disaggregated.
    """

    prefill_at: int
    decode_at: int
    offload_above: float = math.inf

    @property
    def disaggregates(self) -> bool:
        """Whether the first turn is prefilled away from where it is decoded."""
        return self.prefill_at != self.decode_at

    def offloads(self, placed: bool, new_tokens: int) -> bool:
        """Whether a turn's prompt is prefilled away from where it is decoded.

        Args:
            placed: Whether the turn is the one that was placed, and not one that follows it.
            new_tokens: Part of its prompt that is not yet in the conversation's own KV cache.
        """
        prefill_at, decode_at, offload_above = self
        return prefill_at != decode_at and (placed or new_tokens >= offload_above)


HOLD = Placement(-1, -1)
"""No placement yet: the conversation is held at the door until something has happened."""

_MANY_TOKENS = 262144  # an offload_above that counts as never, as the longest prompt observed


def as_table(placements: Sequence[Placement]) -> npt.NDArray[np.float32]:
    """Return placements as networks see them, shape (placements, columns).

    Returns:
        For each: prefill engine, decode engine, and offload_above on a logarithmic scale from 0
        (every turn) to 1 (never). ``HOLD`` has -1 for both engines.
    """
    rows = [
        (at, to, min(math.log1p(tokens) / math.log1p(_MANY_TOKENS), 1.0))
        for at, to, tokens in placements
    ]
    return np.array(rows, dtype=np.float32)


def candidates(fleet: Fleet, offload_above: Sequence[float] = (math.inf,)) -> tuple[Placement, ...]:
    """List every placement that the roles allow, in a fixed order.

    Args:
        fleet: Roles of the engines.
        offload_above: From how many new tokens on later turns may be prefilled away.

    Returns:
        For each engine that decodes: colocation there, then every engine that prefills for it, with
        each value of ``offload_above``.
    """
    return tuple(
        placement
        for decode_at in fleet.decoders
        for placement in (
            Placement(decode_at, decode_at),
            *(
                Placement(prefill_at, decode_at, tokens)
                for prefill_at in fleet.prefillers_for(decode_at)
                for tokens in offload_above
            ),
        )
    )
