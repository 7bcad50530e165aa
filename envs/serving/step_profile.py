"""Step times of an engine, as its operator would have profiled them.

They are the serving model's own laws: rules that need a profile are given a perfect one.
"""

from __future__ import annotations

from collections.abc import Hashable

from conserve_gym.costs import EngineCosts, fitted
from conserve_gym.envs.serving.hardware import Hardware
from conserve_gym.envs.serving.step_time import StepTime


class StepProfile:
    """The step law of an engine with its token budget.

    Args:
        hardware: Tier of the engine.
        token_budget: Tokens that a step may carry.
    """

    def __init__(self, hardware: Hardware, token_budget: int) -> None:
        """Prepare the law."""
        self.token_budget = token_budget
        self.step_s = StepTime(hardware).step

    def prefill_s(self, new_tokens: int, context_tokens: int) -> float:
        """Return the seconds of a prompt alone on the engine, in chunks of its token budget."""
        seconds, end = 0.0, context_tokens + new_tokens
        while context_tokens < end:
            chunk = min(end - context_tokens, self.token_budget)
            seconds += self.step_s(chunk, context_tokens)
            context_tokens += chunk
        return seconds


_FITTED: dict[tuple[Hashable, ...], EngineCosts] = {}


def costs_of(hardware: Hardware, token_budget: int) -> EngineCosts:
    """Return the costs that are fitted to an engine's profile."""
    law = (hardware.prefill, hardware.decode, hardware.mixed, hardware.overhead, token_budget)
    if law not in _FITTED:
        _FITTED[law] = fitted(StepProfile(hardware, token_budget))
    return _FITTED[law]
