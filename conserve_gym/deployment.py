"""How an arm runs the GPUs that it is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Reservation(StrEnum):
    """How much KV the door counts as taken by a conversation that it has let in.

    NONE opens the door at once and leaves memory to the engines. PER_TURN counts what the
    conversation is known to hold, and grows with every turn seen. ORACLE_PEAK counts what it
    will hold at its end: no scheduler can know that.
    """

    NONE = "none"
    PER_TURN = "per_turn"
    ORACLE_PEAK = "oracle_peak"


@dataclass(frozen=True)
class Deployment:
    """How an arm runs the GPUs that it is given.

    Attributes:
        all_mixed: Every engine prefills and decodes, whatever role the cluster gives it.
        reservation: How the door counts KV.
        decides_every_turn: Every turn passes the door, instead of the conversation being pinned.
        prefix_caching: KV stays on an engine after a turn, until it is evicted, and is reused by
            the conversation's later turns.
        pulls_history: An engine that prefills a later turn copies what it lacks of the
            conversation's KV from where it was decoded last; else it computes that again.
        may_hold: The policy may hold the conversation at the door: the newest stands there first,
            and it is asked about again when something has happened.
        engine_exports: Engines tell the router their queues at each decision, which the ledger
            does not hold.
    """

    all_mixed: bool = False
    reservation: Reservation = Reservation.PER_TURN
    decides_every_turn: bool = False
    prefix_caching: bool = True
    pulls_history: bool = True
    may_hold: bool = False
    engine_exports: bool = False

    def to_json(self) -> dict[str, bool | str]:
        """Return the deployment as plain values."""
        return {**asdict(self), "reservation": str(self.reservation)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Deployment:
        """Build a deployment from plain values."""
        return cls(**{**values, "reservation": Reservation(values["reservation"])})

    @property
    def sees_future(self) -> bool:
        """Whether the deployment uses what no scheduler can know at decision time."""
        return self.reservation is Reservation.ORACLE_PEAK


DEFAULT_DEPLOYMENT = Deployment()
"""Roles as the cluster has them, KV as it is known, one decision a conversation."""
