"""What an operator has profiled: step times of engines, and moves between them."""

from __future__ import annotations

from typing import Protocol


class EngineProfile(Protocol):
    """Step times of one engine, as its operator has profiled them.

    Attributes:
        token_budget: Tokens that a step may carry (vLLM's ``max_num_batched_tokens``).
    """

    token_budget: int

    def step_s(
        self, prompt_tokens: int, context_tokens: int, sequences: int = 0, kv_tokens: int = 0
    ) -> float:
        """Return the seconds of one step.

        Args:
            prompt_tokens: Prompt tokens in it; 0 for a step of decodes only.
            context_tokens: Cached tokens that they come after.
            sequences: Turns that decode in it.
            kv_tokens: KV tokens that these read.
        """

    def prefill_s(self, new_tokens: int, context_tokens: int) -> float:
        """Return the seconds of a prompt alone on the engine, in chunks of its token budget.

        Args:
            new_tokens: Prompt tokens to compute.
            context_tokens: Cached tokens that they come after.
        """


class NetworkProfile(Protocol):
    """Seconds of KV moves that have their wire to themselves."""

    def transfer_s(self, source: int, target: int, tokens: int) -> float:
        """Return how long the KV of ``tokens`` tokens takes from one engine to another."""
