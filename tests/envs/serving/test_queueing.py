"""One engine that serves one prompt at a time is the queue M/D/1, whose mean wait is known.

Prompts of one length with one output token take one step each. The token budget is that length,
so a step holds one prompt and the next one waits: service is constant, and arrivals are Poisson.
Batch means over independent streams give the confidence interval.
"""

from __future__ import annotations

import numpy as np
import pytest
from examples import HARDWARE

from conserve_gym.envs.serving.clock import Clock
from conserve_gym.envs.serving.engine import Engine
from conserve_gym.envs.serving.request import Request

TOKENS = 100
SERVICE_S = 0.017  # 2 + 10 + 5 ms


class Counter:
    """Hears when turns begin to be served."""

    def __init__(self) -> None:
        self.waits_s: list[float] = []

    def reserves(self, request: Request) -> bool:
        raise AssertionError("no prompt is for another engine")

    on_prefilled = pulls = reserves

    def on_first_token(self, request: Request) -> None:
        pass

    def on_turn_finished(self, request: Request) -> None:
        self.waits_s.append(request.started_s - request.submitted_s)

    def on_room_freed(self) -> None:
        pass

    def after_turn(self, request: Request) -> None:
        pass


def waits_s(arrivals_s: np.ndarray) -> np.ndarray:
    clock, counter = Clock(), Counter()
    engine = Engine(
        clock,
        HARDWARE,
        kv_capacity_tokens=160_000,
        block_tokens=16,
        token_budget=TOKENS,
        max_sequences=1024,
        prefix_caching=True,
        listener=counter,
    )
    for i, time in enumerate(arrivals_s):
        clock.after(time, lambda call: engine.submit(call.value), Request(i, 0, TOKENS, 0, 1))
    clock.run()
    return np.array(counter.waits_s)


def test_waits_follow_lindleys_recursion() -> None:
    rng = np.random.default_rng(1)
    arrivals = np.cumsum(rng.exponential(SERVICE_S / 0.9, size=2000))
    expected = [0.0]
    for gap in np.diff(arrivals):
        expected.append(max(0.0, expected[-1] + SERVICE_S - gap))
    assert waits_s(arrivals) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_the_mean_wait_is_that_of_m_d_1(load: float) -> None:
    customers, streams = 3000, 16
    means = []
    for seed in range(streams):
        gaps = np.random.default_rng([seed, 0x4D4431]).exponential(SERVICE_S / load, customers)
        means.append(waits_s(np.cumsum(gaps)).mean())
    expected = load * SERVICE_S / (2.0 * (1.0 - load))  # Pollaczek and Khinchine
    error = np.std(means, ddof=1) / np.sqrt(streams)
    assert abs(np.mean(means) - expected) < 3.29 * error  # 99.9 %
    assert error < 0.05 * expected
