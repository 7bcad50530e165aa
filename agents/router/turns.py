"""A turn's way: to its conversation, past the door, to the engines, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from conserve_gym.agents.router import identity, sse
from conserve_gym.agents.router.adapters.base import Handover, Request
from conserve_gym.agents.router.books import Books, Turn
from conserve_gym.agents.router.client import Client
from conserve_gym.agents.router.conversations import Conversation
from conserve_gym.agents.router.engines import Engine, Guard, Watch
from conserve_gym.agents.router.errors import ApiError, EngineError
from conserve_gym.agents.router.metrics import Metrics
from conserve_gym.agents.router.spec import Limits
from conserve_gym.agents.runtime.runtime import Runtime
from conserve_gym.ledger import KvMoved, Prefilled

_ATTEMPTS = 3

# Clients must not choose slots, and kv_transfer_params make an engine connect to any address.
_NOT_FOR_CLIENTS = ("id_slot", "slot_id", "cache_prompt", "kv_transfer_params", *identity.OURS)


class Turns:
    """Serves turns.

    Args:
        runtime: Decides and keeps the ledger.
        books: Keep the conversations.
        engines: In the fleet's order.
        watch: Is told of engines that fail.
        metrics: Are told of everything.
        limits: How long to wait for what.
    """

    def __init__(
        self,
        runtime: Runtime,
        books: Books,
        engines: Sequence[Engine],
        watch: Watch,
        metrics: Metrics,
        limits: Limits,
    ) -> None:
        """Start without turns."""
        self._runtime = runtime
        self._books = books
        self._engines = engines
        self._watch = watch
        self._metrics = metrics
        self._limits = limits

    async def serve(
        self, path: str, headers: Mapping[str, str], body: Mapping[str, Any], client: Client
    ) -> None:
        """Answer a request.

        Raises:
            ApiError: Nobody can.
            RefusedError: The engine says that the request is wrong.
            ClientGoneError: The client does not wait for it.
        """
        async with self._books.conversation(headers, body) as conversation:
            await self._answer(conversation, path, body, client)

    async def _answer(
        self, conversation: Conversation, path: str, body: Mapping[str, Any], client: Client
    ) -> None:
        asked = {name: value for name, value in body.items() if name not in _NOT_FOR_CLIENTS}
        asked["stream"] = True
        asked["stream_options"] = {"include_usage": True}
        attempts = 0
        while True:
            try:
                return await self._attempt(conversation, path, asked, client)
            except EngineError as error:
                attempts += 1
                if client.begun:
                    return await client.fail(str(error))
                if attempts == _ATTEMPTS:
                    raise ApiError(502, f"engines failed: {error}", "engine_failed") from None
                self._metrics.retries.inc()
                if conversation.placement is not None:
                    self._books.start_over(conversation)

    async def _attempt(
        self, conversation: Conversation, path: str, body: Mapping[str, Any], client: Client
    ) -> None:
        async with self._books.turn(conversation, body) as turn:
            usage = await self._run(turn, Request(path, body, turn.number), client)
            self._books.finish(turn, usage)

    async def _run(self, turn: Turn, request: Request, client: Client) -> dict[str, Any]:
        """Let the engines answer; returns the usage of tokens."""
        decoder = self._engines[turn.placement.decode_at]
        handover: Handover | None = None
        try:
            if turn.is_offloaded:
                handover = await self._prefilled(turn, request)
            try:
                async with (
                    decoder.guard() as guard,
                    decoder.adapter.lease(request.conversation),
                ):
                    guard.expect(self._limits.first_token_s)
                    ticket = handover
                    if handover is not None and not await self._taken(turn, decoder, handover):
                        ticket = None
                    return await self._answered(turn, decoder, guard, request, ticket, client)
            except EngineError as error:
                await self._watch.suspect(decoder, error)
                raise
        finally:
            if handover is not None:
                self._engines[turn.placement.prefill_at].adapter.discard(handover)

    async def _prefilled(self, turn: Turn, request: Request) -> Handover | None:
        """Compute a prompt away from its decoder; None if that fails."""
        prefiller = self._engines[turn.placement.prefill_at]
        decoder = self._engines[turn.placement.decode_at]
        number, index = turn.number, turn.index
        history: Handover | None = None
        at_fault = prefiller
        try:
            if not prefiller.up:
                raise EngineError(f"{prefiller.name} is down: {prefiller.says}")
            if index > 0 and self._runtime.deployment.pulls_history:
                at_fault = decoder
                began = self._runtime.now()
                async with decoder.guard() as guard, decoder.adapter.lease(number):
                    guard.expect(self._limits.first_token_s)
                    history = await decoder.adapter.give(number)
                at_fault = prefiller
            async with prefiller.guard() as guard, prefiller.adapter.lease(number):
                guard.expect(self._limits.first_token_s)
                handover = await prefiller.adapter.prefill(request, history)
            if history is not None:
                ends = decoder.index, prefiller.index
                self._moved(turn, *ends, history, self._runtime.now() - began)
        except EngineError as error:
            await self._watch.suspect(at_fault, error)
            self._metrics.fallbacks.labels("prefill").inc()
            turn.reason = f"prefill failed: {error}"
            return None
        finally:
            if history is not None:
                decoder.adapter.discard(history)
        self._runtime.record(
            Prefilled,
            number,
            index,
            prefiller.index,
            handover.tokens,
            handover.cached_tokens,
            handover.queued_s,
        )
        return handover

    async def _taken(self, turn: Turn, decoder: Engine, handover: Handover) -> bool:
        """Bring KV to the decoder; false if it has to compute the prompt itself."""
        began = self._runtime.now()
        try:
            if await decoder.adapter.take(turn.number, handover):
                ends = turn.placement.prefill_at, decoder.index
                self._moved(turn, *ends, handover, self._runtime.now() - began)
        except EngineError as error:
            self._metrics.fallbacks.labels("transfer").inc()
            turn.reason = f"transfer failed: {error}"
            return False
        return True

    def _moved(
        self, turn: Turn, source: int, target: int, handover: Handover, seconds: float
    ) -> None:
        ends = turn.number, turn.index, source, target
        self._runtime.record(KvMoved, *ends, handover.tokens, seconds)
        turn.transfers += 1
        self._metrics.transfers.inc()
        self._metrics.transfer_bytes.inc(handover.size_bytes)
        self._metrics.transfer_s.observe(seconds)

    async def _answered(
        self,
        turn: Turn,
        decoder: Engine,
        guard: Guard,
        request: Request,
        handover: Handover | None,
        client: Client,
    ) -> dict[str, Any]:
        """Pass the decoder's events on; returns the usage of tokens."""
        asked = self._runtime.now()
        last = math.nan
        usage: dict[str, Any] = {}
        held: list[tuple[bytes, dict[str, Any] | None]] = []
        done = False
        async with decoder.adapter.answer(request, handover) as events:
            async for event in events:
                chunk = None
                if math.isnan(last) or client.wants_chunks or b'"usage"' in event:
                    chunk = sse.data(event)
                if chunk is not None and isinstance(said := chunk.get("usage"), dict):
                    usage = said
                if math.isnan(last):
                    held.append((event, chunk))
                    if chunk is None or not sse.has_token(chunk):
                        if chunk is not None and "error" in chunk:
                            raise EngineError(f"{decoder.name}: {chunk['error']}")
                        continue
                    last = self._first_token(turn, decoder, handover, asked)
                    await client.begin(self._books.receipt(turn))
                    for earlier in held:
                        await client.event(*earlier)
                else:
                    now = self._runtime.now()
                    done = done or b"data: [DONE]" in event
                    if not done:
                        self._metrics.tbt.observe(now - last)
                    last = now
                    only_usage = chunk is not None and not chunk.get("choices") and usage
                    if client.wants_usage or not only_usage:
                        await client.event(event, chunk)
                guard.expect(self._limits.next_token_s)
        if not done:
            raise EngineError(f"{decoder.name} broke off", broken=True)
        return usage

    def _first_token(
        self, turn: Turn, decoder: Engine, handover: Handover | None, asked: float
    ) -> float:
        if handover is not None and not turn.transfers:
            # The engine fetched the KV meanwhile, and does not tell how long that took.
            seconds = self._runtime.now() - asked
            self._moved(turn, turn.placement.prefill_at, decoder.index, handover, seconds)
        return self._books.first_token(turn)
