"""The protocol between the router and an engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Request:
    """A turn, as an engine is to answer it.

    Attributes:
        path: ``/v1/chat/completions`` or ``/v1/completions``.
        body: What the client asks for, as a stream that ends with its usage.
        conversation: Number of the conversation.
    """

    path: str
    body: Mapping[str, Any]
    conversation: int


@dataclass(frozen=True)
class Handover:
    """KV cache that left an engine and waits for another.

    Attributes:
        ticket: What the other engine finds it by.
        tokens: Tokens that it covers.
        cached_tokens: Of these, not computed for this turn.
        size_bytes: Its size; 0 where the engine does not tell.
        queued_s: Seconds that the prompt waited in the engine; 0 where it does not tell.
    """

    ticket: Any
    tokens: int
    cached_tokens: int = 0
    size_bytes: int = 0
    queued_s: float = 0.0


class Adapter(Protocol):
    """Speaks to one engine.

    Every method that asks the engine raises ``EngineError`` when it fails, and ``RefusedError``
    when the request is wrong.

    Attributes:
        hands_over: Whether KV can leave the engine for another of its make.
    """

    hands_over: bool

    async def check(self) -> None:
        """Ask whether the engine is well."""

    def restarted(self) -> None:
        """Forget what it kept: the engine was away."""

    def lease(self, conversation: int) -> AbstractAsyncContextManager[None]:
        """Reserve what a turn needs of the engine; it waits until there is some."""

    async def prefill(self, request: Request, history: Handover | None) -> Handover:
        """Compute a prompt for another engine, under a lease.

        Args:
            request: The turn.
            history: KV of the conversation's earlier turns, to begin with.
        """

    async def give(self, conversation: int) -> Handover | None:
        """Hand out what the engine keeps of a conversation, under a lease; None if nothing."""

    async def take(self, conversation: int, handover: Handover) -> bool:
        """Fetch KV, under a lease; false where the engine does so while it answers."""

    def discard(self, handover: Handover) -> None:
        """Clear away a handover, taken or not."""

    def answer(
        self, request: Request, handover: Handover | None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Answer a turn under a lease: server-sent events, one an item."""

    def kept(self, conversation: int) -> int | None:
        """Return where the engine keeps a conversation, for ``remember``."""

    def remember(self, conversation: int, kept: int) -> None:
        """Know again, after the router was restarted, where the engine keeps a conversation."""

    def forget(self, conversation: int) -> None:
        """Keep nothing more of a conversation."""

    async def models(self) -> Mapping[str, Any]:
        """Return what it answers to ``/v1/models``."""
