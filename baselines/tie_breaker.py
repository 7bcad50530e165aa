"""Of engines with equal scores, each in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class TieBreaker:
    """Finds the engine with the least score, as routers do that would else pile idle KV on one."""

    def __init__(self) -> None:
        """Begin with the first of those that are equal."""
        self._ties = 0

    def least(self, engines: Sequence[int], score: Callable[[int], float]) -> int:
        """Return the engine with the least score."""
        scores = [score(engine) for engine in engines]
        best = min(scores)
        tied = [engine for engine, its in zip(engines, scores, strict=True) if its == best]
        if len(tied) == 1:
            return tied[0]
        self._ties += 1
        return tied[(self._ties - 1) % len(tied)]
