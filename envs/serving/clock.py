"""The event queue of a cluster: SimPy's, and able to be copied in the middle of an episode."""

from __future__ import annotations

import copy
from itertools import count
from typing import Any

import simpy


class Clock(simpy.Environment):
    """SimPy numbers events by an ``itertools.count``, which Python 3.14 no longer copies."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Clock:
        """Return a clock with copies of the events that are still to come, in the same order."""
        upcoming = next(self._eid)
        self._eid = count(upcoming)  # as it was
        copied = Clock(self._now)
        memo[id(self)] = copied
        copied._queue = copy.deepcopy(self._queue, memo)
        copied._eid = count(upcoming)
        return copied
