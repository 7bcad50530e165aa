"""The power cap of an engine: its rule, where that comes from, and what it never does."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from examples import HARDWARE, cluster_of, engine
from hypothesis import given, settings
from hypothesis import strategies as st
from random_episodes import hardware
from scipy.optimize import minimize_scalar

from conserve_gym.envs.calibration.laws import step_ms
from conserve_gym.envs.calibration.published import a40_prefill
from conserve_gym.envs.calibration.steps import FloatArray, Steps
from conserve_gym.envs.configuration import load_scenario
from conserve_gym.envs.serving.hardware import Hardware
from conserve_gym.envs.serving.power import StepEnergy
from conserve_gym.envs.serving.power_cap import ATTENTION_EXPONENT, capped
from conserve_gym.envs.serving.step_time import StepTime
from conserve_gym.fleet import Role

MEASURED = Path(__file__).parents[4] / "shared" / "calibration"
A40 = load_scenario(["cluster=a40_1p3d_capped_decoders"]).cluster.hardware


def test_what_a_cap_slows() -> None:
    tier = capped(HARDWARE, 200.0)
    assert tier.prefill.attention_ns == pytest.approx(1000.0 * 1.25**0.95, rel=1e-12)
    assert tier.decode.kv_us == pytest.approx(50.0 * 1.25**0.05, rel=1e-12)
    assert tier.power == replace(HARDWARE.power, cap_w=200.0)
    assert "cap of 200 W carried over" in tier.provenance.source
    assert tier.provenance.holdout_error_pct == {}
    own = replace(
        tier,
        prefill=replace(tier.prefill, attention_ns=1000.0),
        decode=replace(tier.decode, kv_us=50.0),
        power=HARDWARE.power,
        provenance=HARDWARE.provenance,
    )
    assert own == HARDWARE  # nothing else


def test_the_tiers_own_cap_changes_nothing() -> None:
    assert capped(HARDWARE, 250.0) is HARDWARE
    spec = cluster_of(engine(Role.MIXED), engine(Role.MIXED, cap_w=250.0))
    assert [spec.tier(one) for one in spec.engines] == [HARDWARE, HARDWARE]
    assert spec.caveats == ()


@pytest.mark.parametrize(
    ("cap_w", "says"), [(250.5, "cap_w=250.5 is above"), (166, "cap_w=166 is below 166.667 W")]
)
def test_caps_that_cannot_be(cap_w: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        capped(HARDWARE, cap_w)


def test_an_engine_runs_under_its_cap_and_the_cluster_says_so() -> None:
    spec = cluster_of(engine(Role.PREFILL), engine(Role.DECODE, count=2, cap_w=200.0))
    assert [spec.tier(one).power.cap_w for one in spec.engines] == [250.0, 200.0]
    assert spec.caveats == ("cap by a rule measured on an A40 at 300 to 200 W: example at 200 W",)


def test_a_packaged_group_is_capped_without_a_plus() -> None:
    cluster = load_scenario(["cluster=a40_1p3d", "cluster.engines.1.cap_w=250"]).cluster
    assert [cluster.tier(one).power.cap_w for one in cluster.engines] == [300.0, 250.0]


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    share=st.floats(0.0, 1.0),
    prompt=st.integers(1, 500),
    context=st.integers(0, 500),
    sequences=st.integers(0, 20),
    kv_tokens=st.integers(0, 5000),
    steps=st.integers(1, 300),
)
def test_no_step_is_shorter_under_a_cap_and_none_uses_more_than_it(
    seed: int,
    share: float,
    prompt: int,
    context: int,
    sequences: int,
    kv_tokens: int,
    steps: int,
) -> None:
    tier = hardware(random.Random(seed))
    own_w = tier.power.cap_w
    lowest_w = max(tier.power.base_w, own_w / 1.5)
    cap_w = min(lowest_w + share * (own_w - lowest_w), own_w)
    lower = capped(tier, cap_w)
    law, slower, energy = StepTime(tier), StepTime(lower), StepEnergy(lower)
    attended = prompt * (context + prompt / 2)
    seconds = slower.with_prefill(prompt, attended, context, sequences, kv_tokens)
    assert seconds >= law.with_prefill(prompt, attended, context, sequences, kv_tokens)
    joules = energy.with_prefill(seconds, prompt, attended, context, sequences, kv_tokens)
    assert joules <= cap_w * seconds
    run = slower.decode_run(sequences + 1, kv_tokens)
    elapsed = run.elapsed(steps)
    assert elapsed >= law.decode_run(sequences + 1, kv_tokens).elapsed(steps) * (1 - 1e-12)
    assert energy.of_run(run, sequences + 1, kv_tokens, steps) <= cap_w * elapsed * (1 + 1e-12)


needs_measurements = pytest.mark.skipif(
    not MEASURED.exists(), reason="the published measurements are not beside the checkout"
)


def errors_pct(tier: Hardware, steps: Steps) -> FloatArray:
    return 100.0 * np.abs(step_ms(steps, tier.prefill, tier.decode, tier.mixed) / steps.ms - 1.0)


def best_exponent(steps: Steps) -> float:
    def cost(exponent: float) -> float:
        slowed = A40["a40_300w"].prefill.attention_ns * 1.5**exponent
        prefill = replace(A40["a40_300w"].prefill, attention_ns=slowed)
        return float(errors_pct(replace(A40["a40_300w"], prefill=prefill), steps).mean())

    return float(minimize_scalar(cost, bounds=(0.0, 2.0), method="bounded").x)


@needs_measurements
def test_the_rule_predicts_the_prefills_measured_at_200_w() -> None:
    steps = a40_prefill(MEASURED, 200)
    errors = errors_pct(capped(A40["a40_300w"], 200.0), steps)
    assert errors.mean() < 3.75
    assert errors.max() < 9.05
    assert errors_pct(A40["a40_300w"], steps).mean() > 16.0  # without the rule
    assert best_exponent(steps) == pytest.approx(ATTENTION_EXPONENT, abs=0.005)


@needs_measurements
def test_the_rule_predicts_a_length_that_is_left_out() -> None:
    steps = a40_prefill(MEASURED, 200)
    errors = []
    for length in steps.prompt_tokens:
        left_out = steps.prompt_tokens == length
        exponent = best_exponent(steps.where(~left_out))
        assert exponent == pytest.approx(ATTENTION_EXPONENT, abs=0.01)
        prefill = A40["a40_300w"].prefill
        slowed = replace(prefill, attention_ns=prefill.attention_ns * 1.5**exponent)
        tier = replace(A40["a40_300w"], prefill=slowed)
        errors.append(errors_pct(tier, steps.where(left_out))[0])
    assert np.mean(errors) < 3.85


def test_the_rule_slows_decodes_as_the_tier_of_200_w_has_it() -> None:
    decode = capped(A40["a40_300w"], 200.0).decode
    assert decode.kv_us == pytest.approx(A40["a40_200w"].decode.kv_us, rel=1e-3)
    assert replace(decode, kv_us=1.0) == replace(A40["a40_200w"].decode, kv_us=1.0)
