"""The slots of an engine: who holds which, and who is the next to lose one."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Slots:
    """Leases slots to turns; a conversation keeps its slot until another needs it.

    Args:
        count: Number of slots.
    """

    def __init__(self, count: int) -> None:
        """Start with free slots."""
        self._free = deque(range(count))
        self._kept: OrderedDict[int, int] = OrderedDict()  # idle conversation: slot, oldest first
        self._busy: dict[int, int] = {}
        self._waiting: deque[asyncio.Future[None]] = deque()

    def of(self, conversation: int) -> int | None:
        """Return the slot of a conversation; None if it has none."""
        return self._busy.get(conversation, self._kept.get(conversation))

    @property
    def held(self) -> int:
        """Slots that conversations keep or use."""
        return len(self._kept) + len(self._busy)

    @asynccontextmanager
    async def lease(self, conversation: int) -> AsyncIterator[int]:
        """Give a slot to a turn: its conversation's own, a free one, or the one idle longest."""
        while (slot := self._next(conversation)) is None:
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            try:
                await waiting
            except BaseException:
                if waiting.done() and not waiting.cancelled():
                    self._wake()  # the slot that was meant for this turn is another's
                else:
                    self._waiting.remove(waiting)
                raise
        self._busy[conversation] = slot
        try:
            yield slot
        finally:
            # Forgotten while it was busy, the slot has been given back already.
            if self._busy.pop(conversation, None) is not None:
                self._kept[conversation] = slot
                self._wake()

    def remember(self, conversation: int, slot: int) -> None:
        """Note that an idle conversation keeps a slot, if nobody has it."""
        if slot in self._free:
            self._free.remove(slot)
            self._kept[conversation] = slot

    def forget(self, conversation: int) -> None:
        """Give a conversation's slot back."""
        slot = self._kept.pop(conversation, None)
        if slot is None:
            slot = self._busy.pop(conversation, None)
        if slot is not None:
            self._free.append(slot)
            self._wake()

    def _next(self, conversation: int) -> int | None:
        slot = self._kept.pop(conversation, None)
        if slot is not None:
            return slot
        if self._free:
            return self._free.popleft()
        if self._kept:
            return self._kept.popitem(last=False)[1]
        return None

    def _wake(self) -> None:
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(None)
                return
