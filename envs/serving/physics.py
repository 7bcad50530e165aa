"""What no GPU can beat: matrix work at its peak, and every byte through its memory once."""

from __future__ import annotations

from conserve_gym.envs.serving.hardware import Hardware


def fastest_step_s(
    hardware: Hardware,
    prompt_tokens: int,
    context_tokens: int,
    sequences: int,
    kv_tokens: int,
) -> float:
    """Return the shortest time that a step can take, in seconds.

    Args:
        hardware: Tier, with the limits of its GPU and the figures of its model.
        prompt_tokens: Prompt tokens of one chunk.
        context_tokens: Cached tokens that they come after.
        sequences: Sequences decoding.
        kv_tokens: KV tokens that these read.
    """
    limits, figures = hardware.limits, hardware.figures
    attended = prompt_tokens * (context_tokens + prompt_tokens / 2) + kv_tokens
    flop = figures.gflop_per_token * 1e9 * (prompt_tokens + sequences)
    flop += figures.kflop_per_attended_token * 1e3 * attended
    read = figures.weights_gb * 1e9 + figures.kv_bytes_per_token * (context_tokens + kv_tokens)
    return max(flop / (limits.peak_tflops * 1e12), read / (limits.gb_per_s * 1e9))
