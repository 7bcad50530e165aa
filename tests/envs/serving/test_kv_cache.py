"""The KV pool: whole blocks, reuse of prefixes, eviction from the tail of the least recent."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from reference_engine import Pool

from conserve_gym.envs.serving.kv_cache import KvCache


def counts(kv: KvCache | Pool) -> tuple[int, int, int, int]:
    return kv.used_blocks, kv.allocated_blocks, kv.freed_blocks, kv.evicted_blocks


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2), (160, 10)])
def test_tokens_take_whole_blocks(tokens: int, blocks: int) -> None:
    kv = KvCache(160, 16)
    assert kv.blocks(tokens) == blocks
    assert kv.activate(1, tokens, 0) == 0
    assert kv.used_blocks == blocks
    kv.give_back(blocks)
    assert counts(kv) == (0, blocks, blocks, 0)


def test_there_is_room_for_as_many_blocks_as_are_free_or_idle() -> None:
    kv = KvCache(160, 16)
    kv.activate(1, 100, 0)  # 7 blocks
    assert kv.has_room_for(48)
    assert not kv.has_room_for(49)
    kv.park(1, 100)
    assert kv.has_room_for(160)
    assert not kv.has_room_for(161)


@pytest.mark.parametrize(
    ("parked", "tokens", "reusable", "cached"),
    [
        (100, 120, 100, 96),  # 6 whole blocks of the 100 tokens
        (100, 120, 80, 80),  # the rest was rewritten
        (100, 120, 79, 64),
        (100, 120, 0, 0),
        (96, 96, 96, 80),  # the last token is always computed
        (100, 40, 100, 32),  # a shorter prompt
        (0, 40, 40, 0),
    ],
)
def test_a_conversation_reuses_whole_blocks_of_what_is_still_valid(
    parked: int, tokens: int, reusable: int, cached: int
) -> None:
    kv = KvCache(160, 16)
    kv.activate(1, parked, 0)
    kv.park(1, parked)
    assert kv.idle_tokens(1) == parked
    assert kv.activate(1, tokens, reusable) == cached
    assert kv.idle_tokens(1) == 0
    assert kv.used_blocks == kv.blocks(tokens)
    assert kv.freed_blocks == kv.blocks(parked) - cached // 16
    kv.give_back(kv.blocks(tokens))
    assert kv.used_blocks == 0


def test_the_least_recently_used_lose_their_tails_first() -> None:
    kv = KvCache(160, 16)
    for conversation in (1, 2, 3):
        kv.activate(conversation, 45, 0)
        kv.park(conversation, 45)  # 3 blocks each, 1 is free
    kv.activate(1, 45, 45)
    kv.park(1, 45)  # now the most recent
    kv.activate(4, 40, 0)  # 3 blocks: the free one and 2 of conversation 2
    assert [kv.idle_tokens(conversation) for conversation in (1, 2, 3)] == [45, 16, 45]
    kv.grow(2)  # the last of conversation 2 and one of conversation 3, with its part of a block
    assert [kv.idle_tokens(conversation) for conversation in (1, 2, 3)] == [45, 0, 32]
    assert kv.evicted_blocks == 4
    assert kv.used_blocks == 10
    # 33 tokens are asked for, but only 32 are left; the third block comes from conversation 1.
    assert kv.activate(3, 45, 40) == 32
    assert [kv.idle_tokens(conversation) for conversation in (1, 3)] == [32, 0]
    assert kv.available_blocks == 2


def test_a_conversation_never_evicts_what_it_reuses() -> None:
    kv = KvCache(64, 16)
    kv.activate(1, 60, 0)
    kv.park(1, 60)
    assert kv.activate(1, 64, 60) == 48
    assert kv.evicted_blocks == 0


def test_trimming_gives_back_what_is_idle_beyond_a_length() -> None:
    kv = KvCache(160, 16)
    kv.activate(1, 100, 0)
    kv.park(1, 100)
    kv.trim(1, 100)
    kv.trim(2, 0)
    assert counts(kv) == (7, 7, 0, 0)
    kv.trim(1, 40)
    assert kv.idle_tokens(1) == 40
    assert counts(kv) == (3, 7, 4, 0)
    kv.trim(1, 0)
    assert counts(kv) == (0, 7, 7, 0)
    assert kv.available_blocks == 10


def test_what_is_held_is_not_evicted() -> None:
    kv = KvCache(160, 16)
    kv.activate(1, 100, 0)
    kv.park(1, 100)
    assert kv.hold(1) == 100
    assert kv.hold(2) == 0
    assert not kv.has_room_for(49)
    kv.park(1, 100)
    assert kv.has_room_for(160)


class PoolsAgree(RuleBasedStateMachine):
    """Counts of the pool equal those of numbered blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.kv, self.pool = KvCache(24 * 4, 4), Pool(24 * 4, 4)
        self.active: dict[int, int] = {}  # conversation: tokens
        self.tables: dict[int, list[int]] = {}

    conversations = st.integers(0, 4)

    @rule(conversation=conversations, tokens=st.integers(1, 60), reusable=st.integers(0, 60))
    def activate(self, conversation: int, tokens: int, reusable: int) -> None:
        assert self.kv.has_room_for(tokens) == (self.pool.blocks(tokens) <= self.pool.obtainable())
        if conversation not in self.active and self.kv.has_room_for(tokens):
            table, cached = self.pool.wake(conversation, tokens, reusable)
            assert self.kv.activate(conversation, tokens, reusable) == cached
            self.active[conversation], self.tables[conversation] = tokens, table

    @rule(conversation=conversations)
    def grow(self, conversation: int) -> None:
        if conversation in self.active and self.kv.available_blocks:
            table = self.tables[conversation]
            table.append(self.pool.take())
            self.active[conversation] = len(table) * 4
            self.kv.grow(1)

    @precondition(lambda self: self.active)
    @rule(data=st.data(), keep=st.booleans())
    def finish(self, data: st.DataObject, keep: bool) -> None:
        conversation = data.draw(st.sampled_from(sorted(self.active)))
        tokens, table = self.active.pop(conversation), self.tables.pop(conversation)
        if keep:
            self.kv.park(conversation, tokens)
            self.pool.park(conversation, table, tokens)
        else:
            self.kv.give_back(self.kv.blocks(tokens))
            self.pool.give_back(table)

    @rule(conversation=conversations, tokens=st.integers(0, 60))
    def trim(self, conversation: int, tokens: int) -> None:
        self.kv.trim(conversation, tokens)
        self.pool.trim(conversation, tokens)

    @rule(conversation=conversations)
    def hold(self, conversation: int) -> None:
        tokens = self.kv.hold(conversation)
        table, held = self.pool.idle.pop(conversation, ([], 0))
        assert tokens == held
        if tokens:
            self.active[conversation], self.tables[conversation] = tokens, table

    @invariant()
    def agree(self) -> None:
        assert counts(self.kv) == counts(self.pool)
        assert self.kv.available_blocks == self.pool.obtainable()
        for conversation in range(5):
            _, tokens = self.pool.idle.get(conversation, ([], 0))
            assert self.kv.idle_tokens(conversation) == tokens


TestPoolsAgree = PoolsAgree.TestCase
TestPoolsAgree.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
