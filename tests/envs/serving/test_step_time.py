"""The step law, and runs of decode steps in closed form against sums of single steps."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import accumulate

import pytest
from examples import HARDWARE
from hypothesis import given, settings
from hypothesis import strategies as st

from conserve_gym.envs.serving.hardware import EngineOverhead
from conserve_gym.envs.serving.step_time import DecodeRun, StepTime

LAW = StepTime(HARDWARE)


@pytest.mark.parametrize(
    ("prompt_tokens", "attended_tokens", "sequences", "kv_tokens", "milliseconds"),
    [
        (100, 5000.0, 0, 0, 2 + 10 + 5),
        (10, 50.0, 0, 0, 3.05),
        (10, 50.0, 0, 9999, 3.05),  # nobody reads KV
        (10, 50.0, 1, 100, 2 + 1.1 + 0.05 + 1 + 10),  # KV costs twice as much beside a prompt
        (10, 50.0, 1, 10, 10 + 0.2),  # 5.15 ms of work: the decodes' floor
        (10, 50.0, 9, 0, 2 + 1.9 + 0.05 + 9),  # 12.95 ms, above a floor of 11.8 ms
    ],
)
def test_a_step_with_prompt_tokens(
    prompt_tokens: int,
    attended_tokens: float,
    sequences: int,
    kv_tokens: int,
    milliseconds: float,
) -> None:
    seconds = LAW.with_prefill(prompt_tokens, attended_tokens, 0, sequences, kv_tokens)
    assert seconds == pytest.approx(milliseconds * 1e-3, rel=1e-12)


def test_the_floor_of_a_prompts_step_is_a_smooth_max() -> None:
    law = StepTime(replace(HARDWARE, prefill=replace(HARDWARE.prefill, floor_ms=3.05)))
    seconds = law.with_prefill(10, 50.0, 0, 0, 0)  # as much work as floor
    assert seconds == pytest.approx(3.05e-3 * 2 ** (1 / 8), rel=1e-12)
    assert law.with_prefill(100, 5000.0, 0, 0, 0) == pytest.approx(0.017, rel=1e-6)
    # Beside decodes their floor holds as well, and sharply.
    assert law.with_prefill(10, 50.0, 0, 1, 10) == pytest.approx(0.0102, rel=1e-12)


# Of the same: reading the weights takes 3 ms, a token of context 20 us where one multiprocessor
# reads it, and the engine adds 1 ms a step and 0.5 ms a sequence.
WHOLE = replace(
    HARDWARE,
    prefill=replace(HARDWARE.prefill, weights_ms=3.0, scan_us=20.0),
    overhead=EngineOverhead(step_ms=1.0, sequence_us=500.0),
)


@pytest.mark.parametrize(
    ("prompt_tokens", "attended_tokens", "scanned_tokens", "sequences", "kv_tokens", "expected"),
    [
        (40, 5000.0, 0, 0, 0, 1 + 2 + 5 + 5),  # weights 3, matrices 4, so 5 ms; attention 5 ms
        (40, 4000.0, 150, 0, 0, 1 + 2 + 5 + 5),  # a scan of 3 ms beside attention of 4 ms
        (10, 50.0, 0, 0, 0, 1 + 2 + math.hypot(3, 1) + 0.05),
        (1, 0.5, 0, 0, 0, 1 + 2 + math.hypot(3, 0.1) + 0.0005),
        (1, 0.5, 0, 1, 1, 1 + 0.5 + 10.2),  # the decodes' floor
        # Four decodes that read 100 each, 40 ms and a scan of 2 ms; or one that reads 400, 8 ms.
        (36, 0.0, 100, 4, 400, 1 + 2 + 2 + 5 + math.hypot(2, 40) + 4),
        (39, 0.0, 400, 1, 400, 1 + 0.5 + 2 + 5 + math.hypot(8, 40) + 1),
        (39, 0.0, 500, 1, 400, 1 + 0.5 + 2 + 5 + math.hypot(10, 40) + 1),
    ],
)
def test_weights_scans_and_the_engine_add_to_a_step_with_prompt_tokens(
    prompt_tokens: int,
    attended_tokens: float,
    scanned_tokens: int,
    sequences: int,
    kv_tokens: int,
    expected: float,
) -> None:
    seconds = StepTime(WHOLE).with_prefill(
        prompt_tokens, attended_tokens, scanned_tokens, sequences, kv_tokens
    )
    assert seconds == pytest.approx(expected * 1e-3, rel=1e-12)


def test_the_engine_adds_to_a_step_of_decodes() -> None:
    run = StepTime(WHOLE).decode_run(2, 0)
    assert run.elapsed(1) == pytest.approx((1 + 2 * 0.5 + 10.4) * 1e-3, rel=1e-12)
    run = StepTime(WHOLE).decode_run(2, 1000)
    assert run.elapsed(1) == pytest.approx((1 + 2 * 0.5 + 3 + 2 + 50) * 1e-3, rel=1e-12)


@pytest.mark.parametrize(
    ("sequences", "kv_tokens", "milliseconds"),
    [
        (1, 0, 10.2),
        (1, 124, 10.2),
        (1, 126, 3 + 1 + 6.3),
        (10, 0, 3 + 10),
        (5, 60, 3 + 5 + 3),  # exactly the floor of 10 + 1 ms
    ],
)
def test_a_step_of_decodes(sequences: int, kv_tokens: int, milliseconds: float) -> None:
    run = LAW.decode_run(sequences, kv_tokens)
    assert run.elapsed(1) == pytest.approx(milliseconds * 1e-3, rel=1e-12)


def test_a_run_of_decodes_reads_one_more_token_a_sequence_each_step() -> None:
    run = LAW.decode_run(2, 90)
    # The floor of 10.4 ms holds until 3 + 2 + 0.05 (90 + 2 j) ms is above it: for 9 steps.
    assert run.floor_steps == 9
    assert run.elapsed(9) == pytest.approx(9 * 10.4e-3)
    assert run.elapsed(11) == pytest.approx(9 * 10.4e-3 + 10.4e-3 + 10.5e-3)


def step_seconds(run: DecodeRun, step: int) -> float:
    return max(run.floor, run.start + run.slope * step)


@st.composite
def runs(draw: st.DrawFn) -> DecodeRun:
    floor = draw(st.floats(1e-4, 0.05))
    start = draw(st.one_of(st.just(floor), st.floats(0.0, 0.1)))
    slope = draw(st.one_of(st.just(0.0), st.floats(1e-9, 1e-2)))
    return DecodeRun(floor, start, slope)


@settings(max_examples=300, deadline=None)
@given(runs(), st.integers(0, 500))
def test_elapsed_is_the_sum_of_the_steps(run: DecodeRun, steps: int) -> None:
    expected = math.fsum(step_seconds(run, step) for step in range(steps))
    assert run.elapsed(steps) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=300, deadline=None)
@given(runs(), st.integers(0, 300), st.floats(0.0, 1.0, exclude_max=True))
def test_steps_within_counts_complete_steps(run: DecodeRun, steps: int, share: float) -> None:
    ends = [0.0, *accumulate(step_seconds(run, step) for step in range(steps + 1))]
    # Between the end of one step and that of the next; at the ends themselves rounding decides.
    within = ends[steps] + (ends[steps + 1] - ends[steps]) * min(max(share, 1e-6), 1.0 - 1e-6)
    assert run.steps_within(within) == steps


@settings(max_examples=300, deadline=None)
@given(runs(), st.integers(0, 100_000))
def test_steps_within_is_consistent_with_elapsed_to_the_last_bit(
    run: DecodeRun, steps: int
) -> None:
    ends = run.elapsed(steps)
    assert run.steps_within(ends) == steps
    if steps:
        assert run.steps_within(math.nextafter(ends, 0.0)) == steps - 1
