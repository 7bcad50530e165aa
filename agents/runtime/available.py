"""Decisions while engines are down: no conversation is sent to one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from conserve_gym import rules
from conserve_gym.agents.runtime.scheduler import DecidedBy, Decision, Scheduler
from conserve_gym.observation import Observation
from conserve_gym.placement import HOLD, Placement


def has_room(observation: Observation, up: Sequence[bool]) -> bool:
    """Return whether the door may open: an engine that is up takes the conversation."""
    open_to = observation.open_to if all(up) else observation.open_to & np.array(up)
    return bool(np.count_nonzero(open_to))


def decision(
    scheduler: Scheduler,
    observation: Observation,
    up: Sequence[bool],
    *,
    must_place: bool = False,
) -> Decision:
    """Decide among the engines that are up.

    Args:
        scheduler: What decides.
        observation: What is known.
        up: Whether each engine is up; where none of those that decode is, all are tried.
        must_place: Whether a policy that may hold the conversation must not.
    """
    if all(up):
        return scheduler.decision(observation, must_place=must_place)
    fleet = observation.fleet
    decoders = [engine for engine in fleet.decoders if up[engine]]
    if not decoders:
        return scheduler.decision(observation, must_place=must_place)
    among = replace(observation, open_to=observation.open_to & np.array(up))
    chosen = scheduler.decision(among, must_place=must_place)
    if chosen.placement == HOLD:
        return chosen
    prefill_at, decode_at, offload_above = chosen.placement
    if up[prefill_at] and up[decode_at]:
        return chosen
    down = prefill_at if not up[prefill_at] else decode_at
    if not up[decode_at]:
        decode_at = rules.most_free(observation, decoders)
    prefillers = [engine for engine in fleet.prefillers_for(decode_at) if up[engine]]
    if chosen.placement.disaggregates and prefillers:
        prefill_at = rules.least_waiting(observation, prefillers)
        placement = Placement(prefill_at, decode_at, offload_above)
    else:
        placement = Placement(decode_at, decode_at)
    reason = f"engine {down} is down" + (f"; {chosen.fallback}" if chosen.fallback else "")
    return Decision(placement, -1, chosen.scores, reason, DecidedBy.ENGINE_DOWN)
