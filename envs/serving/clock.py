"""The event queue of a cluster: SimPy's, with calls that cost less than its timeouts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from heapq import heappush
from itertools import count
from typing import Any

import simpy
from simpy.events import NORMAL


class Call:
    """A call that is still to come; whatever SimPy's loop asks of an event.

    Attributes:
        value: For whoever is called.
    """

    __slots__ = ("callbacks", "value")
    _ok = True  # never fails

    def __init__(self, callback: Callable[[Any], None], value: Any) -> None:
        """Remember whom to call."""
        self.callbacks: list[Callable[[Any], None]] | None = [callback]
        self.value = value


class Clock(simpy.Environment):
    """An event queue that can be copied in the middle of an episode."""

    def after(self, seconds: float, callback: Callable[[Any], None], value: Any = None) -> Call:
        """Call back ``seconds`` from now with the call that is returned; as a timeout would."""
        call = Call(callback, value)
        queue: list[Any] = self._queue
        heappush(queue, (self._now + seconds, NORMAL, next(self._eid), call))
        return call

    def __deepcopy__(self, memo: dict[int, Any]) -> Clock:
        """Return a clock with copies of the events that are still to come, in the same order.

        SimPy numbers events by an ``itertools.count``, which Python 3.14 no longer copies.
        """
        upcoming = next(self._eid)
        self._eid = count(upcoming)  # as it was
        copied = Clock(self._now)
        memo[id(self)] = copied
        copied._queue = copy.deepcopy(self._queue, memo)
        copied._eid = count(upcoming)
        return copied
