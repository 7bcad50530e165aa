"""Bailian: JSON lines of requests that name the one they follow.

Each has ``chat_id``; ``parent_chat_id``, -1 for the first of a conversation; ``timestamp`` in s;
``input_length`` of the full prompt; ``output_length``; ``turn`` from 1; and ``hash_ids``, one for
every 16 tokens of the prompt (github.com/alibaba-edu/qwen-bailian-usagetraces-anon). A request
that follows one which another has followed before is a conversation of its own with the same root.

What a prompt reuses: where the hashes of two prompts are complete and differ before the earlier
one ends, the blocks before; otherwise it follows from the lengths.

Gaps are estimates: the time between arrivals, less an assumed service.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import takewhile
from operator import eq
from typing import Any

from conserve_gym.envs.fields import NotNegative
from conserve_gym.envs.workloads.conversation import GapKind, Recording, Turn
from conserve_gym.envs.workloads.readers.detection import objects
from conserve_gym.envs.workloads.readers.estimates import (
    SERVICE_S,
    TOKEN_S,
    appended_tokens,
    think_time_s,
)
from conserve_gym.envs.workloads.readers.sessions import named
from conserve_gym.envs.workloads.readers.source import RowError, Source

FORMAT = "bailian"

_BLOCK_TOKENS = 16
_NO_PARENT = "-1"


def looks_like(head: list[str]) -> bool:
    """Return whether these can be the first lines of such a file."""
    return any({"chat_id", "parent_chat_id"} <= row.keys() for row in objects(head)[:1])


class _Open:
    """A conversation, and its last request."""

    def __init__(self, name: str, arrival_s: float, parent: _Open | None = None) -> None:
        self.name = name
        self.root: str = parent.root if parent else name
        self.parent = parent.name if parent else None
        self.arrival_s = arrival_s
        self.turns: list[Turn] = []
        self.last = name
        self.last_s = arrival_s
        self.last_ids: list[int] = []
        self.left_out = False


def read(
    source: Source,
    service_s: NotNegative | None = SERVICE_S,
    token_s: NotNegative = TOKEN_S,
    gap_kind: GapKind = "user",
) -> Iterator[Recording]:
    """Yield the conversations in the order of their first requests.

    Any may be continued until the file ends, so all are held. A row that does not name
    itself and the one it follows stops the reading even where others are left out: nobody knows
    which conversation it would shorten.

    Args:
        source: The file.
        service_s: What a service takes without its output, as far as gaps go; None leaves them
            unknown.
        token_s: What each token of the output adds to it.
        gap_kind: What passes between the requests: a human thinks in a chat.

    Raises:
        WorkloadError: A row cannot be right, or the file cannot be read.
    """
    conversations: list[_Open] = []
    places: dict[str, tuple[_Open, int]] = {}  # by request: its conversation, and its turn
    lost: set[str] = set()  # requests that are in none
    for line, row in source.objects():
        if isinstance(row, RowError):
            raise row
        chat = named(source, line, "chat_id", row.get("chat_id"))
        parent = named(source, line, "parent_chat_id", row.get("parent_chat_id"))
        try:
            if chat in places or chat in lost:
                raise source.error(line, "chat_id", chat, "came before")
            if parent in lost or (parent in places and places[parent][0].left_out):
                lost.add(chat)
                continue
            one, number = _place(source, line, row, chat, parent, places)
            turn = _turn(source, line, row, one, service_s, token_s, gap_kind)
        except RowError as error:
            bad = _shortened(chat, parent, places)
            for one in bad:
                one.left_out = True
            for _ in range(max(len(bad), 1)):
                source.skip(error)
            lost.add(chat)
            continue
        if not one.turns:
            conversations.append(one)
        one.turns.append(turn)
        one.last = chat
        places[chat] = one, number
    for one in conversations:
        if not one.left_out:
            yield Recording(one.name, one.root, one.arrival_s, tuple(one.turns), one.parent)


def _shortened(chat: str, parent: str, places: dict[str, tuple[_Open, int]]) -> list[_Open]:
    """Return the conversations that may lack a turn without a bad row.

    They are those of its name and the one that it continues; one that it branches off is whole.
    """
    found = [places[chat][0]] if chat in places else []
    if parent in places and places[parent][0].last == parent:
        found.append(places[parent][0])
    return [one for one in dict.fromkeys(found) if not one.left_out]


def _place(
    source: Source,
    line: int,
    row: dict[str, Any],
    chat: str,
    parent: str,
    places: dict[str, tuple[_Open, int]],
) -> tuple[_Open, int]:
    """Return the conversation that a request belongs to, and its turn in the file's count."""
    arrival_s = source.number(line, "timestamp", row.get("timestamp"))
    number = source.integer(line, "turn", row.get("turn"), 1)
    if parent == _NO_PARENT:
        before, expected = None, 1
    elif parent in places:
        before, expected = places[parent][0], places[parent][1] + 1
    else:
        raise source.error(line, "parent_chat_id", parent, "did not come before")
    if number != expected:
        raise source.error(line, "turn", number, f"expected {expected}")
    if before is None:
        return _Open(chat, arrival_s), number
    if before.last != parent:
        return _Open(chat, arrival_s, before), number
    if arrival_s < before.last_s:
        why = f"before that of the request it follows, {before.last_s:g}"
        raise source.error(line, "timestamp", row["timestamp"], why)
    return before, number


def _turn(
    source: Source,
    line: int,
    row: dict[str, Any],
    one: _Open,
    service_s: float | None,
    token_s: float,
    gap_kind: GapKind,
) -> Turn:
    arrival_s = source.number(line, "timestamp", row.get("timestamp"))
    tokens = source.integer(line, "input_length", row.get("input_length"), 1)
    output = source.output(line, row.get("output_length"), "output_length")
    ids = row.get("hash_ids")
    if not isinstance(ids, list) or any(type(number) is not int for number in ids):
        raise source.error(line, "hash_ids", str(ids)[:40], "not a list of whole numbers")
    before = one.turns[-1] if one.turns else None
    gap_s, new = 0.0, appended_tokens(before, tokens)
    kind: GapKind = gap_kind if before else "unknown"
    if before:
        gap_s = math.nan
        if service_s is not None:
            elapsed_s = arrival_s - one.last_s
            gap_s = think_time_s(elapsed_s, before.output_tokens, service_s, token_s)
        if _complete(one.last_ids, before.input_tokens) and _complete(ids, tokens):
            kept = sum(takewhile(bool, map(eq, one.last_ids, ids)))
            if kept < before.input_tokens // _BLOCK_TOKENS:
                new = max(tokens - kept * _BLOCK_TOKENS, 1)
    sent_s = arrival_s - one.arrival_s if before else 0.0
    turn = source.turn(line, before, tokens, new, output, gap_s, kind, sent_s)
    one.last_ids, one.last_s = ids, arrival_s
    return turn


def _complete(ids: list[int], tokens: int) -> bool:
    return len(ids) in (tokens // _BLOCK_TOKENS, -(-tokens // _BLOCK_TOKENS))
