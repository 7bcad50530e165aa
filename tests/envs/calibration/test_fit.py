"""Fits find the laws that made the steps, and hold-out errors are those of rows left out."""

from __future__ import annotations

from dataclasses import astuple, replace

import numpy as np
import pytest

from conserve_gym.envs.calibration.fit import Laws, fit, holdout_errors_pct
from conserve_gym.envs.calibration.steps import CalibrationError, Steps
from conserve_gym.envs.serving.hardware import DecodeLaw, MixedLaw, PrefillLaw

LAUNCHED = Laws(
    PrefillLaw(14.0, 6.0, 0.0, 15.0, 2.7, 0.9),
    DecodeLaw(14.0, 30.0, 5.0, 50.0, 0.2),
    MixedLaw(64.0),
)
WEIGHTS = Laws(
    PrefillLaw(0.0, 2.5, 8.5, 37.0, 1.9, 0.7),
    DecodeLaw(0.0, 0.0, 11.0, 19.0, 0.09),
    MixedLaw(40.0),
)


def grid() -> Steps:
    lengths = 2.0 ** np.arange(4, 15)
    prompts = Steps.of(*(axis.ravel() for axis in np.meshgrid(lengths, [0, 1e3, 1e4])), 0, 0, 1)
    batch, context = (axis.ravel() for axis in np.meshgrid([1, 4, 16, 64, 128], lengths))
    decodes = Steps.of(0, 0, batch, batch * context, 1)
    mixed = [
        Steps.of(chunk, 512, batch, batch * context, 1) for chunk in (16.0, 128.0, 512.0, 2048.0)
    ]
    return Steps.concatenate([prompts, decodes, *mixed])


def made_by(laws: Laws, noise: float = 0.0) -> Steps:
    steps = grid()
    factors = np.random.default_rng(1).lognormal(0.0, noise, len(steps))
    return replace(steps, ms=laws.step_ms(steps) * factors)


@pytest.mark.parametrize("laws", [LAUNCHED, WEIGHTS])
def test_the_law_that_made_the_steps_is_found(laws: Laws) -> None:
    found = fit(made_by(laws))
    for found_law, law in zip(found, laws, strict=True):
        assert astuple(found_law) == pytest.approx(astuple(law), rel=0.01, abs=0.05)
    steps = grid()
    assert found.step_ms(steps) == pytest.approx(laws.step_ms(steps), rel=0.002)


def test_noise_leaves_an_error_of_its_size() -> None:
    steps = made_by(WEIGHTS, noise=0.05)
    errors = holdout_errors_pct(steps, steps.prompt_tokens, steps.prompt_tokens > 0)
    assert len(errors) == (steps.prompt_tokens > 0).sum()
    assert errors.mean() == pytest.approx(5.0 * np.sqrt(2 / np.pi), rel=0.15)


def test_rows_that_are_judged_were_left_out() -> None:
    # One length takes ten times as long as the law says: a fit that had seen it would err less.
    steps = made_by(WEIGHTS)
    odd = (steps.prompt_tokens == 256) & (steps.sequences == 0)
    steps = replace(steps, ms=np.where(odd, 10.0 * steps.ms, steps.ms))
    errors = holdout_errors_pct(steps, steps.prompt_tokens, odd)
    assert errors == pytest.approx([90.0, 90.0, 90.0], abs=0.5)


def test_a_scan_that_is_known_is_kept() -> None:
    steps = made_by(WEIGHTS)
    without_context = steps.where(steps.context_tokens == 0)
    assert fit(without_context).prefill.scan_us == 0.0
    assert fit(without_context, scan_us=0.7).prefill.scan_us == 0.7


def test_without_mixed_steps_the_tile_is_carried_over() -> None:
    steps = made_by(WEIGHTS)
    alone = steps.where((steps.prompt_tokens == 0) | (steps.sequences == 0))
    assert fit(alone).mixed.tile_queries == 64.0


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        ("prompts", "there are prompts of 3 lengths; at least 4 are needed"),
        ("decodes", "there are decodes that read 0 different numbers of KV tokens; at least 4"),
    ],
)
def test_too_few_steps_are_refused(left_out: str, message: str) -> None:
    steps = made_by(WEIGHTS)
    prompts = steps.sequences == 0
    kept = steps.prompt_tokens <= 64 if left_out == "prompts" else prompts
    kept |= (steps.prompt_tokens == 0) if left_out == "prompts" else False
    with pytest.raises(CalibrationError, match=message):
        fit(steps.where(kept))
