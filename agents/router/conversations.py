"""The conversations that a router knows, until they end or are given up."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from conserve_gym.agents.runtime.log import placement_of, placement_record
from conserve_gym.placement import Placement


@dataclass(slots=True)
class Conversation:
    """A live conversation.

    Attributes:
        key: What its requests are known by; empty where nothing names it.
        number: What the ledger calls it; another one after its decoder failed.
        placement: Where it runs; None until it is placed.
        turn: Index of its next turn.
        kv_tokens: KV that its decoder is known to hold.
        input_tokens: Length of its last prompt.
        characters: Characters of that prompt.
        prefix: Digest of that prompt's messages.
        arrived_s: When it arrived, in ledger time.
        used_s: When it was last heard of.
        first_token_s: First token of its latest turn.
        lock: Held by a turn, so that turns come one after the other.
        turns_waiting: Turns that hold or want the lock.
    """

    key: str
    number: int
    arrived_s: float
    placement: Placement | None = None
    turn: int = 0
    kv_tokens: int = 0
    input_tokens: int = 0
    characters: int = 0
    prefix: str = ""
    used_s: float = 0.0
    first_token_s: float = math.nan
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    turns_waiting: int = 0

    def record(self) -> dict[str, Any]:
        """Return what the log keeps of it, for ``Conversations.restore``."""
        assert self.placement is not None
        return {
            "conversation": self.number,
            "key": self.key,
            "placement": placement_record(self.placement),
            "turn": self.turn,
            "kv_tokens": self.kv_tokens,
            "input_tokens": self.input_tokens,
            "characters": self.characters,
            "prefix": self.prefix,
            "arrived_s": self.arrived_s,
        }


class Conversations:
    """Finds conversations by key, or by the messages that they share."""

    def __init__(self) -> None:
        """Start without any."""
        self._live: OrderedDict[int, Conversation] = OrderedDict()  # silent longest first
        self._by_key: dict[str, Conversation] = {}
        self._by_prefix: dict[str, Conversation] = {}
        self._next = 0

    def __len__(self) -> int:
        """Return the number of live conversations."""
        return len(self._live)

    def __contains__(self, conversation: object) -> bool:
        """Return whether a conversation lives."""
        number = getattr(conversation, "number", None)
        return number is not None and self._live.get(number) is conversation

    def __iter__(self) -> Iterator[Conversation]:
        """Iterate, silent longest first."""
        return iter(list(self._live.values()))

    def find(self, key: str | None, prefixes: Sequence[str]) -> Conversation | None:
        """Return the conversation that a request belongs to; None if it begins one.

        Args:
            key: What names it.
            prefixes: Where nothing does, digests of what its messages begin with.
        """
        if key is not None:
            return self._by_key.get(key)
        for prefix in reversed(prefixes[:-1]):
            if (found := self._by_prefix.get(prefix)) is not None:
                return found
        return None

    def open(self, key: str | None, now: float) -> Conversation:
        """Begin a conversation."""
        conversation = Conversation(key or "", self.number(), now)
        self._add(conversation)
        return conversation

    def number(self) -> int:
        """Return a number that no conversation has had."""
        self._next += 1
        return self._next - 1

    def renumber(self, conversation: Conversation) -> None:
        """Go on as a conversation that begins: where it was, it cannot be any more."""
        self._live.pop(conversation.number, None)
        conversation.number = self.number()
        conversation.placement = None
        conversation.turn = conversation.kv_tokens = 0
        conversation.input_tokens = conversation.characters = 0
        self._live[conversation.number] = conversation

    def used(self, conversation: Conversation, now: float) -> None:
        """Note that a conversation was heard of."""
        conversation.used_s = now
        if conversation.number in self._live:
            self._live.move_to_end(conversation.number)

    def continues(self, conversation: Conversation, prefixes: Sequence[str]) -> None:
        """Note the messages that the conversation's next turn will begin with."""
        self._forget_prefix(conversation)
        if not conversation.key and prefixes:
            conversation.prefix = prefixes[-1]
            self._by_prefix[conversation.prefix] = conversation

    def remove(self, conversation: Conversation) -> None:
        """Forget a conversation."""
        self._live.pop(conversation.number, None)
        if self._by_key.get(conversation.key) is conversation:
            del self._by_key[conversation.key]
        self._forget_prefix(conversation)

    def idle(self, before_s: float, most: int) -> list[Conversation]:
        """Return those to give up: silent since then, and the longest silent beyond so many."""
        surplus = len(self._live) - most
        found = []
        for position, conversation in enumerate(self._live.values()):
            if conversation.used_s >= before_s and position >= surplus:
                break
            if not conversation.turns_waiting:
                found.append(conversation)
        return found

    def restore(self, records: Sequence[Mapping[str, Any]], now: float) -> list[Conversation]:
        """Know again what the log has kept, the latest record of each conversation.

        Returns:
            The live conversations.
        """
        latest: dict[int, Mapping[str, Any]] = {}
        for record in records:
            number = record["conversation"]
            self._next = max(self._next, number + 1)
            latest.pop(number, None)
            if "ended" not in record:
                latest[number] = record
        for number, record in latest.items():
            values = {name: value for name, value in record.items() if name in _PLAIN}
            placement = placement_of(record["placement"])
            self._add(Conversation(**values, number=number, placement=placement, used_s=now))
        return list(self._live.values())

    def _add(self, conversation: Conversation) -> None:
        self._live[conversation.number] = conversation
        if conversation.key:
            self._by_key[conversation.key] = conversation
        elif conversation.prefix:
            self._by_prefix[conversation.prefix] = conversation

    def _forget_prefix(self, conversation: Conversation) -> None:
        if self._by_prefix.get(conversation.prefix) is conversation:
            del self._by_prefix[conversation.prefix]


_PLAIN = ("key", "turn", "kv_tokens", "input_tokens", "characters", "prefix", "arrived_s")
