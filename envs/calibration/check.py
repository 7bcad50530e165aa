"""Plays requests on an endpoint and on the simulated engine, and compares what they felt."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

import numpy as np

from conserve_gym.envs.calibration.endpoint import Client, Completion, Prompts, together
from conserve_gym.envs.calibration.measure import Plan
from conserve_gym.envs.calibration.steps import FloatArray
from conserve_gym.envs.serving.clock import Call, Clock
from conserve_gym.envs.serving.engine import Engine
from conserve_gym.envs.serving.hardware import Hardware
from conserve_gym.envs.serving.request import Request
from conserve_gym.envs.serving.standalone import StandaloneEngine
from conserve_gym.envs.serving.step_time import StepTime
from conserve_gym.envs.workloads.conversation import Turn

# Requests arrive at this share of the rate at which they would be served one after another.
_LOAD = 0.7
_LONGEST_OUTPUT = 64
_LONE_PROMPTS = 5
_BLOCK_TOKENS = 16
_ROOM_FOR_ALL = 1 << 30


class Arrival(NamedTuple):
    """A request to play.

    Attributes:
        time: Seconds from the first one on.
        input_tokens: Length of its prompt.
        output_tokens: Tokens to generate.
    """

    time: float
    input_tokens: int
    output_tokens: int


class Felt(NamedTuple):
    """What requests felt; arrays have shape (requests,).

    Attributes:
        ttft_ms: First token less arrival.
        tbt_ms: Mean gap between tokens.
    """

    ttft_ms: FloatArray
    tbt_ms: FloatArray


class Check(NamedTuple):
    """The same requests, measured and predicted.

    Attributes:
        arrivals: When they were really sent, and how long they really were.
        measured: By the endpoint.
        predicted: By the simulated engine.
        lone_tokens: Length of a prompt that was sent alone before and after.
        lone_ms: Medians of its times to a first token before and after, and what is predicted:
            whether the machine is still as fast as when it was measured.
    """

    arrivals: list[Arrival]
    measured: Felt
    predicted: Felt
    lone_tokens: int
    lone_ms: tuple[float, float, float]

    def rows(self) -> list[tuple[str, str, float, float, float]]:
        """Return metric, statistic, measured and predicted (ms), and error in percent."""
        rows = []
        for metric in Felt._fields:
            for name, of in _STATISTICS.items():
                measured = float(of(getattr(self.measured, metric)))
                predicted = float(of(getattr(self.predicted, metric)))
                error = 100.0 * (predicted / measured - 1.0)
                rows.append((metric, name, measured, predicted, error))
        return rows


_STATISTICS: dict[str, Callable[[FloatArray], float]] = {
    "mean": np.mean,
    "p50": np.median,
    "p95": lambda values: float(np.percentile(values, 95)),
}


def draw(hardware: Hardware, plan: Plan, requests: int, seed: int) -> list[Arrival]:
    """Draw Poisson arrivals of requests that the law was not fitted on.

    Prompts are as long as a chunk to four steps, or the longest context; the rate keeps the engine
    busy.
    """
    rng = random.Random(seed)
    shortest = min(plan.chunk_lengths)
    longest = min(4 * plan.token_budget, max(plan.contexts))
    lengths = [
        (
            round(shortest * (max(longest, shortest) / shortest) ** rng.random()),
            rng.randint(_LONGEST_OUTPUT // 4, _LONGEST_OUTPUT),
        )
        for _ in range(requests)
    ]
    alone = StandaloneEngine(hardware, plan.token_budget, _BLOCK_TOKENS)
    mean_s = sum(alone.latencies([Turn(i, i, o, 0.0)]).e2e_s for i, o in lengths) / requests
    arrivals, now = [], 0.0
    for input_tokens, output_tokens in lengths:
        arrivals.append(Arrival(now, input_tokens, output_tokens))
        now += rng.expovariate(_LOAD / mean_s)
    return arrivals


async def run(
    client: Client,
    prompts: Prompts,
    arrivals: Sequence[Arrival],
    hardware: Hardware,
    plan: Plan,
    advance: Callable[[], None],
) -> Check:
    """Play requests on the endpoint, then on the simulated engine.

    Args:
        client: Speaks to the endpoint.
        prompts: Draws the prompts.
        arrivals: The requests.
        hardware: Tier of the simulated engine.
        plan: Has the engine's limits.
        advance: Called after each request.

    Raises:
        EndpointError: The endpoint fails.
    """
    lone = max(plan.prompt_lengths)

    async def lone_ms() -> float:
        found = [await client.complete(prompts.draw(lone), 1) for _ in range(_LONE_PROMPTS)]
        return median(completion.first_token_ms for completion in found)

    drawn = [prompts.draw(arrival.input_tokens) for arrival in arrivals]
    before = await lone_ms()
    clock = asyncio.get_running_loop().time
    began = clock()

    async def play(i: int) -> Completion:
        await asyncio.sleep(began + arrivals[i].time - clock())
        found = await client.complete(drawn[i], arrivals[i].output_tokens)
        advance()
        return found

    async with together() as group:
        tasks = [group.create_task(play(i)) for i in range(len(arrivals))]
    after = await lone_ms()
    found = [task.result() for task in tasks]
    sent = [
        Arrival(
            completion.sent_s - began,
            completion.prompt_tokens or arrival.input_tokens,
            completion.output_tokens or arrival.output_tokens,
        )
        for completion, arrival in zip(found, arrivals, strict=True)
    ]
    measured = Felt(
        np.array([completion.first_token_ms for completion in found]),
        np.array([1e3 * np.mean(np.diff(completion.token_s)) for completion in found]),
    )
    step = StepTime(hardware).step(lone, 0)
    return Check(
        sent,
        measured,
        simulate(hardware, plan, sent),
        lone,
        (before, after, 1e3 * step + hardware.overhead.request_ms),
    )


class _Listener:
    """Notes first and last tokens of requests at a lone engine."""

    def __init__(self, clock: Clock, requests: int) -> None:
        """Know nothing yet."""
        self._clock = clock
        self.first_s = np.zeros(requests)
        self.last_s = np.zeros(requests)

    def reserves(self, request: Request) -> bool:
        return True

    def pulls(self, request: Request) -> bool:
        return False

    def on_prefilled(self, request: Request) -> None:
        pass

    def on_copied(self, copy: object) -> None:
        pass

    def on_first_token(self, request: Request) -> None:
        self.first_s[request.conversation] = self._clock.now

    def on_turn_finished(self, request: Request) -> None:
        self.last_s[request.conversation] = self._clock.now

    def on_room_freed(self) -> None:
        pass

    def after_turn(self, request: Request) -> None:
        pass


def simulate(hardware: Hardware, plan: Plan, arrivals: Sequence[Arrival]) -> Felt:
    """Play requests on a simulated engine with room for the KV of all."""
    clock = Clock()
    listener = _Listener(clock, len(arrivals))
    engine = Engine(
        clock,
        hardware,
        kv_capacity_tokens=_ROOM_FOR_ALL,
        block_tokens=_BLOCK_TOKENS,
        token_budget=plan.token_budget,
        max_sequences=plan.max_sequences,
        prefix_caching=False,
        listener=listener,
    )

    def arrive(call: Call) -> None:
        engine.submit(call.value)

    for i, (at, input_tokens, output_tokens) in enumerate(arrivals):
        request = Request(i, 0, input_tokens, 0, output_tokens)
        clock.after(at, arrive, request)
    clock.run()
    gaps = np.array([arrival.output_tokens - 1 for arrival in arrivals])
    arrived = np.array([arrival.time for arrival in arrivals])
    return Felt(
        1e3 * (listener.first_s - arrived), 1e3 * (listener.last_s - listener.first_s) / gaps
    )
