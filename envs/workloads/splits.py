"""Recordings for training, validation and testing, told apart by their names alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal, get_args

from conserve_gym.envs.workloads.conversation import Recording, WorkloadError

Split = Literal["train", "validation", "test"]
"""80, 10 and 10 % of the roots."""

_TENTHS: tuple[Split, ...] = (*("train",) * 8, "validation", "test")


def split_of(root: str) -> Split:
    """Return the split of a conversation with everything that it began.

    The SHA-256 of its name decides: on every machine, whatever stands beside it, in every order.
    """
    drawn = int.from_bytes(hashlib.sha256(root.encode("utf-8", "surrogatepass")).digest())
    return _TENTHS[drawn * len(_TENTHS) >> 256]


def of_split(recordings: Iterable[Recording], split: Split) -> list[Recording]:
    """Return the recordings of one split; sub-agents are in that of their root.

    Raises:
        WorkloadError: There is no such split.
    """
    if split not in get_args(Split):
        raise WorkloadError(f"split={split!r} is none of {', '.join(get_args(Split))}")
    return [recording for recording in recordings if split_of(recording.root) == split]
