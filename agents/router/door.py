"""Where conversations wait for room, as the policy's deployment says.

First come, first served; the newest first where the policy may hold them. Who is held is asked
about again whenever something has happened.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

from conserve_gym.agents.router.errors import ApiError
from conserve_gym.agents.router.metrics import Metrics
from conserve_gym.agents.runtime.runtime import Runtime
from conserve_gym.agents.runtime.scheduler import Decision


class Door:
    """Lets conversations in where an engine has room for what they are known to hold.

    Args:
        runtime: Knows room, and decides.
        metrics: Are told of decisions.
        most: Conversations that may wait.
        wait_s: How long each waits before it is placed where there is no room, or whatever the
            policy holds it for: engines evict idle conversations, which the ledger does not see.
    """

    def __init__(self, runtime: Runtime, metrics: Metrics, most: int, wait_s: float) -> None:
        """Open with nobody waiting."""
        self._runtime = runtime
        self._metrics = metrics
        self._most = most
        self._wait_s = wait_s
        self._queue: deque[asyncio.Event] = deque()

    def __len__(self) -> int:
        """Return how many wait."""
        return len(self._queue)

    def check(self) -> None:
        """Check that one more may wait.

        Raises:
            ApiError: Too many wait.
        """
        if len(self._queue) >= self._most:
            raise ApiError(
                429, f"{self._most} conversations wait for room", "overloaded", retry_after_s=5
            )

    async def place(self, conversation: int) -> Decision:
        """Wait for room, and decide."""
        called = asyncio.Event()
        if self._runtime.deployment.may_hold:
            self._queue.appendleft(called)
        else:
            self._queue.append(called)
        try:
            async with asyncio.timeout(self._wait_s):
                while True:
                    if self._queue[0] is called:
                        decision = self._decide(conversation, wait=True)
                        if decision is not None:
                            return decision
                    await called.wait()
                    called.clear()
        except TimeoutError:
            decision = self._decide(conversation, wait=False)
            assert decision is not None
            return decision
        finally:
            self._queue.remove(called)
            self.knock()

    def knock(self) -> None:
        """Say that there may be room now, or that a policy may think otherwise."""
        if self._queue:
            self._queue[0].set()

    def _decide(self, conversation: int, *, wait: bool) -> Decision | None:
        began = time.perf_counter()
        decision = self._runtime.decide(conversation, wait=wait)
        if decision is not None:
            self._metrics.decision_s.observe(time.perf_counter() - began)
            kind = "disaggregate" if decision.placement.disaggregates else "colocate"
            self._metrics.decisions.labels(kind, decision.by).inc()
        return decision
