"""A router: its parts put together, started and stopped."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType

import aiohttp

from conserve_gym.agents.router.adapters.base import Adapter
from conserve_gym.agents.router.adapters.llamacpp import LlamaCppAdapter
from conserve_gym.agents.router.adapters.openai import OpenAiAdapter
from conserve_gym.agents.router.adapters.vllm_nixl import VllmNixlAdapter
from conserve_gym.agents.router.books import Books
from conserve_gym.agents.router.engines import Engine, Watch
from conserve_gym.agents.router.metrics import Metrics
from conserve_gym.agents.router.spec import EngineSpec, RouterSpec
from conserve_gym.agents.router.turns import Turns
from conserve_gym.agents.runtime import log
from conserve_gym.agents.runtime.artifact import ArtifactError
from conserve_gym.agents.runtime.log import DecisionLog, LogError
from conserve_gym.agents.runtime.policy_file import PolicyFile
from conserve_gym.agents.runtime.runtime import Runtime
from conserve_gym.agents.runtime.scheduler import Scheduler
from conserve_gym.deployment import DEFAULT_DEPLOYMENT, Deployment
from conserve_gym.errors import ConServeGymError

_log = logging.getLogger(__name__)

_SWEEP_S = 1.0


class RouterError(ConServeGymError):
    """A router that cannot start as configured."""


class Router:
    """Everything behind the HTTP interface; used as an asynchronous context manager.

    Args:
        spec: What to run.

    Attributes:
        spec: What runs.
        metrics: What Prometheus is told.
        runtime: Decides and keeps the ledger.
        engines: In the fleet's order.
        books: Keep the conversations.
        turns: Serves turns.

    Raises:
        RouterError: A policy needs what a router cannot give.
    """

    def __init__(self, spec: RouterSpec) -> None:
        """Load the policy and open the log; nothing is asked of engines yet."""
        self.spec = spec
        self.metrics = Metrics()
        self._kept = list(log.latest(spec.log)) if spec.log is not None else []
        scheduler = self._scheduler()
        deployment = scheduler.deployment
        needs_more = deployment.decides_every_turn or deployment.engine_exports
        if needs_more or deployment.sees_future:
            raise RouterError(f"policy={spec.policy}: a router cannot run {deployment.to_json()}")
        self._log = (
            DecisionLog(spec.log, segment_bytes=spec.log_segment_bytes, keep=spec.log_segments)
            if spec.log is not None
            else None
        )
        fleet = spec.fleet(all_mixed=deployment.all_mixed)
        if (artifact := scheduler.artifact) is not None:
            if not artifact.serves(fleet):
                raise RouterError(f"policy={spec.policy} does not serve these engines")
            if fleet == artifact.fleet and not spec.knows_costs:
                fleet = artifact.fleet  # the engines that it was trained for, and what they cost
        self.runtime = Runtime(scheduler, fleet, log=self._log)
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self.engines: list[Engine] = []

    async def __aenter__(self) -> Router:
        """Look at the engines, and go on where an earlier router was killed."""
        # llama.cpp's server has a thread for each open connection, and no more than a few.
        one_request = any(one.adapter == "llamacpp" for one in self.spec.engines)
        connector = aiohttp.TCPConnector(limit=0, force_close=one_request)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=self.spec.limits.connect_s)
        session = await self._stack.enter_async_context(
            # Proxies of the environment would be addresses outside of the configured engines.
            aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False)
        )
        self.engines = [
            Engine(i, one.name, self._adapter(one, session))
            for i, one in enumerate(self.spec.engines)
        ]
        self._watch = Watch(self.engines, self.runtime, self.spec.health)
        self.books = Books(
            self.runtime,
            [engine.name for engine in self.engines],
            self.metrics,
            self.spec.limits,
            self.spec.tokens_per_character,
            [engine.adapter for engine in self.engines],
        )
        self.turns = Turns(
            self.runtime, self.books, self.engines, self._watch, self.metrics, self.spec.limits
        )
        await self._watch.first()
        self._restore()
        for engine in self.engines:
            self._tasks.append(asyncio.create_task(self._watch.run(engine)))
        self._tasks.append(asyncio.create_task(self._sweep()))
        if self.spec.shadow is not None:
            await self._read(self.spec.shadow, "candidate")
        for path, kind in ((self.spec.policy, "acting"), (self.spec.shadow, "candidate")):
            if path is not None:
                self._tasks.append(asyncio.create_task(self._follow(path, kind)))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop watching, and write the log to its end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()
        if self._log is not None:
            await asyncio.to_thread(self._log.close)

    @property
    def ready(self) -> bool:
        """Whether a conversation would find an engine."""
        return any(self.engines[i].up for i in self.runtime.fleet.decoders)

    def measure(self) -> None:
        """Bring the metrics that are read, and not counted, up to date."""
        metrics, runtime = self.metrics, self.runtime
        for engine in self.engines:
            metrics.engine_up.labels(engine.name).set(engine.up)
        metrics.ledger_events.set(runtime.events)
        metrics.conversations.set(len(self.books.conversations))
        metrics.at_door.set(len(self.books.door))
        if self._log is not None:
            metrics.log_dropped.set(self._log.dropped)
        if (shadow := runtime.shadow) is not None:
            metrics.shadow_decisions.set(shadow.decisions)
            metrics.shadow_disagreements.set(shadow.disagreements)

    def _scheduler(self) -> Scheduler:
        """Return the policy; where it cannot be used, the rule in the log's deployment."""
        deployment = DEFAULT_DEPLOYMENT
        if self._kept:
            deployment = Deployment.from_json(self._kept[0]["deployment"])
        if self.spec.policy is None:
            return Scheduler(None, "no policy was given", deployment=deployment)
        scheduler = Scheduler.load(self.spec.policy, strict=False)
        if scheduler.artifact is None:
            return Scheduler(None, scheduler.reason, deployment=deployment)
        if self.spec.preference is not None:
            scheduler.preference = self.spec.preference
        return scheduler

    def _adapter(self, spec: EngineSpec, session: aiohttp.ClientSession) -> Adapter:
        if spec.adapter == "llamacpp":
            assert self.spec.slot_folder is not None
            return LlamaCppAdapter(session, spec.url, spec.api_key, self.spec.slot_folder)
        kind = VllmNixlAdapter if spec.adapter == "vllm_nixl" else OpenAiAdapter
        return kind(session, spec.url, spec.api_key)

    def _restore(self) -> None:
        if self._kept:
            try:
                self.books.restore(self.runtime.restore(self._kept))
            except LogError as error:
                _log.warning("beginning anew: %s", error)
            self._kept = []
        self.runtime.begin_segment(self.books.records())

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            self.books.sweep()
            if self.runtime.wants_segment:
                self.runtime.begin_segment(self.books.records())

    async def _follow(self, path: Path, kind: str) -> None:
        """Read a policy again whenever its files change."""
        watched = PolicyFile(path)
        while True:
            await asyncio.sleep(self.spec.reload_s)
            if await asyncio.to_thread(watched.changed):
                await self._read(path, kind)

    async def _read(self, path: Path, kind: str) -> None:
        load = self.runtime.load if kind == "acting" else self.runtime.load_shadow
        try:
            await asyncio.to_thread(load, path)
        except ArtifactError as error:
            self.metrics.reloads.labels(kind, "refused").inc()
            _log.error("the %s policy stays as it was: %s", kind, error)
        else:
            self.metrics.reloads.labels(kind, "loaded").inc()
            _log.warning("the %s policy was read: %s", kind, path)
