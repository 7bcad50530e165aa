"""One turn at one engine, and who hears what becomes of it."""

from __future__ import annotations

from typing import Protocol


class Request:
    """One turn at one engine.

    Args:
        conversation: Identifier.
        turn: Index of the turn.
        input_tokens: Length of the full prompt.
        reusable_tokens: Prefix of the prompt that the conversation's own old KV covers.
        output_tokens: Tokens to generate; 0 when the prompt is computed for another engine.
        history_at: Another engine that may hold more of the conversation's old KV; -1 for none.

    Attributes:
        submitted_s: When it reached the engine.
        started_s: When its first step began.
        cached_tokens: Part of the prompt that was in the KV pool by then, or was pulled there;
            preemption does not change it.
    """

    __slots__ = (
        "cached_tokens",
        "chunk",
        "computed",
        "conversation",
        "generated",
        "history_at",
        "input_tokens",
        "output_tokens",
        "pulling",
        "reusable_tokens",
        "shift",
        "started_s",
        "submitted_s",
        "turn",
    )

    def __init__(
        self,
        conversation: int,
        turn: int,
        input_tokens: int,
        reusable_tokens: int,
        output_tokens: int,
        history_at: int = -1,
    ) -> None:
        """Prepare a turn that has not reached the engine."""
        self.conversation = conversation
        self.turn = turn
        self.input_tokens = input_tokens
        self.reusable_tokens = reusable_tokens
        self.output_tokens = output_tokens
        self.history_at = history_at
        self.cached_tokens = 0
        self.generated = 0
        self.computed = 0  # tokens of the prompt (and of what was generated) in the KV pool
        self.pulling = False  # old KV is on its way here
        self.chunk = 0  # prompt tokens in the step under way
        self.shift = 0  # length in the KV pool less the engine's count of decode steps
        self.submitted_s = 0.0
        self.started_s = -1.0

    @property
    def to_compute(self) -> int:
        """Tokens that must be in the KV pool before the next token can be sampled."""
        return self.input_tokens + self.generated


class EngineListener(Protocol):
    """Who hears what happens in an engine: the cluster."""

    def reserves(self, request: Request) -> bool:
        """A prompt for another engine could start. Returns whether its KV has a place there."""

    def pulls(self, request: Request) -> bool:
        """A prompt was admitted. Returns whether old KV is pulled from ``request.history_at``."""

    def on_prefilled(self, request: Request) -> None:
        """A prompt is computed for another engine; its KV is held until ``release``."""

    def on_copied(self, copy: object) -> None:
        """The engine is through with a copy of KV, for which it had stopped."""

    def on_first_token(self, request: Request) -> None:
        """A turn's first token came out."""

    def on_turn_finished(self, request: Request) -> None:
        """A turn's last token came out."""

    def on_room_freed(self) -> None:
        """KV that was held may now be taken: a turn has ended or lost its KV, or it was moved."""

    def after_turn(self, request: Request) -> None:
        """The finished turn's KV is idle or free."""
