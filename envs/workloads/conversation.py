"""The one internal form of a workload: conversations of dependent turns."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

from conserve_gym.errors import ConServeGymError


class WorkloadError(ConServeGymError):
    """A workload that cannot be read or drawn; the message names file, line or field and value."""


GapKind = Literal["tool", "user", "mixed", "unknown"]
"""A tool ran, a human thought, both, or nobody knows."""


class Turn(NamedTuple):
    """One request of a conversation.

    Attributes:
        input_tokens: Length of the full prompt, history included.
        new_tokens: Part of it that the conversation's own KV cache does not cover; the rest was
            prompt or output of earlier turns.
        output_tokens: Tokens generated, at least 1.
        gap_s: Time between the end of the last turn and this turn's arrival; NaN in a recording
            that does not say.
        gap_kind: What passed in it.
        sent_s: When it was recorded, in seconds since its conversation's first turn; NaN if nobody
            knows. Nothing is played by it.
        not_before_s: In an open loop, when it comes, in the same seconds, unless the last turn ends
            later; 0 in a closed loop.
    """

    input_tokens: int
    new_tokens: int
    output_tokens: int
    gap_s: float
    gap_kind: GapKind = "unknown"
    sent_s: float = math.nan
    not_before_s: float = 0.0


class Conversation(NamedTuple):
    """A conversation that arrives at ``arrival_s``.

    A turn comes ``gap_s`` after the last one has ended, but not before ``arrival_s`` +
    ``not_before_s``. So it never comes while the last one runs, in an open loop either.
    """

    arrival_s: float
    turns: tuple[Turn, ...]

    def __deepcopy__(self, memo: dict[int, Any]) -> Conversation:
        """Return itself: it never changes, and copies of a cluster share it."""
        return self

    @property
    def peak_tokens(self) -> int:
        """Largest number of tokens that its KV cache will hold."""
        return max(turn.input_tokens + turn.output_tokens for turn in self.turns)


class Recording(NamedTuple):
    """A conversation as it was recorded.

    Attributes:
        identifier: Its name in the file.
        root: Name of the conversation that it belongs to: its own, or for a sub-agent that of the
            conversation which began it all. Splits keep those of one root together.
        arrival_s: When it began, in seconds since the recording's; NaN if nobody knows.
        turns: Its turns.
        parent: Name of the conversation that began this one, or that it branched off; None for a
            root. Its own turns need not be there.
    """

    identifier: str
    root: str
    arrival_s: float
    turns: tuple[Turn, ...]
    parent: str | None = None
