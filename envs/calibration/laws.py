"""The step law on whole tables at once; ``serving.step_time`` has it for single steps."""

from __future__ import annotations

import numpy as np

from conserve_gym.envs.calibration.steps import FloatArray, Steps
from conserve_gym.envs.serving.hardware import DecodeLaw, EngineOverhead, MixedLaw, PrefillLaw
from conserve_gym.envs.serving.step_time import SHARPNESS

NO_OVERHEAD = EngineOverhead(step_ms=0.0, sequence_us=0.0)


def step_ms(
    steps: Steps,
    prefill: PrefillLaw,
    decode: DecodeLaw,
    mixed: MixedLaw,
    overhead: EngineOverhead = NO_OVERHEAD,
) -> FloatArray:
    """Return the time of every step in milliseconds, shape (steps,)."""
    with_prompt = steps.prompt_tokens > 0
    decode_floor = decode.floor_ms + decode.floor_sequence_us * 1e-3 * steps.sequences
    batch = decode.sequence_us * 1e-3 * steps.sequences
    alone = decode.base_ms + decode.kv_us * 1e-3 * steps.kv_tokens

    tokens = steps.prompt_tokens + steps.sequences
    matrices = np.hypot(prefill.weights_ms, prefill.token_us * 1e-3 * tokens)
    length = np.ceil(steps.kv_tokens / np.maximum(steps.sequences, 1.0))
    scan = prefill.scan_us * 1e-3 * np.maximum(steps.context_tokens, length)
    attended = steps.prompt_tokens * (steps.context_tokens + steps.prompt_tokens / 2)
    kv_us = np.hypot(decode.kv_us, mixed.tile_queries * prefill.attention_ns * 1e-3)
    attended *= np.where(steps.prompt_tokens < prefill.tile_from, prefill.untiled, 1.0)
    attention = prefill.attention_ns * 1e-6 * attended + kv_us * 1e-3 * steps.kv_tokens
    together = prefill.base_ms + matrices + np.hypot(scan, attention)

    work = batch + together
    prompts = (prefill.floor_ms**SHARPNESS + work**SHARPNESS) ** (1.0 / SHARPNESS)
    launched = np.where(steps.sequences > 0, decode_floor, 0.0)
    engine = overhead.step_ms + overhead.sequence_us * 1e-3 * steps.sequences
    times: FloatArray = np.maximum(launched, np.where(with_prompt, prompts, batch + alone)) + engine
    return times
