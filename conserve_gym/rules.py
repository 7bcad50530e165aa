"""Placement rules that environments, baselines and the runtime's fallback share."""

from __future__ import annotations

import numpy as np

from conserve_gym.observation import Observation
from conserve_gym.placement import Placement


def most_free_decoder(observation: Observation) -> int:
    """Return the engine with most free KV among those the conversation may be pinned to.

    Source: ``KvTracker.best_engine_for`` of the ConServe artifact (github.com/jerryding95/conserve
    at 2a8c3bc, 10 June 2026): argmax of budget less reserved tokens.
    """
    return int(np.where(observation.open_to, observation.free_kv_tokens, -np.inf).argmax())


def least_loaded_prefiller(observation: Observation, decode_at: int) -> int:
    """Return the engine with fewest prompt tokens in flight that can prefill for ``decode_at``."""
    waiting = observation.engine_field("prompt_in_flight")
    return min(observation.fleet.prefillers_for(decode_at), key=lambda engine: waiting[engine])


def place(observation: Observation, *, disaggregate: bool) -> Placement:
    """Pin to the decoder with most free KV, and prefill there or at the least loaded prefiller."""
    decode_at = most_free_decoder(observation)
    if not disaggregate:
        return Placement(decode_at, decode_at)
    return Placement(least_loaded_prefiller(observation, decode_at), decode_at)
