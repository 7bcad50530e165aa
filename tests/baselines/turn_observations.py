"""Observations of a turn at the door, and a cluster whose times are easy to compute."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from conserve_gym.fleet import Fleet, Role
from conserve_gym.observation import EngineExport, Observation, Scaler
from conserve_gym.site import Site

P, D, M = Role.PREFILL, Role.DECODE, Role.MIXED

KV_CAPACITY = 1_000_000


class ToyEngine:
    """10 ms a step, 0.1 ms a prompt token, 0.1 us a KV token that is read; 2,000 tokens a step."""

    token_budget = 2000

    def step_s(
        self, prompt_tokens: int, context_tokens: int, sequences: int = 0, kv_tokens: int = 0
    ) -> float:
        return 0.010 + 1e-4 * prompt_tokens + 1e-7 * kv_tokens

    def prefill_s(self, new_tokens: int, context_tokens: int) -> float:
        steps = -(-new_tokens // self.token_budget)
        return 0.010 * steps + 1e-4 * new_tokens


class ToyNetwork:
    """5 ms a move, and 1 us a token."""

    def transfer_s(self, source: int, target: int, tokens: int) -> float:
        return 0.005 + 1e-6 * tokens


def toy_site(*roles: Role) -> Site:
    fleet = Fleet(roles, (KV_CAPACITY,) * len(roles))
    return Site(fleet, (ToyEngine(),) * len(roles), ToyNetwork())


def turn_at_door(
    *roles: Role,
    prompt: int,
    new: int | None = None,
    turn: int = 0,
    home: int = -1,
    conversation: int = 0,
    time: float = 1.0,
    closed: tuple[int, ...] = (),
    free: list[float] | None = None,
    cluster: Mapping[str, float] | None = None,
    engines: Mapping[str, Mapping[int, float]] | None = None,
    exports: tuple[EngineExport, ...] = (),
) -> Observation:
    """A turn at the door; of ``engines`` the value of each field by engine, else 0."""
    fleet = Fleet(roles, (KV_CAPACITY,) * len(roles))
    scaler = Scaler(len(roles))
    fields = {"conversation.prompt": prompt, "conversation.new": prompt if new is None else new}
    fields["conversation.turn"] = turn
    fields |= {f"cluster.{name}": value for name, value in (cluster or {}).items()}
    for name, values in (engines or {}).items():
        fields |= {f"engines[{engine}].{name}": value for engine, value in values.items()}
    raw = np.zeros(scaler.size)
    for name, value in fields.items():
        raw[scaler.names.index(name)] = value
    open_to = np.array([role.decodes and i not in closed for i, role in enumerate(roles)])
    free_kv = np.array(free or [float(KV_CAPACITY)] * len(roles))
    return Observation(
        time, conversation, turn, fleet, raw, free_kv, open_to, home=home, exports=exports
    )
