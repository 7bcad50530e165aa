"""Length thresholds: a prompt goes to a prefiller if its decoder lacks many tokens of it.

Prefillers keep the prompts that they have computed, and compute again what they do not hold of a
conversation: its outputs, and everything if another prefiller had its last turn.

- ``dynamo_classic``: NVIDIA Dynamo 0.2, ``PyDisaggregatedRouter`` (``examples/llm``): remote if
  prompt less prefix hit > ``max_local_prefill_length`` (1,000) and ``prefill_queue_size`` <
  ``max_prefill_queue_size`` (2). Its prefill workers take one prompt at a time from one queue; here
  prompts are sent at once, so what waits is all but one of each prefiller's.
- ``llm_d``: ``prefix-based-pd-decider`` of github.com/llm-d/llm-d-router: remote if the tokens that
  the decoder has not cached are at least ``nonCachedTokens``. The plugin's own default, 0, turns
  disaggregation off; ``deploy/config/pd-epp-config.yaml`` ships 16. It estimates tokens as
  characters / 4; here they are counted.
"""

from __future__ import annotations

from conserve_gym.baselines.baseline import Baseline, Parameter
from conserve_gym.baselines.per_turn import PerTurn, uncached_tokens, waiting_prompts
from conserve_gym.observation import Observation
from conserve_gym.policy import Reads


class DynamoClassic(PerTurn):
    """Sends long prompts to a prefiller while few wait there.

    Args:
        tokens: Uncached tokens above which a prompt goes to a prefiller.
        queue: Waiting prompts, over all prefillers, from which none does.
    """

    def __init__(self, tokens: int, queue: int) -> None:
        """Take both limits."""
        super().__init__("dynamo_classic")
        self._tokens = tokens
        self._queue = queue

    def stays(self, observation: Observation, prefill_at: int, decode_at: int) -> bool:
        """Whether the prompt is short, or too many wait."""
        prefillers = observation.fleet.prefillers_for(decode_at)
        queue = sum(max(waiting_prompts(observation, engine) - 1, 0) for engine in prefillers)
        return uncached_tokens(observation, decode_at) <= self._tokens or queue >= self._queue


class LlmD(PerTurn):
    """Sends prompts to a prefiller of which the decoder lacks much.

    Args:
        tokens: Uncached tokens from which a prompt goes to a prefiller; 0 keeps all local.
    """

    def __init__(self, tokens: int) -> None:
        """Take the threshold."""
        super().__init__("llm_d")
        self._tokens = tokens

    def stays(self, observation: Observation, prefill_at: int, decode_at: int) -> bool:
        """Whether the decoder has enough of the prompt."""
        return self._tokens == 0 or uncached_tokens(observation, decode_at) < self._tokens


BASELINES = {
    "dynamo_classic": Baseline(
        lambda site, tokens, queue: DynamoClassic(tokens, queue),
        Reads.BOOKKEEPING,
        "github.com/ai-dynamo/dynamo 0.2, disagg_router.py (2025)",
        {
            "tokens": Parameter(1000, 16, 32_768, logarithmic=True),
            "queue": Parameter(2, 1, 32, logarithmic=True),
        },
    ),
    "llm_d": Baseline(
        lambda site, tokens: LlmD(tokens),
        Reads.BOOKKEEPING,
        "github.com/llm-d/llm-d-router, prefix_based_pd_decider.go and pd-epp-config.yaml (2026)",
        {"tokens": Parameter(16, 1, 32_768, logarithmic=True)},
    ),
}
