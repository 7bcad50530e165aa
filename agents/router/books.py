"""What a router keeps of conversations and their turns, and what of it the ledger is told.

It knows nothing of how a turn is served: that is for whoever opens it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from conserve_gym.agents.router import identity, lengths
from conserve_gym.agents.router.adapters.base import Adapter
from conserve_gym.agents.router.conversations import Conversation, Conversations
from conserve_gym.agents.router.door import Door
from conserve_gym.agents.router.errors import ApiError
from conserve_gym.agents.router.metrics import Metrics
from conserve_gym.agents.router.spec import Limits
from conserve_gym.agents.runtime.runtime import Runtime
from conserve_gym.ledger import (
    ConversationEnded,
    FirstToken,
    TurnAborted,
    TurnArrived,
    TurnFinished,
)
from conserve_gym.placement import Placement

_LATEST = 50


@dataclass(eq=False)
class Turn:
    """A turn under way, and what has happened to it.

    Attributes:
        conversation: Whose it is.
        placement: Where it runs.
        number: What the ledger calls the conversation.
        index: Its index in the conversation.
        input_tokens: Length of its prompt, as estimated.
        new_tokens: What of it the conversation's KV does not cover.
        characters: Characters of the prompt.
        arrived_s: When it arrived, in ledger time.
        reason: Why it does not run as the policy wants; empty where it does.
        transfers: KV caches moved for it.
        begun: Whether its first token was seen.
        finished: Whether its last one was.
    """

    conversation: Conversation
    placement: Placement
    number: int
    index: int
    input_tokens: int
    new_tokens: int
    characters: int
    arrived_s: float
    reason: str = ""
    transfers: int = 0
    begun: bool = False
    finished: bool = False

    @property
    def is_offloaded(self) -> bool:
        """Whether its prompt is to be computed away from its decoder."""
        return self.placement.offloads(self.index == 0, self.new_tokens)


class Books:
    """Keeps conversations, places them, and writes down what happens to their turns.

    Args:
        runtime: Decides and keeps the ledger.
        names: Of the engines.
        metrics: Are told of everything.
        limits: How long to wait for what.
        tokens_per_character: Of prompts, until engines have told.
        adapters: What else keeps something of a conversation, in the fleet's order; none where
            engines are not spoken to.

    Attributes:
        conversations: Those that live.
        door: Where they wait for room.
        latest: The latest decisions, for people to look at.
    """

    def __init__(
        self,
        runtime: Runtime,
        names: Sequence[str],
        metrics: Metrics,
        limits: Limits,
        tokens_per_character: float,
        adapters: Sequence[Adapter] = (),
    ) -> None:
        """Start without conversations."""
        self._runtime = runtime
        self._names = names
        self._metrics = metrics
        self._limits = limits
        self._lengths = lengths.Lengths(tokens_per_character)
        self._adapters = adapters
        self.conversations = Conversations()
        self.door = Door(runtime, metrics, limits.at_door, limits.door_s)
        self.latest: deque[dict[str, Any]] = deque(maxlen=_LATEST)

    # --- conversations ---

    @asynccontextmanager
    async def conversation(
        self, headers: Mapping[str, str], body: Mapping[str, Any]
    ) -> AsyncIterator[Conversation]:
        """Find or begin a request's conversation, and keep its other turns waiting meanwhile.

        Raises:
            ApiError: It would begin one, and too many wait at the door.
        """
        key, prefixes = _names(headers, body)
        while True:
            found = self.conversations.find(key, prefixes)
            if found is None:
                self.door.check()
                found = self.conversations.open(key, self._runtime.now())
            found.turns_waiting += 1
            try:
                async with found.lock:
                    if found not in self.conversations:
                        continue  # it ended while this turn waited
                    self.conversations.used(found, self._runtime.now())
                    try:
                        yield found
                        self.conversations.continues(found, prefixes)
                    finally:
                        self._after(found, identity.is_last(headers) or not (key or prefixes))
                    return
            finally:
                found.turns_waiting -= 1

    def find(self, headers: Mapping[str, str], body: Mapping[str, Any]) -> Conversation | None:
        """Return the conversation that a request belongs to; None if it would begin one."""
        return self.conversations.find(*_names(headers, body))

    def end(self, conversation: Conversation, reason: str) -> None:
        """End a conversation that has no turn under way."""
        if not math.isnan(conversation.first_token_s):
            self._metrics.ttfet.observe(conversation.first_token_s - conversation.arrived_s)
        self._metrics.ended.labels(reason).inc()
        self.conversations.remove(conversation)
        if conversation.placement is not None:
            self._leave(conversation)

    def start_over(self, conversation: Conversation) -> None:
        """Let a conversation begin again: its decoder failed, and its KV is lost."""
        self._leave(conversation)
        self.conversations.renumber(conversation)

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
            if slot is not None and self._adapters:
                self._adapters[one.placement.decode_at].remember(one.number, slot)

    # --- turns ---

    @asynccontextmanager
    async def turn(
        self, conversation: Conversation, body: Mapping[str, Any]
    ) -> AsyncIterator[Turn]:
        """Write a turn down and place it; it is given up unless ``finish`` was told of its end.

        A conversation whose decoder is down begins again.

        Raises:
            ApiError: No engine that decodes is up.
        """
        up = self._runtime.up
        if not any(up[i] for i in self._runtime.fleet.decoders):
            raise ApiError(503, "no engine that decodes is up", "no_engine", retry_after_s=5)
        placement = conversation.placement
        if placement is not None and not up[placement.decode_at]:
            self.start_over(conversation)
        characters = lengths.characters(body)
        input_tokens, new_tokens = self._length(conversation, body, characters)
        number, index = conversation.number, conversation.turn
        arrived = self._runtime.record(TurnArrived, number, index, input_tokens, new_tokens)
        conversation.turn += 1
        finished = False
        try:
            reason = ""
            if conversation.placement is None:
                decision = await self.door.place(number)
                conversation.placement, reason = decision.placement, decision.fallback
                self._note(conversation)
                self._show(conversation, input_tokens, reason)
            turn = Turn(
                conversation,
                conversation.placement,
                number,
                index,
                input_tokens,
                new_tokens,
                characters,
                arrived.time,
                reason,
            )
            try:
                yield turn
            finally:
                finished = turn.finished
        finally:
            if not finished:
                self._runtime.record(TurnAborted, number, index)
                if conversation.placement is None:  # it left the door
                    self._runtime.record(ConversationEnded, number, 1)
                    self.conversations.renumber(conversation)
            self.door.knock()

    def first_token(self, turn: Turn) -> float:
        """Write down that a turn's first token was seen now; returns the time."""
        at = turn.placement.decode_at
        first = self._runtime.record(FirstToken, turn.number, turn.index, at)
        turn.begun = True
        turn.conversation.first_token_s = first.time
        self._metrics.ttft.observe(first.time - turn.arrived_s)
        self.door.knock()
        return first.time

    def finish(self, turn: Turn, usage: Mapping[str, Any]) -> None:
        """Write down that a turn's last token was seen now.

        Args:
            turn: The turn.
            usage: As OpenAI's API has it, or what is known of it.
        """
        said = usage.get("prompt_tokens"), usage.get("completion_tokens")
        read, written = (int(one) if isinstance(one, int) else 0 for one in said)
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        read = read or turn.input_tokens
        at = turn.placement.decode_at
        self._runtime.record(TurnFinished, turn.number, turn.index, at, read, int(cached), written)
        turn.finished = True
        conversation = turn.conversation
        conversation.input_tokens, conversation.characters = read, turn.characters
        conversation.kv_tokens = read + written
        self._lengths.learn(turn.characters, read)

    def receipt(self, turn: Turn) -> dict[str, str]:
        """Return which way a turn went, and why, as headers for its client."""
        placement = turn.placement
        receipt = {
            "x-conserve-conversation": str(turn.number),
            "x-conserve-turn": str(turn.index),
            "x-conserve-decision": "disaggregate" if placement.disaggregates else "colocate",
            "x-conserve-prefiller": self._names[placement.prefill_at],
            "x-conserve-decoder": self._names[placement.decode_at],
            "x-conserve-kv-transfers": str(turn.transfers),
            "x-conserve-policy": self._runtime.scheduler.name,
        }
        if turn.reason:
            reason = " ".join(turn.reason.split())[:200]
            receipt["x-conserve-reason"] = reason.encode("ascii", "replace").decode()
        return receipt

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

    # --- what is kept ---

    def _after(self, conversation: Conversation, last: bool) -> None:
        """Keep or end a conversation after a turn, whatever became of it."""
        self.conversations.used(conversation, self._runtime.now())
        if last or not conversation.kv_tokens:  # nothing of it is anywhere
            self.end(conversation, "client" if last else "failed")
        else:
            self._note(conversation)

    def _leave(self, conversation: Conversation) -> None:
        self._runtime.record(ConversationEnded, conversation.number, conversation.turn)
        self._runtime.note({"conversation": conversation.number, "ended": True})
        for adapter in self._adapters:
            adapter.forget(conversation.number)
        self.door.knock()

    def _note(self, conversation: Conversation) -> None:
        if conversation.placement is not None:
            self._runtime.note(self._record(conversation))

    def _record(self, conversation: Conversation) -> dict[str, Any]:
        assert conversation.placement is not None
        slot = None
        if self._adapters:
            adapter = self._adapters[conversation.placement.decode_at]
            slot = adapter.kept(conversation.number)
        return {**conversation.record(), "slot": slot}

    def _show(self, conversation: Conversation, tokens: int, reason: str) -> None:
        placement = conversation.placement
        assert placement is not None
        self.latest.appendleft(
            {
                "time": self._runtime.now(),
                "conversation": conversation.number,
                "prompt_tokens": tokens,
                "prefiller": self._names[placement.prefill_at],
                "decoder": self._names[placement.decode_at],
                "reason": reason,
            }
        )


def _names(headers: Mapping[str, str], body: Mapping[str, Any]) -> tuple[str | None, list[str]]:
    """Return the key of a request's conversation, or else what its messages begin with."""
    key = identity.key(headers, body)
    return key, identity.prefixes(body) if key is None else []
