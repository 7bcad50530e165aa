"""Observations made by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from conserve_gym.fleet import Fleet, Role
from conserve_gym.observation import FIELDS_OF, Observation, Scaler

P, D, M = Role.PREFILL, Role.DECODE, Role.MIXED

_CLUSTER_AND_CONVERSATION = [f.name for f in (*FIELDS_OF["cluster"], *FIELDS_OF["conversation"])]


def observed(
    roles: Sequence[Role],
    *,
    free: Sequence[float],
    capacity: Sequence[int] | int = 1000,
    closed: Sequence[int] = (),
    home: int = -1,
    conversation: int = 0,
    fields: dict[str, float] | None = None,
    **engine_fields: Sequence[float],
) -> Observation:
    """An observation with some fields; all others are 0.

    Args:
        roles: Of the engines.
        free: KV tokens free on each.
        capacity: KV of each engine, or of all.
        closed: Engines without room.
        home: Engine of the conversation's last turn.
        conversation: Who stands at the door.
        fields: Fields of the cluster and the conversation.
        engine_fields: Fields of the engines.
    """
    capacities = (capacity,) * len(roles) if isinstance(capacity, int) else tuple(capacity)
    raw = np.zeros(Scaler(len(roles)).size)
    for name, value in (fields or {}).items():
        raw[_CLUSTER_AND_CONVERSATION.index(name)] = value
    turn = int((fields or {}).get("turn", 0))
    open_to = np.array([role.decodes and i not in closed for i, role in enumerate(roles)])
    fleet = Fleet(tuple(roles), capacities)
    seen = Observation(
        1.0, conversation, turn, fleet, raw, np.array(free, dtype=float), open_to, home
    )
    for name, values in engine_fields.items():
        seen.engine_field(name)[:] = values
    return seen
