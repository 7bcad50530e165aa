"""An engine that takes exactly the times of a known step law: in virtual time, or behind HTTP."""

from __future__ import annotations

import asyncio
import json
import selectors
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile

from aiohttp import web

from conserve_gym.envs.calibration.endpoint import Completion
from conserve_gym.envs.serving.hardware import Hardware
from conserve_gym.envs.serving.step_time import StepTime

TOKEN_BUDGET = 256
MAX_SEQUENCES = 6
REQUEST_S = 0.003  # what a request costs beside the engine


@dataclass
class Sequence:
    prompt: list[int]
    left: int
    cached: int
    computed: int
    tokens: asyncio.Queue[bool] = field(default_factory=asyncio.Queue)


class FakeEngine:
    """Continuous batching with prefix caching."""

    def __init__(self, hardware: Hardware) -> None:
        self.time = StepTime(hardware)
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.seen: list[list[int]] = []
        self.work = asyncio.Event()

    def submit(self, prompt: list[int] | str, output_tokens: int) -> Sequence:
        if isinstance(prompt, str):
            prompt = [hash(word) for word in prompt.split() for _ in range(2)]
        cached = self.cached(prompt)
        sequence = Sequence(prompt, output_tokens, cached, cached)
        self.seen.append(prompt)
        self.waiting.append(sequence)
        self.work.set()
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        self.running = [s for s in self.running if s is not sequence]
        self.waiting = [s for s in self.waiting if s is not sequence]

    def cached(self, prompt: list[int]) -> int:
        def common(other: list[int]) -> int:
            pairs = zip(prompt[:-1], other, strict=False)
            return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))

        return max(map(common, self.seen), default=0)

    async def run(self) -> None:
        while True:
            if not self.waiting and not self.running:
                self.work.clear()
                await self.work.wait()
            while self.waiting and len(self.running) < MAX_SEQUENCES:
                self.running.append(self.waiting.pop(0))
            decoding = [s for s in self.running if s.computed >= len(s.prompt)]
            budget = TOKEN_BUDGET - len(decoding)
            chunks: list[tuple[Sequence, int]] = []
            for sequence in self.running:
                chunk = min(len(sequence.prompt) - sequence.computed, budget)
                if chunk > 0:
                    chunks.append((sequence, chunk))
                    budget -= chunk
            await asyncio.sleep(self.seconds(chunks, decoding))
            for sequence, chunk in chunks:
                sequence.computed += chunk
            for sequence in decoding:
                sequence.computed += 1
            emitting = [s for s, _ in chunks if s.computed >= len(s.prompt)]
            for sequence in decoding + emitting:
                sequence.left -= 1
                sequence.tokens.put_nowait(sequence.left > 0)
            self.running = [s for s in self.running if s.left > 0]

    def seconds(self, chunks: list[tuple[Sequence, int]], decoding: list[Sequence]) -> float:
        kv = sum(s.computed for s in decoding)
        prompt_tokens = sum(n for _, n in chunks)
        if not chunks or (prompt_tokens == 1 and not decoding):  # one token is as good as a decode
            return self.time.decode_run(max(len(decoding), 1), kv).elapsed(1)
        return self.time.with_prefill(
            prompt_tokens,
            sum(n * (s.computed + n / 2) for s, n in chunks),
            max(s.computed for s, _ in chunks),
            len(decoding),
            kv,
        )


class VirtualClient:
    """Speaks to the engine without a wire; stands in for ``Client``."""

    def __init__(self, engine: FakeEngine, says_cached: bool) -> None:
        self.engine = engine
        self.says_cached = says_cached

    async def complete(
        self, prompt: list[int] | str, output_tokens: int, into: Completion | None = None
    ) -> Completion:
        completion = into or Completion()
        clock = asyncio.get_running_loop().time
        completion.sent_s = clock()
        await asyncio.sleep(REQUEST_S)
        sequence = self.engine.submit(prompt, output_tokens)
        try:
            for _ in range(output_tokens):
                await sequence.tokens.get()
                completion.token_s.append(clock())
        finally:
            self.engine.cancel(sequence)
        completion.prompt_tokens = len(sequence.prompt)
        completion.output_tokens = output_tokens
        completion.cached_tokens = sequence.cached if self.says_cached else None
        return completion


class _Selector(selectors.DefaultSelector):
    """Does not wait: time jumps to when something is due."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += timeout or 0.0
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose sleeps take no time, so that a busy machine changes nothing."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now


class FakeEndpoint:
    """The engine behind HTTP, with the failures of real ones."""

    def __init__(
        self,
        hardware: Hardware,
        *,
        fails_after: int | None = None,
        failure: str = "",
        tokens_an_event: int = 1,
    ) -> None:
        self.engine = FakeEngine(hardware)
        self.fails_after = fails_after
        self.failure = failure
        self.tokens_an_event = tokens_an_event
        self.requests = 0

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests += 1
        failing = self.fails_after is not None and self.requests > self.fails_after
        if failing and self.failure == "http":
            return web.json_response({"error": {"message": "out of memory"}}, status=500)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if failing and self.failure == "dies":
            assert request.transport is not None
            request.transport.abort()
            return response
        if failing and self.failure == "silent":
            await asyncio.sleep(5.0)
            return response
        if failing and self.failure == "empty":
            await response.write(b"data: [DONE]\n\n")
            return response
        sequence = self.engine.submit(body["prompt"], body["max_tokens"])
        more, count = True, 0
        try:
            while more:
                more = await sequence.tokens.get()
                count += 1
                if count % self.tokens_an_event == 0 or not more:
                    choice = {"text": "a", "finish_reason": None if more else "length"}
                    await response.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
            usage = {
                "prompt_tokens": len(sequence.prompt),
                "completion_tokens": count,
                "prompt_tokens_details": {"cached_tokens": sequence.cached},
            }
            event = json.dumps({"choices": [], "usage": usage})
            await response.write(f"data: {event}\n\ndata: [DONE]\n\n".encode())
        finally:
            self.engine.cancel(sequence)
        return response


@contextmanager
def served(hardware: Hardware, **options: object) -> Iterator[str]:
    """Serve in a thread; gives the address."""
    loop = asyncio.new_event_loop()
    started: list[str] = []
    ready = threading.Event()

    async def start() -> None:
        endpoint = FakeEndpoint(hardware, **options)  # type: ignore[arg-type]
        app = web.Application()
        app.router.add_post("/v1/completions", endpoint.completions)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        started.append(f"http://{host}:{port}")
        ready.set()
        engine = asyncio.create_task(endpoint.engine.run())
        try:
            await engine
        finally:
            await runner.cleanup()

    task = loop.create_task(start())

    def run() -> None:
        try:
            loop.run_until_complete(task)
        except asyncio.CancelledError:
            pass
        finally:
            loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(10)
    try:
        yield started[0]
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(10)
