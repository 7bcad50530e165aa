"""A conversation alone on one engine: what its latencies are normalised by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.envs.serving.hardware import Hardware
from conserve_gym.envs.serving.step_time import StepTime
from conserve_gym.envs.workloads.conversation import Turn


class Standalone(NamedTuple):
    """Latencies of a conversation that has an engine to itself, its own gaps included.

    Attributes:
        ttfet_s: First token of the last turn minus arrival.
        last_tbt_s: Mean gap between tokens within the last turn; 0 with one token.
        e2e_s: Last token minus arrival.
    """

    ttfet_s: float
    last_tbt_s: float
    e2e_s: float


class StandaloneEngine:
    """Computes standalone latencies with the engine's own step law, in closed form.

    Args:
        hardware: Tier of the engine.
        token_budget: Tokens that a step may carry.
        block_tokens: Tokens in a KV block; the cache is reused in whole blocks.
    """

    def __init__(self, hardware: Hardware, token_budget: int, block_tokens: int) -> None:
        """Prepare the step law."""
        self._time = StepTime(hardware)
        self._request_s = hardware.overhead.request_ms * 1e-3
        self._token_budget = token_budget
        self._block_tokens = block_tokens

    @classmethod
    def of(cls, spec: ClusterSpec) -> StandaloneEngine:
        """Return the lone engine by which a cluster's latencies are normalised."""
        return cls(
            spec.hardware[spec.standalone], spec.mixed_token_budget, spec.engines[0].block_tokens
        )

    def latencies(self, turns: Sequence[Turn]) -> Standalone:
        """Return the latencies of a conversation with these turns."""
        clock = first_token = -turns[0].gap_s
        resident = 0
        for input_tokens, new_tokens, output_tokens, gap_s, _, _, not_before_s in turns:
            clock = max(clock + gap_s, not_before_s) + self._request_s
            reusable = min(resident, input_tokens - new_tokens, input_tokens - 1)
            computed = reusable // self._block_tokens * self._block_tokens
            while computed < input_tokens:
                chunk = min(input_tokens - computed, self._token_budget)
                clock += self._time.step(chunk, computed)
                computed += chunk
            first_token = clock
            if output_tokens > 1:
                clock += self._time.decode_run(1, input_tokens).elapsed(output_tokens - 1)
            resident = input_tokens + output_tokens - 1
        between = turns[-1].output_tokens - 1
        return Standalone(first_token, (clock - first_token) / between if between else 0.0, clock)
