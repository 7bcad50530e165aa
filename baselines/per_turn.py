"""What rules share that decide for every turn whether its prompt stays where it is decoded."""

from __future__ import annotations

from abc import ABC, abstractmethod

from conserve_gym import rules
from conserve_gym.deployment import Deployment
from conserve_gym.observation import Observation
from conserve_gym.placement import Placement


class PerTurn(ABC):
    """Decodes where the conversation's KV is, and prefills there or at the least loaded prefiller.

    It stays while there is room. Where no engine prefills for the decoder, it colocates.

    Args:
        name: How the rule is called.
        pulls_history: Whether an engine that prefills a later turn copies the history's KV from
            where it was decoded; else it computes again what it does not itself hold.
    """

    def __init__(self, name: str, *, pulls_history: bool = False) -> None:
        """Let every turn pass the door."""
        self.name = name
        self.deployment = Deployment(decides_every_turn=True, pulls_history=pulls_history)

    def reset(self, seed: int) -> None:  # noqa: B027 - most rules keep nothing
        """Keep no state."""

    def decide(self, observation: Observation) -> Placement:
        """Ask the rule, unless only one answer is possible."""
        decode_at = rules.home_decoder(observation)
        prefill_at = rules.prefiller_or_self(observation, decode_at)
        if prefill_at != decode_at and self.stays(observation, prefill_at, decode_at):
            prefill_at = decode_at
        return Placement(prefill_at, decode_at)

    @abstractmethod
    def stays(self, observation: Observation, prefill_at: int, decode_at: int) -> bool:
        """Whether the prompt is prefilled where it is decoded, and not at ``prefill_at``."""


def uncached_tokens(observation: Observation, engine: int) -> int:
    """Return the tokens of the prompt at the door whose KV an engine is not known to hold."""
    return int(observation["prompt"] - observation.of_engine("holds", engine))


def waiting_prompts(observation: Observation, engine: int) -> int:
    """Return how many turns of an engine have no first token yet.

    On an engine that decodes these include prompts that are prefilled elsewhere.
    """
    in_flight = observation.of_engine("turns_in_flight", engine)
    return int(in_flight - observation.of_engine("decoding", engine))
