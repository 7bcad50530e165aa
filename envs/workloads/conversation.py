"""The one internal form of a workload: conversations of dependent turns."""

from __future__ import annotations

from typing import Any, NamedTuple

from conserve_gym.errors import ConServeGymError


class WorkloadError(ConServeGymError):
    """A workload that cannot be read or drawn; the message names file, line or field and value."""


class Turn(NamedTuple):
    """One request of a conversation.

    Attributes:
        input_tokens: Length of the full prompt, history included.
        new_tokens: Part of it that the conversation's own KV cache does not cover; the rest was
            prompt or output of earlier turns.
        output_tokens: Tokens generated, at least 1.
        gap_s: Time between the end of the last turn and this turn's arrival.
    """

    input_tokens: int
    new_tokens: int
    output_tokens: int
    gap_s: float


class Conversation(NamedTuple):
    """A conversation that arrives at ``arrival_s`` and plays its turns in a closed loop."""

    arrival_s: float
    turns: tuple[Turn, ...]

    def __deepcopy__(self, memo: dict[int, Any]) -> Conversation:
        """Return itself: it never changes, and copies of a cluster share it."""
        return self

    @property
    def peak_tokens(self) -> int:
        """Largest number of tokens that its KV cache will hold."""
        return max(turn.input_tokens + turn.output_tokens for turn in self.turns)
