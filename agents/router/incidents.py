"""What went wrong lately, for people to look at."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

_LATEST = 50
_LONGEST = 300  # characters: engines may answer an error with a page


class Incidents:
    """Keeps the latest; the same again is counted, so that one cause does not push out the others.

    Args:
        now: Seconds since the ledger's start.

    Attributes:
        latest: Time, text and number of times, the newest first.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        """Start with none."""
        self._now = now
        self.latest: deque[dict[str, Any]] = deque(maxlen=_LATEST)

    def add(self, says: str) -> None:
        """Write down what happened."""
        says = says if len(says) <= _LONGEST else says[:_LONGEST] + "…"
        same = next((one for one in self.latest if one["says"] == says), None)
        if same is not None:
            self.latest.remove(same)
        times = 1 if same is None else same["times"] + 1
        self.latest.appendleft({"time": self._now(), "says": says, "times": times})
