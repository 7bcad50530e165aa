"""A turn's way: to its conversation, past the door, to the engines, and into the ledger."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from conserve_gym.agents.router import identity, lengths, sse
from conserve_gym.agents.router.adapters.base import Handover, Request
from conserve_gym.agents.router.client import Client
from conserve_gym.agents.router.conversations import Conversation, Conversations
from conserve_gym.agents.router.door import Door
from conserve_gym.agents.router.engines import Engine, Guard, Watch
from conserve_gym.agents.router.errors import ApiError, EngineError
from conserve_gym.agents.router.incidents import Incidents
from conserve_gym.agents.router.metrics import Metrics
from conserve_gym.agents.router.spec import Limits
from conserve_gym.agents.runtime.runtime import Runtime
from conserve_gym.ledger import (
    ConversationEnded,
    FirstToken,
    KvMoved,
    Prefilled,
    TurnAborted,
    TurnArrived,
    TurnFinished,
)

_ATTEMPTS = 3
_LATEST = 50

# Clients must not choose slots, and kv_transfer_params make an engine connect to any address.
_NOT_FOR_CLIENTS = ("id_slot", "slot_id", "cache_prompt", "kv_transfer_params", *identity.OURS)


class Turns:
    """Serves turns.

    Args:
        runtime: Decides and keeps the ledger.
        engines: In the fleet's order.
        watch: Is told of engines that fail.
        metrics: Are told of everything.
        incidents: Are told of turns that engines failed.
        limits: How long to wait for what.
        tokens_per_character: Of prompts, until engines have told.

    Attributes:
        conversations: Those that live.
        door: Where they wait for room.
        latest: The latest decisions, for people to look at.
    """

    def __init__(
        self,
        runtime: Runtime,
        engines: Sequence[Engine],
        watch: Watch,
        metrics: Metrics,
        incidents: Incidents,
        limits: Limits,
        tokens_per_character: float,
    ) -> None:
        """Start without conversations."""
        self._runtime = runtime
        self._engines = engines
        self._watch = watch
        self._metrics = metrics
        self._incidents = incidents
        self._limits = limits
        self._lengths = lengths.Lengths(tokens_per_character)
        self.conversations = Conversations()
        self.door = Door(runtime, metrics, limits.at_door, limits.door_s)
        self.latest: deque[dict[str, Any]] = deque(maxlen=_LATEST)

    async def serve(
        self, path: str, headers: Mapping[str, str], body: Mapping[str, Any], client: Client
    ) -> None:
        """Answer a request.

        Raises:
            ApiError: Nobody can.
            RefusedError: The engine says that the request is wrong.
            ClientGoneError: The client does not wait for it.
        """
        key = identity.key(headers, body)
        prefixes = identity.prefixes(body) if key is None else []
        while True:
            conversation = self.conversations.find(key, prefixes)
            if conversation is None:
                self.door.check()
                conversation = self.conversations.open(key, self._runtime.now())
            conversation.turns_waiting += 1
            try:
                async with conversation.lock:
                    if conversation not in self.conversations:
                        continue  # it ended while this turn waited
                    self.conversations.used(conversation, self._runtime.now())
                    try:
                        await self._turn(conversation, path, body, client)
                        self.conversations.continues(conversation, prefixes)
                    finally:
                        self._after(
                            conversation, identity.is_last(headers) or not (key or prefixes)
                        )
                    return
            finally:
                conversation.turns_waiting -= 1

    def end(self, conversation: Conversation, reason: str) -> None:
        """End a conversation that has no turn under way."""
        if not math.isnan(conversation.first_token_s):
            self._metrics.ttfet.observe(conversation.first_token_s - conversation.arrived_s)
        self._metrics.ended.labels(reason).inc()
        self.conversations.remove(conversation)
        if conversation.placement is not None:
            self._leave(conversation)

    def sweep(self) -> None:
        """Give up conversations that have been silent for too long."""
        before = self._runtime.now() - self._limits.idle_s
        for conversation in self.conversations.idle(before, self._limits.conversations):
            self.end(conversation, "idle")

    def records(self) -> list[dict[str, Any]]:
        """Return what restores the conversations after a restart."""
        return [self._record(one) for one in self.conversations if one.placement is not None]

    def restore(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Know the conversations of an earlier router again."""
        for one in self.conversations.restore(records, self._runtime.now()):
            assert one.placement is not None
            slot = next(r for r in reversed(records) if r["conversation"] == one.number)["slot"]
            if slot is not None:
                self._engines[one.placement.decode_at].adapter.remember(one.number, slot)

    # --- a turn ---

    async def _turn(
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
                    self._start_over(conversation)

    async def _attempt(
        self, conversation: Conversation, path: str, body: Mapping[str, Any], client: Client
    ) -> None:
        if not any(self._engines[i].up for i in self._runtime.fleet.decoders):
            raise ApiError(503, "no engine that decodes is up", "no_engine", retry_after_s=5)
        placement = conversation.placement
        if placement is not None and not self._engines[placement.decode_at].up:
            self._start_over(conversation)
        characters = lengths.characters(body)
        input_tokens, new_tokens = self._length(conversation, body, characters)
        number, turn = conversation.number, conversation.turn
        arrived = self._runtime.record(TurnArrived, number, turn, input_tokens, new_tokens)
        conversation.turn += 1
        finished = False
        reason = ""
        shown: dict[str, Any] = {}
        try:
            if conversation.placement is None:
                decision = await self.door.place(number)
                conversation.placement, reason = decision.placement, decision.fallback
                self._note(conversation)
                shown = self._show(conversation, input_tokens, reason)
            route = _Route(conversation, number, turn, new_tokens, arrived.time, reason, shown)
            usage = await self._run(route, Request(path, body, number), client)
            said = usage.get("prompt_tokens"), usage.get("completion_tokens")
            read, written = (int(one) if isinstance(one, int) else 0 for one in said)
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            read = read or input_tokens
            at = conversation.placement.decode_at
            self._runtime.record(TurnFinished, number, turn, at, read, int(cached), written)
            finished = True
            conversation.input_tokens, conversation.characters = read, characters
            conversation.kv_tokens = read + written
            self._lengths.learn(characters, read)
        finally:
            if not finished:
                self._runtime.record(TurnAborted, number, turn)
                if conversation.placement is None:  # it left the door
                    self._runtime.record(ConversationEnded, number, 1)
                    self.conversations.renumber(conversation)
            self.door.knock()

    async def _run(self, route: _Route, request: Request, client: Client) -> dict[str, Any]:
        """Let the engines answer; returns the usage of tokens."""
        decoder = self._engines[route.placement.decode_at]
        handover: Handover | None = None
        try:
            if route.placement.offloads(route.turn == 0, route.new_tokens):
                handover = await self._prefilled(route, request)
            try:
                async with (
                    decoder.guard() as guard,
                    decoder.adapter.lease(request.conversation),
                ):
                    guard.expect(self._limits.first_token_s)
                    ticket = handover
                    if handover is not None and not await self._taken(route, decoder, handover):
                        ticket = None
                    return await self._answered(route, decoder, guard, request, ticket, client)
            except EngineError as error:
                self._incidents.add(f"{decoder.name} failed a turn: {error}")
                await self._watch.suspect(decoder, error)
                raise
        finally:
            if handover is not None:
                self._engines[route.placement.prefill_at].adapter.discard(handover)

    async def _prefilled(self, route: _Route, request: Request) -> Handover | None:
        """Compute a prompt away from its decoder; None if that fails."""
        prefiller = self._engines[route.placement.prefill_at]
        decoder = self._engines[route.placement.decode_at]
        number, turn = route.number, route.turn
        history: Handover | None = None
        at_fault = prefiller
        try:
            if not prefiller.up:
                raise EngineError(f"{prefiller.name} is down: {prefiller.says}")
            if turn > 0 and self._runtime.deployment.pulls_history:
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
                self._moved(route, *ends, history, self._runtime.now() - began)
        except EngineError as error:
            await self._watch.suspect(at_fault, error)
            self._metrics.fallbacks.labels("prefill").inc()
            self._differs(route, f"prefill failed: {error}", at_fault)
            return None
        finally:
            if history is not None:
                decoder.adapter.discard(history)
        self._runtime.record(
            Prefilled,
            number,
            turn,
            prefiller.index,
            handover.tokens,
            handover.cached_tokens,
            handover.queued_s,
        )
        return handover

    async def _taken(self, route: _Route, decoder: Engine, handover: Handover) -> bool:
        """Bring KV to the decoder; false if it has to compute the prompt itself."""
        began = self._runtime.now()
        try:
            if await decoder.adapter.take(route.number, handover):
                ends = route.placement.prefill_at, decoder.index
                self._moved(route, *ends, handover, self._runtime.now() - began)
        except EngineError as error:
            self._metrics.fallbacks.labels("transfer").inc()
            self._differs(route, f"transfer failed: {error}", decoder)
            return False
        return True

    def _differs(self, route: _Route, reason: str, at_fault: Engine) -> None:
        """Note why a turn does not go as it was decided."""
        route.reason = route.shown["reason"] = reason
        self._incidents.add(f"{at_fault.name}: {reason}")

    def _moved(
        self, route: _Route, source: int, target: int, handover: Handover, seconds: float
    ) -> None:
        ends = route.number, route.turn, source, target
        self._runtime.record(KvMoved, *ends, handover.tokens, seconds)
        route.transfers += 1
        self._metrics.transfers.inc()
        self._metrics.transfer_bytes.inc(handover.size_bytes)
        self._metrics.transfer_s.observe(seconds)

    async def _answered(
        self,
        route: _Route,
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
                    last = self._first_token(route, decoder, handover, asked)
                    await client.begin(self._receipt(route))
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
        self, route: _Route, decoder: Engine, handover: Handover | None, asked: float
    ) -> float:
        if handover is not None and not route.transfers:
            # The engine fetched the KV meanwhile, and does not tell how long that took.
            seconds = self._runtime.now() - asked
            self._moved(route, route.placement.prefill_at, decoder.index, handover, seconds)
        first = self._runtime.record(FirstToken, route.number, route.turn, decoder.index)
        route.conversation.first_token_s = first.time
        self._metrics.ttft.observe(first.time - route.arrived_s)
        self.door.knock()
        return first.time

    # --- conversations ---

    def _length(
        self, conversation: Conversation, body: Mapping[str, Any], characters: int
    ) -> tuple[int, int]:
        """Return the tokens of a prompt, and of what its conversation's KV does not cover."""
        exact = lengths.exact_tokens(body)
        if exact is not None:
            tokens = exact
        elif conversation.input_tokens:
            more = characters - conversation.characters
            ratio = self._lengths.tokens_per_character
            tokens = max(conversation.input_tokens + round(more * ratio), 1)
        else:
            tokens = self._lengths.tokens(characters)
        if not conversation.kv_tokens:
            return tokens, tokens
        return tokens, min(max(tokens - conversation.kv_tokens, 1), tokens)

    def _after(self, conversation: Conversation, last: bool) -> None:
        """Keep or end a conversation after a turn, whatever became of it."""
        self.conversations.used(conversation, self._runtime.now())
        if last or not conversation.kv_tokens:  # nothing of it is anywhere
            self.end(conversation, "client" if last else "failed")
        else:
            self._note(conversation)

    def _start_over(self, conversation: Conversation) -> None:
        """Let a conversation begin again: its decoder failed, and its KV is lost."""
        self._leave(conversation)
        self.conversations.renumber(conversation)

    def _leave(self, conversation: Conversation) -> None:
        self._runtime.record(ConversationEnded, conversation.number, conversation.turn)
        self._runtime.note({"conversation": conversation.number, "ended": True})
        for engine in self._engines:
            engine.adapter.forget(conversation.number)
        self.door.knock()

    def _note(self, conversation: Conversation) -> None:
        if conversation.placement is not None:
            self._runtime.note(self._record(conversation))

    def _record(self, conversation: Conversation) -> dict[str, Any]:
        assert conversation.placement is not None
        decoder = self._engines[conversation.placement.decode_at]
        return {**conversation.record(), "slot": decoder.adapter.kept(conversation.number)}

    def _show(self, conversation: Conversation, tokens: int, reason: str) -> dict[str, Any]:
        """Put a decision first among the latest; returns what of it may still be put right."""
        placement = conversation.placement
        assert placement is not None
        shown = {
            "time": self._runtime.now(),
            "conversation": conversation.number,
            "prompt_tokens": tokens,
            "prefiller": self._engines[placement.prefill_at].name,
            "decoder": self._engines[placement.decode_at].name,
            "by": self._runtime.scheduler.name if not reason else "rule",
            "reason": reason,
        }
        self.latest.appendleft(shown)
        return shown

    def _receipt(self, route: _Route) -> dict[str, str]:
        placement = route.placement
        receipt = {
            "x-conserve-conversation": str(route.number),
            "x-conserve-turn": str(route.turn),
            "x-conserve-decision": "disaggregate" if placement.disaggregates else "colocate",
            "x-conserve-prefiller": self._engines[placement.prefill_at].name,
            "x-conserve-decoder": self._engines[placement.decode_at].name,
            "x-conserve-kv-transfers": str(route.transfers),
            "x-conserve-policy": self._runtime.scheduler.name,
        }
        if route.reason:
            reason = " ".join(route.reason.split())[:200]
            receipt["x-conserve-reason"] = reason.encode("ascii", "replace").decode()
        return receipt


class _Route:
    """Where a turn goes, and what has happened on its way."""

    def __init__(
        self,
        conversation: Conversation,
        number: int,
        turn: int,
        new_tokens: int,
        arrived_s: float,
        reason: str,
        shown: dict[str, Any],
    ) -> None:
        assert conversation.placement is not None
        self.conversation = conversation
        self.placement = conversation.placement
        self.number = number
        self.turn = turn
        self.new_tokens = new_tokens
        self.arrived_s = arrived_s
        self.reason = reason
        self.shown = shown  # of its conversation's decision, if this is the turn that it was for
        self.transfers = 0
