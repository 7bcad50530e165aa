"""Mooncake: JSON lines of requests with chained block hashes, and no word on conversations.

Each has ``timestamp`` in ms, never falling; ``input_length`` of the full prompt;
``output_length``; and ``hash_ids``, one for every 512 tokens of the prompt, the last block counted
though it may not be full. A hash stands for its block and all before it.

Conversations are rebuilt. A request continues an earlier one if its hashes begin with all the full
blocks of that one's prompt, and its prompt has room for that prompt and its output, to within 16
tokens: a chat template may write an answer a little shorter than it was generated. Of several, the
one with the longest prompt counts, then the latest. Each request is continued once: what else
extends it, such as an answer that is asked for again, is a conversation of its own with the same
root.

Blocks that strangers share, such as system prompts, link nobody. So more than the first
``shared_blocks`` must match (every prompt of Mooncake's chat begins with the same one), and no more
than one other conversation may have had the same blocks. A link is strong if the output fits in
full, no other conversation had the blocks, and two or more of them were not of the first.

Gaps are estimates: the time between arrivals, less an assumed service.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import NonNegativeInt, PositiveInt

from conserve_gym.envs.fields import NotNegative
from conserve_gym.envs.workloads.conversation import GapKind, Recording, Turn
from conserve_gym.envs.workloads.readers.detection import objects
from conserve_gym.envs.workloads.readers.estimates import SERVICE_S, TOKEN_S, think_time_s
from conserve_gym.envs.workloads.readers.source import RowError, Source

FORMAT = "mooncake"

_FIELDS = ("timestamp", "input_length", "output_length", "hash_ids")

# Of 2,903 links in Mooncake's conversation trace (github.com/kvcache-ai/Mooncake at 3b5a594), 147
# prompts are shorter than the one before and its output, none by more than 16 tokens.
_SLACK_TOKENS = 16

# Two may be an answer asked for twice. Blocks of three are taken for a shared prompt or document.
_STRANGERS = 3


def looks_like(head: list[str]) -> bool:
    """Return whether these can be the first lines of such a file."""
    rows = objects(head)
    return bool(rows) and all(
        all(name in row for name in _FIELDS) and not row.keys() & {"session_id", "chat_id"}
        for row in rows
    )


@dataclass
class Links:
    """How sure the links between requests are; a reader fills it.

    Attributes:
        strong: Links with nothing against them.
        weak: The others.
        short: Weak ones whose prompt lacks a few tokens of the output before it.
        ambiguous: Weak ones whose blocks another conversation has had.
        thin: Weak ones that rest on one block.
        blocks: How many links rest on how many full blocks.
        refused: Requests that would have been linked, but by blocks that strangers share.
    """

    strong: int = 0
    weak: int = 0
    short: int = 0
    ambiguous: int = 0
    thin: int = 0
    blocks: Counter[int] = field(default_factory=Counter)
    refused: int = 0

    def __str__(self) -> str:
        """Return one line for people."""
        links = self.strong + self.weak
        share = self.strong / links if links else 1.0
        return (
            f"{links:,} links between requests, {share:.1%} strong (of the others {self.short:,} "
            f"short of the output before, {self.ambiguous:,} ambiguous, {self.thin:,} by one "
            f"block); {self.refused:,} refused"
        )


class _Open:
    """A conversation that may be continued."""

    def __init__(self, name: str, arrival_s: float, parent: _Open | None) -> None:
        self.name = name
        self.root: str = parent.root if parent else name
        self.parent = parent.name if parent else None
        self.arrival_s = arrival_s
        self.turns: list[Turn] = []
        self.last_s = arrival_s


class _Prefix:
    """A row of full blocks that prompts began with.

    Attributes:
        first: The first conversation that had it.
        conversations: How many had it.
    """

    __slots__ = ("conversations", "first")

    def __init__(self, first: _Open) -> None:
        self.first = first
        self.conversations = 0


class _Request:
    """A row of the file."""

    def __init__(self, source: Source, line: int, row: dict[str, Any], block_tokens: int) -> None:
        self.line = line
        self.arrival_s = source.number(line, "timestamp", row.get("timestamp")) / 1000
        self.tokens = source.integer(line, "input_length", row.get("input_length"), 1)
        self.output = source.output(line, row.get("output_length"), "output_length")
        ids = row.get("hash_ids")
        # bool is an int to isinstance.
        if not isinstance(ids, list) or any(type(one) is not int or one < 0 for one in ids):
            raise source.error(line, "hash_ids", str(ids)[:40], "not a list of whole numbers")
        blocks = -(-self.tokens // block_tokens)
        if len(ids) != blocks:
            why = f"a prompt of {self.tokens} tokens has {blocks} blocks of {block_tokens}"
            raise source.error(line, "hash_ids", f"{len(ids)} of them", why)
        self.prefixes: list[int] = []  # a digest of each row of full blocks
        digest = 0
        for one in ids[: self.tokens // block_tokens]:
            digest = hash((digest, one))
            self.prefixes.append(digest)


def read(
    source: Source,
    block_tokens: PositiveInt = 512,
    shared_blocks: NonNegativeInt = 1,
    service_s: NotNegative | None = SERVICE_S,
    token_s: NotNegative = TOKEN_S,
    gap_kind: GapKind = "user",
    links: Links | None = None,
) -> Iterator[Recording]:
    """Yield the conversations in the order of their first requests.

    Any may be continued until the file ends, so all are held, and of their blocks one number each.
    A bad row is left out alone, as it names no conversation.

    Args:
        source: The file.
        block_tokens: Tokens that a hash stands for.
        shared_blocks: Blocks at the beginning of a prompt that link nobody.
        service_s: What a service takes without its output, as far as gaps go; None leaves them
            unknown.
        token_s: What each token of the output adds to it.
        gap_kind: What passes between the requests: a human thinks in a chat.
        links: Filled with how sure the links are.

    Raises:
        WorkloadError: A row cannot be right, or the file cannot be read.
    """
    links = Links() if links is None else links
    rebuilt = _Rebuilt(shared_blocks, links)
    now_s = 0.0
    for line, row in source.objects():
        try:
            if isinstance(row, RowError):
                raise row
            request = _Request(source, line, row, block_tokens)
            if request.arrival_s < now_s:
                why = f"before that of an earlier row, {now_s * 1000:g}"
                raise source.error(line, "timestamp", row["timestamp"], why)
            one, blocks = rebuilt.continued(request)
            before = one.turns[-1] if one else None
            held = before.input_tokens + before.output_tokens if before else 0
            gap_s = 0.0 if before is None else math.nan
            if one and before and service_s is not None:
                elapsed_s = request.arrival_s - one.last_s
                gap_s = think_time_s(elapsed_s, before.output_tokens, service_s, token_s)
            new = max(request.tokens - held, 1)
            kind: GapKind = gap_kind if before else "unknown"
            sent_s = request.arrival_s - (one.arrival_s if one else request.arrival_s)
            lengths = request.tokens, new, request.output
            turn = source.turn(line, before, *lengths, gap_s, kind, sent_s)
        except RowError as error:
            source.skip(error)
            continue
        now_s = request.arrival_s
        if one:
            rebuilt.continue_(one, request, blocks)
        else:
            one = rebuilt.begin(request)
        one.turns.append(turn)
        one.last_s = now_s
    source.notes.append(str(links))
    for one in rebuilt.conversations:
        yield Recording(one.name, one.root, one.arrival_s, tuple(one.turns), one.parent)


class _Rebuilt:
    """The conversations so far, and the blocks that tell which of them a request continues."""

    def __init__(self, shared_blocks: int, links: Links) -> None:
        self.conversations: list[_Open] = []
        self._shared_blocks = shared_blocks
        self._links = links
        self._prefixes: dict[int, _Prefix] = {}
        # By the full blocks of their last prompts, those that may be continued.
        self._ends: defaultdict[int, list[_Open]] = defaultdict(list)

    def continued(self, request: _Request) -> tuple[_Open | None, int]:
        """Return the conversation that a request continues, and by how many full blocks."""
        refused = False
        for blocks in range(len(request.prefixes), self._shared_blocks, -1):
            digest = request.prefixes[blocks - 1]
            for one in reversed(self._ends.get(digest, [])):
                before = one.turns[-1]
                room = request.tokens - before.input_tokens - before.output_tokens
                if room < -_SLACK_TOKENS:
                    continue
                if self._prefixes[digest].conversations < _STRANGERS:
                    return one, blocks
                refused = True
        self._links.refused += refused
        return None, 0

    def continue_(self, one: _Open, request: _Request, blocks: int) -> None:
        """Note that a request continues a conversation by that many full blocks."""
        before = one.turns[-1]
        short = request.tokens <= before.input_tokens + before.output_tokens
        digest = request.prefixes[blocks - 1]
        ambiguous = self._prefixes[digest].conversations > 1
        thin = blocks - self._shared_blocks < 2
        weak = short or ambiguous or thin
        links = self._links
        links.strong += not weak
        links.weak += weak
        links.short += short
        links.ambiguous += ambiguous
        links.thin += thin
        links.blocks[blocks] += 1
        self._ends[digest].remove(one)
        if not self._ends[digest]:
            del self._ends[digest]
        self._remember(one, request, blocks)

    def begin(self, request: _Request) -> _Open:
        """Return a new conversation, whose parent is the one that it branches off, if any."""
        parent = None
        for digest in reversed(request.prefixes[self._shared_blocks :]):
            prefix = self._prefixes.get(digest)
            if prefix and prefix.conversations < _STRANGERS:
                parent = prefix.first
                break
        one = _Open(f"line {request.line}", request.arrival_s, parent)
        self.conversations.append(one)
        self._remember(one, request, 0)
        return one

    def _remember(self, one: _Open, request: _Request, blocks: int) -> None:
        """Note a prompt's blocks, of which the conversation has had the first ones before."""
        for digest in request.prefixes[max(blocks, self._shared_blocks) :]:
            prefix = self._prefixes.get(digest)
            if prefix is None:
                prefix = self._prefixes[digest] = _Prefix(one)
            prefix.conversations += 1
        if len(request.prefixes) > self._shared_blocks:
            self._ends[request.prefixes[-1]].append(one)
