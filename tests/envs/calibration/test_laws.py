"""The law on tables is the law of single steps."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_episodes import hardware

from conserve_gym.envs.calibration.laws import step_ms
from conserve_gym.envs.calibration.steps import Steps
from conserve_gym.envs.serving.step_time import StepTime


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    prompt=st.integers(0, 3000),
    context=st.integers(0, 50_000),
    sequences=st.integers(0, 300),
    kv_tokens=st.integers(0, 500_000),
)
def test_a_row_takes_as_long_as_the_step(
    seed: int, prompt: int, context: int, sequences: int, kv_tokens: int
) -> None:
    tier = hardware(random.Random(seed))
    if not prompt:
        context, sequences = 0, max(sequences, 1)
    if not sequences:
        kv_tokens = 0
    seconds = StepTime(tier).step(prompt, context, sequences, kv_tokens)
    row = Steps.of(prompt, context, sequences, kv_tokens, 1.0)
    ms = step_ms(row, tier.prefill, tier.decode, tier.mixed, tier.overhead)
    assert ms == pytest.approx([1e3 * seconds], rel=1e-12)
