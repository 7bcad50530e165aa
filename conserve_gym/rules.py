"""Placement rules that environments, baselines and the runtime's fallback share."""

from __future__ import annotations

from collections.abc import Sequence

from conserve_gym.errors import ConServeGymError
from conserve_gym.observation import Observation
from conserve_gym.placement import Placement


def most_free_decoder(observation: Observation) -> int:
    """Return the engine with most free KV among those the conversation may be pinned to.

    Where none has room, as a router without a door may find, every engine that decodes counts.

    Source: ``KvTracker.best_engine_for`` of the ConServe artifact (github.com/jerryding95/conserve
    at 2a8c3bc, 10 June 2026): argmax of budget less reserved tokens.
    """
    return most_free(observation, observation.fleet.decoders)


def most_free(observation: Observation, engines: Sequence[int]) -> int:
    """Return that of the engines with most free KV, among those with room if there are any."""
    free, open_to = observation.free_kv_tokens.tolist(), observation.open_to.tolist()
    with_room = [engine for engine in engines if open_to[engine]]
    return max(with_room or engines, key=free.__getitem__)


def home_decoder(observation: Observation) -> int:
    """Return the engine that decoded the conversation's last turn if it has room.

    Else, and for a first turn, it is the one with most free KV.
    """
    home = observation.home
    return home if home >= 0 and observation.open_to[home] else most_free_decoder(observation)


def least_loaded_prefiller(observation: Observation, decode_at: int) -> int:
    """Return the engine with fewest prompt tokens in flight that can prefill for ``decode_at``.

    The only engine that prefills for others, if it decodes too, has nobody but itself.

    Raises:
        ConServeGymError: No engine prefills for another.
    """
    fleet = observation.fleet
    prefillers = fleet.prefillers_for(decode_at)
    if not prefillers:
        if any(fleet.prefillers_for(decoder) for decoder in fleet.decoders):
            return decode_at
        roles = [str(role) for role in fleet.roles]
        raise ConServeGymError(
            f"cannot disaggregate: of engines with roles {roles} none prefills for another"
        )
    return least_waiting(observation, prefillers)


def least_waiting(observation: Observation, engines: Sequence[int]) -> int:
    """Return that of the engines with fewest prompt tokens in flight."""
    waiting = observation.engine_field("prompt_in_flight").tolist()
    return min(engines, key=waiting.__getitem__)


def prefiller_or_self(observation: Observation, decode_at: int) -> int:
    """Return that engine, or ``decode_at`` itself where no engine prefills for it."""
    if not observation.fleet.prefillers_for(decode_at):
        return decode_at
    return least_loaded_prefiller(observation, decode_at)


def place(observation: Observation, *, disaggregate: bool) -> Placement:
    """Pin to the decoder with most free KV, and prefill there or at the least loaded prefiller."""
    decode_at = most_free_decoder(observation)
    return place_at(observation, decode_at, disaggregate=disaggregate)


def place_at(observation: Observation, decode_at: int, *, disaggregate: bool) -> Placement:
    """Decode at an engine, and prefill there or at the least loaded prefiller."""
    if not disaggregate:
        return Placement(decode_at, decode_at)
    return Placement(least_loaded_prefiller(observation, decode_at), decode_at)
