"""What work costs on an engine, in a few coefficients that its operator has fitted to profiles."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from conserve_gym.profiles import EngineProfile

_NEW = (512, 1024, 2048, 4096, 8192, 16_384, 32_768)
_CONTEXT = (0, 4096, 16_384, 65_536)
_SEQUENCES = (1, 4, 16, 64)
_HELD = (1024, 8192, 32_768)  # KV tokens a sequence


class EngineCosts(NamedTuple):
    """Coefficients of an engine's step times, in seconds.

    Attributes:
        token_s: A new prompt token.
        attention_s: A new prompt token for each token that it attends to.
        least_s: The shortest step with a prompt.
        step_s: A step of decodes.
        sequence_s: Each turn in it.
        kv_token_s: Each KV token that it reads.
    """

    token_s: float
    attention_s: float
    least_s: float
    step_s: float
    sequence_s: float
    kv_token_s: float

    def prefill_s(self, new: float, context: float) -> float:
        """Return the seconds of a lone prompt.

        Args:
            new: Tokens to compute.
            context: Cached tokens that they come after.
        """
        seconds = new * (self.token_s + self.attention_s * (context + new / 2))
        return max(seconds, self.least_s)

    def decode_step_s(self, sequences: float, kv_tokens: float) -> float:
        """Return the seconds of a step of decodes that reads so many KV tokens."""
        return self.step_s + self.sequence_s * sequences + self.kv_token_s * kv_tokens


# Those of Qwen3-0.6B on an A40 at 300 W (conf/hardware/a40_qwen3_0.6b_300w.yaml).
UNKNOWN = EngineCosts(2.0e-5, 2.7e-9, 0.0144, 0.0113, 0.0, 1.66e-7)
"""Stands for an engine without a profile: then only ratios between engines are wrong."""


class MoveCosts(NamedTuple):
    """Coefficients of a lone move of KV from one engine to another, in seconds.

    Attributes:
        latency_s: What every move takes.
        token_s: Each token's KV.
    """

    latency_s: float = 0.0
    token_s: float = 0.0


def fitted(profile: EngineProfile) -> EngineCosts:
    """Return the coefficients with the least squared relative error on an engine's profile.

    Prompts have 512 to 32,768 new tokens after up to 65,536 cached ones, batches of decodes 1 to 64
    turns of 1,024 to 32,768 KV tokens.
    """
    batches = [(turns, held * turns) for turns in _SEQUENCES for held in _HELD]
    token, attention = fitted_prefill(profile)
    steps = [profile.step_s(0, 0, *batch) for batch in batches]
    step, sequence, kv_token = _least_squares([(1, *batch) for batch in batches], steps)
    if sequence < 0.0:  # of steps that are bound by their launch it is lost in the rest
        step, kv_token = _least_squares([(1, held) for _, held in batches], steps)
        sequence = 0.0
    return EngineCosts(token, attention, profile.step_s(1, 0), step, sequence, kv_token)


def fitted_prefill(profile: EngineProfile) -> tuple[float, float]:
    """Return the seconds of a new prompt token, and of each token that it attends to."""
    prompts = [(new, context) for new in _NEW for context in _CONTEXT]
    token, attention = _least_squares(
        [(new, new * (context + new / 2)) for new, context in prompts],
        [profile.prefill_s(*prompt) for prompt in prompts],
    )
    return token, attention


def _least_squares(rows: list[tuple[float, ...]], seconds: list[float]) -> list[float]:
    relative = np.array(rows) / np.array(seconds)[:, np.newaxis]
    coefficients: list[float] = np.linalg.lstsq(relative, np.ones(len(rows)))[0].tolist()
    return coefficients
