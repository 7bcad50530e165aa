"""A block-granular KV pool: active conversations hold blocks, idle ones keep theirs until evicted.

Tokens live in blocks of a fixed size. A conversation is *active* while a turn of it is on the
engine, and *idle* between turns, after its last one, and while it waits preempted. Idle
conversations are evicted least recently used first, each from its tail, as vLLM takes cached
blocks from its queue of free ones; what is left of a prefix can still be reused. The engine is not
told that a conversation has ended: its KV ages out.
"""

from __future__ import annotations

from collections import OrderedDict


class KvCache:
    """KV pool of one engine.

    Args:
        capacity_tokens: Size of the pool.
        block_tokens: Tokens in a block.

    Attributes:
        used_blocks: Blocks that are taken, by active and idle conversations.
        allocated_blocks: Blocks ever taken.
        freed_blocks: Blocks ever given back; the rest of ``allocated_blocks`` is used.
        evicted_blocks: Of these, taken from idle conversations under pressure.
    """

    def __init__(self, capacity_tokens: int, block_tokens: int) -> None:
        """Start with an empty pool."""
        self.block_tokens = block_tokens
        self.capacity_blocks = capacity_tokens // block_tokens
        self.used_blocks = 0
        self.allocated_blocks = 0
        self.freed_blocks = 0
        self.evicted_blocks = 0
        # Conversation: tokens; least recently used first. A plain dict would walk over the holes
        # that evictions leave at its front.
        self._idle: OrderedDict[int, int] = OrderedDict()
        self._idle_blocks = 0

    def blocks(self, tokens: int) -> int:
        """Return how many blocks hold ``tokens``."""
        return -(-tokens // self.block_tokens)

    @property
    def available_blocks(self) -> int:
        """Blocks that an active conversation can get: free ones and evictable ones."""
        return self.capacity_blocks - self.used_blocks + self._idle_blocks

    def idle_tokens(self, conversation: int) -> int:
        """Return the tokens that an idle conversation still holds."""
        return self._idle.get(conversation, 0)

    def has_room_for(self, tokens: int) -> bool:
        """Return whether a conversation that is not active can get room for ``tokens``."""
        return self.blocks(tokens) <= self.available_blocks

    def activate(self, conversation: int, tokens: int, reusable_tokens: int) -> int:
        """Make a conversation active with room for ``tokens``; there must be that room.

        Args:
            conversation: Identifier.
            tokens: Tokens that it needs room for.
            reusable_tokens: Prefix of its old KV that is still valid.

        Returns:
            Tokens of the prefix that are cached: whole blocks only, and fewer than ``tokens``,
            because the last token is always computed.
        """
        resident = self._idle.pop(conversation, 0)
        resident_blocks = self.blocks(resident)
        cached = max(min(resident, reusable_tokens, tokens - 1), 0) // self.block_tokens
        self._idle_blocks -= resident_blocks
        self.give_back(resident_blocks - cached)
        self.grow(self.blocks(tokens) - cached)
        return cached * self.block_tokens

    def grow(self, blocks: int) -> None:
        """Take blocks for active conversations; there must be as many ``available_blocks``."""
        self.used_blocks += blocks
        self.allocated_blocks += blocks
        if self.used_blocks > self.capacity_blocks:
            self._evict(self.used_blocks - self.capacity_blocks)

    def park(self, conversation: int, tokens: int) -> None:
        """Make an active conversation idle; it holds ``tokens``, in ``blocks(tokens)`` blocks."""
        self._idle[conversation] = tokens
        self._idle_blocks += self.blocks(tokens)

    def hold(self, conversation: int) -> int:
        """Keep what an idle conversation holds from being evicted; returns its tokens."""
        tokens = self._idle.pop(conversation, 0)
        self._idle_blocks -= self.blocks(tokens)
        return tokens

    def trim(self, conversation: int, tokens: int) -> None:
        """Give back what an idle conversation holds beyond its first ``tokens``."""
        held = self._idle.get(conversation, 0)
        if held <= tokens:
            return
        given_back = self.blocks(held) - self.blocks(tokens)
        if tokens:
            self._idle[conversation] = tokens
        else:
            del self._idle[conversation]
        self._idle_blocks -= given_back
        self.give_back(given_back)

    def _evict(self, blocks: int) -> None:
        """Take blocks from the tails of idle conversations, least recently used first."""
        self._idle_blocks -= blocks
        self.evicted_blocks += blocks
        self.give_back(blocks)
        idle = self._idle
        while blocks:
            conversation = next(iter(idle))
            held = self.blocks(idle[conversation])
            if held > blocks:
                idle[conversation] = (held - blocks) * self.block_tokens
                return
            del idle[conversation]
            blocks -= held

    def give_back(self, blocks: int) -> None:
        """Give back blocks of an active conversation."""
        self.used_blocks -= blocks
        self.freed_blocks += blocks
