"""Measures the steps of an engine from outside, by when its tokens arrive."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from pydantic import NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from conserve_gym.envs.calibration.endpoint import (
    Client,
    Completion,
    EndpointError,
    Prompt,
    Prompts,
    joined,
    together,
)
from conserve_gym.envs.calibration.steps import Steps
from conserve_gym.envs.fields import STRICT

_MINIMAL_REQUESTS = 20
_POLL_S = 0.002
# Tokens that a decode may gain while a prompt is sent beside it and answered; more than enough.
_TOKENS_A_PROMPT = 12
# Where the endpoint does not say what it had cached, a prompt after a cached prefix must take less
# than this share of the time of one that is new from its first token on.
_CACHED_SHARE = 0.9


@dataclass(frozen=True, config=STRICT)
class Plan:
    """What is measured.

    Attributes:
        prompt_lengths: Lengths of prompts alone, each computed in one step.
        chunk_lengths: Lengths of prompts after cached contexts and beside decodes.
        contexts: Lengths of cached contexts, and of the prompts of decodes.
        batch_sizes: Numbers of sequences that decode at once.
        repeats: How often each prompt is measured.
        decode_steps: Steps of decodes of which the median is taken.
        token_budget: Tokens that a step of the engine carries (``max_num_batched_tokens``).
        max_sequences: Sequences that the engine runs at once (``max_num_seqs``).
        tile_from: Tokens from which its attention computes a chunk in tiles; 0 where all are.

    Raises:
        ValueError: There is too little to fit a law, or a prompt does not fit into one step.
    """

    prompt_lengths: tuple[PositiveInt, ...]
    chunk_lengths: tuple[PositiveInt, ...]
    contexts: tuple[PositiveInt, ...]
    batch_sizes: tuple[PositiveInt, ...]
    repeats: PositiveInt
    decode_steps: PositiveInt
    token_budget: PositiveInt
    max_sequences: PositiveInt
    tile_from: NonNegativeInt = 0

    def __post_init__(self) -> None:
        """Check the plan."""
        for name, least in (
            ("prompt_lengths", 5),
            ("chunk_lengths", 2),
            ("contexts", 2),
            ("batch_sizes", 3),
        ):
            values = list(getattr(self, name))
            if len(set(values)) < least:
                raise ValueError(f"plan.{name}={values}: at least {least} are needed")
        for name in ("prompt_lengths", "chunk_lengths"):
            if max(getattr(self, name)) > self.token_budget:
                raise ValueError(
                    f"plan.{name}: {max(getattr(self, name))} tokens are more than a step carries "
                    f"(plan.token_budget={self.token_budget})"
                )
        if max(self.batch_sizes) > self.max_sequences:
            raise ValueError(
                f"plan.batch_sizes: {max(self.batch_sizes)} are more than the engine runs "
                f"(plan.max_sequences={self.max_sequences})"
            )

    @property
    def cells(self) -> int:
        """How often progress is reported."""
        return 1 + self.repeats + len(self.contexts) * (1 + len(self.batch_sizes))


class Overhead(NamedTuple):
    """What a request costs beside the engine's steps: client, network, parsing.

    Attributes:
        minimal_ms: Latency of one prompt token and one output token.
        step_ms: A decode's step with as little context.
    """

    minimal_ms: float
    step_ms: float

    @property
    def ms(self) -> float:
        """What is taken off the time to a first token."""
        return max(self.minimal_ms - self.step_ms, 0.0)


class Measurement:
    """Measured steps of one endpoint; they are here also when measuring has failed.

    Args:
        client: Speaks to the endpoint.
        plan: What to measure.
        prompts: Draws the prompts.

    Attributes:
        steps: What has been measured so far.
        overhead: Known after the first cell.
        notes: What had to be left out.
    """

    def __init__(self, client: Client, plan: Plan, prompts: Prompts) -> None:
        """Start without steps."""
        self._client = client
        self._plan = plan
        self._prompts = prompts
        self._rows: list[tuple[float, float, float, float, float]] = []
        self.overhead: Overhead | None = None
        self.notes: list[str] = []

    @property
    def steps(self) -> Steps:
        """What has been measured so far."""
        return Steps.of(*(zip(*self._rows, strict=True) if self._rows else ((),) * 5))

    async def run(self, advance: Callable[[], None]) -> None:
        """Measure everything.

        Args:
            advance: Called after each cell of the plan.

        Raises:
            EndpointError: The endpoint fails.
        """
        self.overhead = await self._measure_overhead()
        advance()
        # Whatever disturbs the machine for a while shall not meet all repeats of one length.
        for _ in range(self._plan.repeats):
            for tokens in self._plan.prompt_lengths:
                found, ms = await self._first_token(tokens)
                cached = found.cached_tokens or 0
                self._add((found.prompt_tokens or tokens) - cached, cached, 0, 0, ms)
            advance()
        for context in self._plan.contexts:
            await self._cached_prompts(context)
            advance()
        for sequences in self._plan.batch_sizes:
            for context in self._plan.contexts:
                await self._decodes(sequences, context)
                advance()

    def _add(
        self, prompt_tokens: float, context: float, sequences: float, kv: float, ms: float
    ) -> None:
        if ms > 0.0:
            self._rows.append((prompt_tokens, context, sequences, kv, ms))

    async def _measure_overhead(self) -> Overhead:
        prompt = self._prompts.draw(64)
        found = await self._client.complete(prompt, 1)  # warms the engine up too
        self._prompts.learn(prompt, found.prompt_tokens or 64)
        latencies = [
            (await self._client.complete(self._prompts.draw(1), 1)).first_token_ms
            for _ in range(_MINIMAL_REQUESTS)
        ]
        decode = await self._client.complete(self._prompts.draw(1), 2 * self._plan.decode_steps)
        return Overhead(median(latencies), median(_gaps_ms(decode.token_s)))

    async def _first_token(
        self, prompt_tokens: int, prefix: Prompt | None = None
    ) -> tuple[Completion, float]:
        """Send a prompt and return it with the time of its step."""
        assert self.overhead is not None
        prompt = self._prompts.draw(prompt_tokens)
        found = await self._client.complete(prompt if prefix is None else joined(prefix, prompt), 1)
        return found, found.first_token_ms - self.overhead.ms

    async def _cached_prompts(self, context: int) -> None:
        prefix = self._prompts.draw(context)
        prefix_tokens = (await self._client.complete(prefix, 1)).prompt_tokens or context
        for _ in range(self._plan.repeats):
            for tokens in self._plan.chunk_lengths:
                found, ms = await self._first_token(tokens, prefix)
                whole = found.prompt_tokens or prefix_tokens + tokens
                cached = found.cached_tokens
                if cached is None:
                    cached = prefix_tokens
                    cold = await self._client.complete(self._prompts.draw(context + tokens), 1)
                    if found.first_token_ms > _CACHED_SHARE * cold.first_token_ms:
                        self._left_out(f"prompts of {tokens} tokens after {context}: not cached?")
                        continue
                if whole - cached > self._plan.token_budget:
                    self._left_out(f"prompts after {context} tokens: {cached} of them are cached")
                    continue
                self._add(whole - cached, cached, 0, 0, ms)

    def _left_out(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    async def _decodes(self, sequences: int, context: int) -> None:
        """Measure steps of decodes, then steps that they share with a prompt."""
        plan = self._plan
        chunks = [
            tokens
            for _ in range(plan.repeats)
            for tokens in plan.chunk_lengths
            if sequences < plan.max_sequences and tokens + sequences <= plan.token_budget
        ]
        prefill_steps = sequences * (1 + -(-context // plan.token_budget))
        steady = plan.decode_steps * plan.repeats
        output = prefill_steps + steady + _TOKENS_A_PROMPT * len(chunks) + 1
        decodes = [Completion() for _ in range(sequences)]
        async with together() as group:
            tasks = [
                group.create_task(
                    self._client.complete(self._prompts.draw(context), output, decode)
                )
                for decode in decodes
            ]
            await _until(lambda: all(decode.token_s for decode in decodes), tasks)
            began = max(decode.token_s[0] for decode in decodes)
            await _until(lambda: all(_since(d.token_s, began) > steady for d in decodes), tasks)
            if any(_since(d.token_s, began) <= steady for d in decodes):
                raise EndpointError(
                    f"{sequences} sequences of {context} tokens did not decode together: does the "
                    f"engine run plan.max_sequences={plan.max_sequences} at once, with "
                    f"plan.token_budget={plan.token_budget} a step?"
                )
            self._add_decodes(decodes, context, began)
            for tokens in chunks:
                if any(len(decode.token_s) + _TOKENS_A_PROMPT // 2 > output for decode in decodes):
                    break
                found, _ = await self._first_token(tokens)
                # The step's tokens go out together, the prompt's perhaps first.
                seen = [len(decode.token_s) for decode in decodes]
                await _until(
                    lambda seen=seen: all(  # type: ignore[misc]
                        len(d.token_s) > count for d, count in zip(decodes, seen, strict=True)
                    ),
                    tasks,
                )
                self._add_mixed(decodes, context, found, tokens)
            for task in tasks:
                task.cancel()
        await asyncio.sleep(max(0.05, 5e-3 * self._rows[-1][-1]))  # the engine notices, and stops

    def _add_decodes(self, decodes: Sequence[Completion], context: int, began: float) -> None:
        """Add the medians of as many parts of the steady phase as prompts are repeated."""
        steps = self._plan.decode_steps
        for part in range(self._plan.repeats):
            gaps, kv = [], 0.0
            for decode in decodes:
                first = len(decode.token_s) - _since(decode.token_s, began) + part * steps
                gaps += _gaps_ms(decode.token_s[first : first + steps + 1])
                kv += context + first + steps / 2
            self._add(0, 0, len(decodes), kv, median(gaps))

    def _add_mixed(
        self, decodes: Sequence[Completion], context: int, found: Completion, tokens: int
    ) -> None:
        """Add the longest gap that decodes saw between a prompt and its first token."""
        gaps, kv = [], 0.0
        for decode in decodes:
            times = decode.token_s
            gap, last = max(
                (times[i] - times[i - 1], i)
                for i in range(1, len(times))
                if times[i] > found.sent_s and times[i - 1] < found.token_s[0]
            )
            gaps.append(1e3 * gap)
            kv += context + last - 1
        cached = found.cached_tokens or 0
        computed = (found.prompt_tokens or tokens) - cached
        self._add(computed, cached, len(decodes), kv, median(gaps))


def _gaps_ms(times: Sequence[float]) -> list[float]:
    return [1e3 * (b - a) for a, b in pairwise(times)]


def _since(times: Sequence[float], began: float) -> int:
    """Return how many of the times are not before ``began``."""
    return len(times) - bisect_left(times, began)


async def _until(ready: Callable[[], bool], tasks: Sequence[asyncio.Task[Completion]]) -> None:
    """Wait for a state of running tasks; their failures end the wait."""
    while not ready():
        if all(task.done() for task in tasks):
            return
        await asyncio.sleep(_POLL_S)
