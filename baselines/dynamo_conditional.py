"""Dynamo's conditional disaggregation: a prompt skips the prefiller when that pays.

NVIDIA Dynamo, ``--router-conditional-disagg`` (experimental; router documentation and
github.com/ai-dynamo/dynamo pull requests 11357 and 11718, 2026). The effective prompt is what the
chosen decoder has not cached. A prompt stays with the decoder

- ``isl_bounding``: if it is effectively below 2,048 tokens and below 0.7 of its full length;
- ``prefill_load``: if the chosen prefiller is busy: its prompt tokens in flight exceed a multiple
  of its ``max_num_batched_tokens``. The multiple has no default of its own; it is that of
  ``--router-queue-threshold``, 16 (2 and 4 in earlier versions);
- ``isl_or_load``: if either holds.

Dynamo's optional guard against busy decoders is off by default and left out. Its router chooses
decoders by load and cache; here a conversation stays where its KV is.
"""

from __future__ import annotations

from conserve_gym.baselines.baseline import Baseline, Parameter
from conserve_gym.baselines.per_turn import PerTurn, uncached_tokens
from conserve_gym.observation import Observation
from conserve_gym.policy import Reads
from conserve_gym.site import Site

_SOURCE = "github.com/ai-dynamo/dynamo, conditional disaggregation (2026)"
_SHORT = {
    "tokens": Parameter(2048, 16, 32_768, logarithmic=True),
    "ratio": Parameter(0.7, 0.05, 1.0, most=1.0),
}
_BUSY = {"busy": Parameter(16.0, 0.25, 64.0, logarithmic=True)}


class DynamoConditional(PerTurn):
    """Keeps prompts that are effectively short, or whose prefiller is busy.

    Args:
        name: How the policy is called.
        site: The cluster.
        tokens: Effective tokens below which a prompt may stay; 0 looks at no lengths.
        ratio: Share of the full prompt below which they must be.
        busy: Token budgets in flight above which a prefiller is busy; None looks at no load.
    """

    def __init__(
        self, name: str, site: Site, tokens: int = 0, ratio: float = 0.0, busy: float | None = None
    ) -> None:
        """Take the limits."""
        super().__init__(name)
        self._site = site
        self._tokens = tokens
        self._ratio = ratio
        self._busy = busy

    def stays(self, observation: Observation, prefill_at: int, decode_at: int) -> bool:
        """Whether the prompt is short or the prefiller busy."""
        return self._is_short(observation, decode_at) or self._is_busy(observation, prefill_at)

    def _is_short(self, observation: Observation, decode_at: int) -> bool:
        effective = uncached_tokens(observation, decode_at)
        return effective < self._tokens and effective < self._ratio * observation["prompt"]

    def _is_busy(self, observation: Observation, prefill_at: int) -> bool:
        if self._busy is None:
            return False
        in_flight = observation.of_engine("prompt_in_flight", prefill_at)
        return bool(in_flight > self._busy * self._site.engines[prefill_at].token_budget)


BASELINES = {
    "dynamo_isl": Baseline(
        lambda site, tokens, ratio: DynamoConditional("dynamo_isl", site, tokens, ratio),
        Reads.BOOKKEEPING,
        f"{_SOURCE}: isl_bounding",
        _SHORT,
    ),
    "dynamo_load": Baseline(
        lambda site, busy: DynamoConditional("dynamo_load", site, busy=busy),
        Reads.BOOKKEEPING,
        f"{_SOURCE}: prefill_load",
        _BUSY,
    ),
    "dynamo_isl_or_load": Baseline(
        lambda site, tokens, ratio, busy: DynamoConditional(
            "dynamo_isl_or_load", site, tokens, ratio, busy
        ),
        Reads.BOOKKEEPING,
        f"{_SOURCE}: isl_or_load",
        {**_SHORT, **_BUSY},
    ),
}
