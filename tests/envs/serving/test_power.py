"""Energy of steps, and of whole runs against sums of single steps."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from examples import HARDWARE
from hypothesis import given, settings
from hypothesis import strategies as st
from random_episodes import hardware

from conserve_gym.envs.serving.hardware import Hardware
from conserve_gym.envs.serving.power import StepEnergy, _sum_of_smaller
from conserve_gym.envs.serving.step_time import DecodeRun, StepTime

ENERGY = StepEnergy(HARDWARE)


def test_a_prefill_step() -> None:
    # 17 ms at 100 W; 1 GB of weights and 0.1 GB of KV written at 0.5 J; 100 x 2 GFLOP and
    # 5000 x 500 kFLOP at 2 J a TFLOP.
    joules = 1.7 + 0.5 + 0.05 + 0.4 + 0.005
    assert ENERGY.with_prefill(0.017, 100, 5000.0, 0, 0, 0) == pytest.approx(joules, rel=1e-12)


def test_a_mixed_step() -> None:
    # 10 tokens after 40 cached ones beside 2 sequences that read 60: KV of 40 + 60 tokens read and
    # of 12 written; 12 x 2 GFLOP and (450 + 60) x 500 kFLOP.
    joules = 2.0 + 0.5 + 0.112 * 0.5 + 2 * (0.024 + 510 * 500e-9)
    assert ENERGY.with_prefill(0.02, 10, 450.0, 40, 2, 60) == pytest.approx(joules, rel=1e-12)


def test_no_step_uses_more_than_the_cap() -> None:
    # 3 ms would take 0.3 + 0.5 J and more; the cap allows 0.75 J.
    assert ENERGY.with_prefill(0.003, 1, 0.5, 0, 0, 0) == pytest.approx(0.75, rel=1e-12)


def test_a_run_of_decodes() -> None:
    run = StepTime(HARDWARE).decode_run(2, 100)
    # The first two steps take the floor of 10.4 ms: 3 + 2 + 5 and 3 + 2 + 5.1 ms are below it.
    # Each moves the weights, KV of 100 and 102 tokens, and that of 2 new ones; and works on 2
    # tokens that attend to as many.
    first = 1.04 + 0.5 + 0.102 * 0.5 + 2 * (0.004 + 100 * 500e-9)
    second = 1.04 + 0.5 + 0.104 * 0.5 + 2 * (0.004 + 102 * 500e-9)
    assert ENERGY.of_run(run, 2, 100, 0) == 0.0
    assert ENERGY.of_run(run, 2, 100, 1) == pytest.approx(first, rel=1e-12)
    assert ENERGY.of_run(run, 2, 100, 2) == pytest.approx(first + second, rel=1e-12)


def step_joules(tier: Hardware, run: DecodeRun, sequences: int, kv_tokens: int) -> float:
    power, figures = tier.power, tier.figures
    gb = figures.weights_gb + figures.kv_bytes_per_token * 1e-9 * (kv_tokens + sequences)
    tflop = figures.gflop_per_token * 1e-3 * sequences
    tflop += figures.kflop_per_attended_token * 1e-9 * kv_tokens
    seconds = max(run.floor, run.start)
    return min(
        power.cap_w * seconds,
        power.base_w * seconds + power.joule_per_gb * gb + power.joule_per_tflop * tflop,
    )


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    sequences=st.integers(1, 30),
    kv_tokens=st.integers(0, 3000),
    steps=st.integers(0, 300),
    where=st.floats(-0.3, 1.3),
)
def test_a_run_uses_what_its_steps_use(
    seed: int, sequences: int, kv_tokens: int, steps: int, where: float
) -> None:
    tier = hardware(random.Random(seed))
    law = StepTime(tier)
    singles = [law.decode_run(sequences, kv_tokens + step * sequences) for step in range(steps + 1)]
    # A cap between the least and the greatest power of the steps is crossed within the run.
    uncapped = replace(tier, power=replace(tier.power, cap_w=1e9))
    powers = [
        step_joules(uncapped, single, sequences, kv_tokens + step * sequences)
        / max(single.floor, single.start)
        for step, single in enumerate(singles)
    ]
    cap_w = max(powers[0] + where * (powers[-1] - powers[0]), tier.power.base_w + 1e-3)
    capped = replace(tier, power=replace(tier.power, cap_w=cap_w))
    expected = math.fsum(
        step_joules(capped, singles[step], sequences, kv_tokens + step * sequences)
        for step in range(steps)
    )
    joules = StepEnergy(capped).of_run(singles[0], sequences, kv_tokens, steps)
    assert joules == pytest.approx(expected, rel=1e-9)


SMALL = st.one_of(st.integers(-20, 20).map(float), st.floats(-100.0, 100.0))


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 200), SMALL, SMALL, SMALL, SMALL)
def test_sums_of_the_smaller_of_two_lines(
    count: int, a: float, a_slope: float, b: float, b_slope: float
) -> None:
    expected = math.fsum(min(a + a_slope * j, b + b_slope * j) for j in range(count))
    actual = _sum_of_smaller(count, a, a_slope, b, b_slope)
    assert actual == pytest.approx(expected, rel=1e-9, abs=1e-6)
