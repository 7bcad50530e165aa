"""The engines that a router speaks to, and whether each is up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from conserve_gym.agents.router.adapters.base import Adapter
from conserve_gym.agents.router.errors import EngineError, RefusedError
from conserve_gym.agents.router.incidents import Incidents
from conserve_gym.agents.router.spec import Health
from conserve_gym.agents.runtime.runtime import Runtime

_log = logging.getLogger(__name__)


class Guard:
    """Ends a wait for an engine when it has been silent for too long, or goes down."""

    def __init__(self, timeout: asyncio.Timeout) -> None:
        """Watch over a timeout."""
        self._timeout = timeout

    def expect(self, seconds: float) -> None:
        """Allow so many seconds of silence from now on."""
        self._timeout.reschedule(asyncio.get_running_loop().time() + seconds)


class Engine:
    """An engine, its adapter, and whoever waits for it.

    Args:
        index: Position in the fleet.
        name: Name.
        adapter: How it is spoken to.

    Attributes:
        up: Whether it answers.
        says: Why it is down.
    """

    def __init__(self, index: int, name: str, adapter: Adapter) -> None:
        """Start as an engine that has not answered yet."""
        self.index = index
        self.name = name
        self.adapter = adapter
        self.up = True
        self.says = ""
        self.failures = 0
        self.not_before = 0.0
        self._guarded: set[asyncio.Timeout] = set()

    @asynccontextmanager
    async def guard(self) -> AsyncIterator[Guard]:
        """Wait for the engine, but not longer than the guard is told, nor when it goes down.

        Raises:
            EngineError: It was silent for too long or went down.
        """
        try:
            async with asyncio.timeout(None) as timeout:
                self._guarded.add(timeout)
                try:
                    yield Guard(timeout)
                finally:
                    self._guarded.discard(timeout)
        except TimeoutError:
            if not self.up:
                raise EngineError(f"{self.name} is down: {self.says}") from None
            raise EngineError(f"{self.name} is silent", silent=True) from None

    def release(self) -> None:
        """End all waits: the engine is down."""
        for timeout in self._guarded:
            timeout.reschedule(asyncio.get_running_loop().time())


class Watch:
    """Asks the engines how they are, again and again.

    Args:
        engines: Whom.
        runtime: Is told who is up.
        incidents: Are told of engines that go and come.
        health: How often, and when an engine is down.
    """

    def __init__(
        self, engines: list[Engine], runtime: Runtime, incidents: Incidents, health: Health
    ) -> None:
        """Start knowing nothing."""
        self._engines = engines
        self._runtime = runtime
        self._incidents = incidents
        self._health = health

    async def first(self) -> None:
        """Ask every engine once; who does not answer begins as down."""

        async def ask(engine: Engine) -> None:
            if (problem := await self._problem(engine)) is not None:
                self._down(engine, problem)

        await asyncio.gather(*map(ask, self._engines))

    async def run(self, engine: Engine) -> None:
        """Watch an engine until cancelled."""
        while True:
            await asyncio.sleep(self._health.period_s)
            problem = await self._problem(engine)
            if problem is None:
                engine.failures = 0
                if not engine.up and asyncio.get_running_loop().time() >= engine.not_before:
                    engine.up = True
                    self._runtime.set_up(engine.index, True)
                    self._say(f"engine {engine.name} is back")
            else:
                engine.failures += 1
                if engine.failures >= self._health.failures:
                    self._down(engine, problem)

    async def suspect(self, engine: Engine, error: EngineError) -> None:
        """Look at an engine that failed a request.

        One that does not answer now is down at once. One that let the request wait in vain is
        down for a while though it says that it is well.
        """
        if not engine.up:
            return
        if error.silent:
            pause_s = self._health.pause_s
            engine.not_before = asyncio.get_running_loop().time() + pause_s
            self._down(engine, str(error))
        elif error.broken and (problem := await self._problem(engine)) is not None:
            self._down(engine, problem)

    async def _problem(self, engine: Engine) -> str | None:
        try:
            async with asyncio.timeout(self._health.timeout_s):
                await engine.adapter.check()
        except TimeoutError:
            return "it does not answer"
        except (EngineError, RefusedError) as error:
            return str(error)
        return None

    def _down(self, engine: Engine, problem: str) -> None:
        if not engine.up:
            return
        engine.up = False
        engine.says = problem
        engine.adapter.restarted()
        self._runtime.set_up(engine.index, False)
        engine.release()
        self._say(f"engine {engine.name} is down: {problem}")

    def _say(self, says: str) -> None:
        _log.warning("%s", says)
        self._incidents.add(says)
