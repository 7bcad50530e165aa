"""Checks of step laws: rows that were left out of their fits, and what was derived."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from conserve_gym.agents.fidelity_check import (
    A40_SCAN_US,
    AIC,
    CONSERVE,
    GRID,
    RTX_POOL,
    SIM,
    Check,
    public,
    tier,
)
from conserve_gym.envs.calibration import derive, published
from conserve_gym.envs.calibration.fit import Laws, fit, holdout_errors_pct
from conserve_gym.envs.calibration.laws import step_ms
from conserve_gym.envs.calibration.steps import FloatArray, Steps
from conserve_gym.envs.serving.hardware import Hardware
from conserve_gym.envs.serving.power_cap import capped

_SYSTEMS = {
    "a100_80gb": "a100_sxm",
    "h100": "h100_sxm",
    "h200": "h200_sxm",
    "l40s": "l40s",
    "rtx_pro_6000": "rtx_pro_6000_server",
}
_MODELS = {
    "qwen3_0.6b": "Qwen/Qwen3-0.6B",
    "qwen3_8b": "Qwen/Qwen3-8B",
    "llama3.1_8b": "meta-llama/Meta-Llama-3.1-8B",
}


def a40_steps(folder: Path) -> Iterator[Check]:
    """Laws of the A40, fitted without one prompt length or one batch size."""
    decodes = published.a40_decode(folder)
    for cap_w in (300, 200):
        steps = Steps.concatenate([published.a40_prefill(folder, cap_w), decodes])
        prompts = steps.prompt_tokens > 0
        errors = holdout_errors_pct(steps, steps.prompt_tokens, prompts, A40_SCAN_US)
        yield _error(f"A40 {cap_w} W prefill, one length left out", errors, 3.0, CONSERVE)
        if cap_w == 300:
            errors = holdout_errors_pct(steps, steps.sequences, ~prompts, A40_SCAN_US)
            yield _error("A40 decode, one batch size left out", errors, 5.0, GRID)
        shipped = tier(f"a40_qwen3_0.6b_{cap_w}w")
        # The grid was measured at 300 W.
        refit = steps if cap_w == 300 else steps.where(prompts)
        yield _as_shipped(f"A40 {cap_w} W", refit, fit(steps, A40_SCAN_US), shipped, CONSERVE)
    hits = published.a40_cache_hits(folder)
    shipped = tier("a40_qwen3_0.6b_300w")
    ms = step_ms(hits, shipped.prefill, shipped.decode, shipped.mixed)
    errors = 100.0 * np.abs(ms / hits.ms - 1.0)
    yield _error(
        "A40 cached prompts, whose wall time has client work in it", errors, None, CONSERVE
    )
    by_rule = capped(tier("a40_qwen3_0.6b_300w"), 200.0)
    steps = published.a40_prefill(folder, 200)
    ms = step_ms(steps, by_rule.prefill, by_rule.decode, by_rule.mixed)
    errors = 100.0 * np.abs(ms / steps.ms - 1.0)
    name = "A40 prefill at 200 W by the cap rule, whose exponent these rows gave"
    yield _error(name, errors, None, CONSERVE)


def mixed_steps(folder: Path) -> Iterator[Check]:
    """Laws of the RTX PRO 6000 with Llama-3.1-8B, fitted without one chunk length or batch size."""
    everything = published.mixed_steps(folder)
    steps = everything.where(everything.kv_tokens <= RTX_POOL)
    mixed = (steps.prompt_tokens > 0) & (steps.sequences > 0)
    name = "RTX PRO 6000 Llama-3.1-8B mixed"
    errors = holdout_errors_pct(steps, steps.prompt_tokens, mixed)
    yield _error(f"{name}, one chunk length left out", errors, 8.0, SIM)
    errors = holdout_errors_pct(steps, steps.sequences, mixed)
    yield _error(f"{name}, one batch size left out", errors, 8.0, SIM)
    laws = fit(steps)
    beyond = everything.mixed
    errors = 100.0 * np.abs(laws.step_ms(beyond) / beyond.ms - 1.0)
    yield _error(f"{name}, also what fits no memory", errors, 8.0, SIM)
    prompts, decodes = (steps.sequences == 0), (steps.prompt_tokens == 0)
    errors = holdout_errors_pct(steps, steps.prompt_tokens, prompts)
    yield _error("RTX PRO 6000 Llama-3.1-8B prefill, one length left out", errors, 5.0, SIM)
    errors = holdout_errors_pct(steps, steps.sequences, decodes)
    yield _error("RTX PRO 6000 Llama-3.1-8B decode, one batch size left out", errors, 6.0, SIM)
    shipped = tier("rtx_pro_6000_llama3.1_8b")
    yield _as_shipped("RTX PRO 6000 Llama-3.1-8B", steps, laws, shipped, SIM)


def other_tiers(folder: Path) -> Iterator[Check]:
    """Laws of the other tiers, fitted without one prompt length or one context length."""
    for gpu, system in _SYSTEMS.items():
        for model, called in _MODELS.items():
            steps = published.aic(folder, system, called)
            prompts = steps.prompt_tokens > 0
            errors = holdout_errors_pct(steps, steps.prompt_tokens, prompts, 0.0)
            yield _error(f"{gpu} {model} prefill, one length left out", errors, 5.0, AIC)
            lengths = np.round(steps.kv_tokens / np.maximum(steps.sequences, 1.0))
            errors = holdout_errors_pct(steps, lengths, ~prompts, 0.0)
            yield _error(f"{gpu} {model} decode, one context left out", errors, 6.0, AIC)
            errors = holdout_errors_pct(steps, steps.sequences, ~prompts, 0.0)
            yield _error(f"{gpu} {model} decode, one batch size left out", errors, None, AIC)
            name = f"{gpu}_{model}"
            if name == "rtx_pro_6000_llama3.1_8b":
                continue  # shipped as measured, see mixed_steps
            shipped = tier(name)
            laws = fit(steps, 0.0)
            # These rows know no scan, the shipped laws do.
            plain = replace(shipped, prefill=replace(shipped.prefill, scan_us=0.0))
            yield _as_shipped(f"{gpu} {model}", steps, laws, plain, AIC)
            with_scan = step_ms(steps, shipped.prefill, shipped.decode, shipped.mixed)[prompts]
            errors = 100.0 * np.abs(with_scan / steps.ms[prompts] - 1.0)
            yield _error(f"{gpu} {model} prefill with the scan these rows lack", errors, None, AIC)


def derived_tiers(folder: Path) -> Iterator[Check]:
    """Laws from public figures, with the efficiencies of the other GPUs."""
    gpus = {name: public("gpu", name, derive.Gpu) for name in _SYSTEMS}
    models = {name: public("model", name, derive.Model) for name in _MODELS}
    steps = {
        (gpu, model): published.aic(folder, _SYSTEMS[gpu], _MODELS[model])
        for gpu in gpus
        for model in models
    }
    fitted = {key: fit(table, 0.0) for key, table in steps.items()}
    # H100 and H200 have one chip.
    same_chip = {"h100": ("h100", "h200"), "h200": ("h100", "h200")}
    for gpu in gpus:
        others = derive.efficiencies(
            (gpus[other], models[model], laws)
            for (other, model), laws in fitted.items()
            if other not in same_chip.get(gpu, (gpu,))
        )
        for phase in ("prefill", "decode"):
            for scan in (True, False) if phase == "prefill" else (True,):
                errors = []
                for model in models:
                    laws = derive.laws(gpus[gpu], models[model], others)
                    if not scan:
                        laws = laws._replace(prefill=replace(laws.prefill, scan_us=0.0))
                    table = steps[gpu, model]
                    table = table.of_prompts if phase == "prefill" else table.of_decodes
                    errors.append(100.0 * np.abs(laws.step_ms(table) / table.ms - 1.0))
                name = f"{gpu} {phase}, derived"
                name += "" if scan else ", without the scan these rows lack"
                yield _error(name, np.concatenate(errors), None, AIC)
    laws = derive.laws(public("gpu", "a40", derive.Gpu), models["qwen3_0.6b"])
    for phase, table in (
        ("prefill", published.a40_prefill(folder, 300)),
        ("decode", published.a40_decode(folder)),
    ):
        off = 100.0 * np.abs(laws.step_ms(table) / table.ms - 1.0)
        yield _error(f"A40 {phase}, derived; it was measured eagerly", off, None, CONSERVE)


def _error(name: str, errors: FloatArray, limit: float | None, source: str) -> Check:
    return Check(name, float(errors.mean()), limit, "%", source)


def _as_shipped(name: str, steps: Steps, laws: Laws, shipped: Hardware, source: str) -> Check:
    """Say how far the packaged coefficients, rounded as they are, predict from a fresh fit."""
    packaged = step_ms(steps, shipped.prefill, shipped.decode, shipped.mixed)
    off = 100.0 * float(np.abs(packaged / laws.step_ms(steps) - 1.0).max())
    return Check(
        f"{name}: packaged coefficients against a fresh fit, largest", off, 1.0, "%", source
    )
