"""Decoding prefiller: prefill engines that decode a little, and are bypassed when they are busy.

Between the paper's ConServe and its four-engine variant (``adaptive_disagg_oracle`` of
github.com/jerryding95/conserve at 2a8c3bc): an engine that the cluster sets apart for prefill
decodes too, up to a share of its KV, and a conversation whose prompt would find too many prompt
tokens waiting there is prefilled where it will be decoded. TaiChi (arXiv 2508.01989) makes prefill-
and decode-heavy engines of one fleet like that, by chunk sizes and predicted TTFT; here every
engine has the budget of mixed ones, and both thresholds stand for themselves. Neither is published.

Where a cluster sets no engine apart, every engine prefills what it decodes.
"""

from __future__ import annotations

from collections.abc import Sequence

from conserve_gym import rules
from conserve_gym.baselines.baseline import Baseline, Parameter
from conserve_gym.deployment import Deployment
from conserve_gym.observation import Observation
from conserve_gym.placement import Placement
from conserve_gym.policy import Reads


class DecodingPrefiller:
    """Decodes where most KV is free, of which prefill engines lend but a share.

    Args:
        prefillers: Engines that prefill for the others.
        kv_share: Share of their KV that conversations decoded there may hold.
        backlog_tokens: Prompt tokens waiting at an engine above which it is bypassed.
    """

    def __init__(self, prefillers: Sequence[int], *, kv_share: float, backlog_tokens: int) -> None:
        """Let every engine do both."""
        self.name = "decoding_prefiller"
        self.deployment = Deployment(all_mixed=True)
        self._prefillers = prefillers
        self._kv_share = kv_share
        self._backlog_tokens = backlog_tokens

    def reset(self, seed: int) -> None:
        """Keep no state."""

    def decide(self, observation: Observation) -> Placement:
        """Choose the decoder, and prefill there or at the prefill engine that waits least."""
        decode_at = self._decoder(observation)
        if decode_at in self._prefillers or not self._prefillers:
            return Placement(decode_at, decode_at)
        prefill_at = rules.least_waiting(observation, self._prefillers)
        backlog = observation.of_engine("prompt_in_flight", prefill_at)
        return Placement(decode_at if backlog > self._backlog_tokens else prefill_at, decode_at)

    def _decoder(self, observation: Observation) -> int:
        """Return the engine with most KV to lend; where none has enough, that with most free."""
        to_lend = observation.free_kv_tokens.copy()
        for engine in self._prefillers:
            capacity = observation.fleet.kv_capacity_tokens[engine]
            to_lend[engine] -= (1.0 - self._kv_share) * capacity
        engine = max(observation.fleet.decoders, key=to_lend.tolist().__getitem__)
        if to_lend[engine] < observation["prompt"]:
            return rules.most_free_decoder(observation)
        return engine


BASELINES = {
    "decoding_prefiller": Baseline(
        lambda site, **parameters: DecodingPrefiller(site.prefillers, **parameters),
        Reads.BOOKKEEPING,
        "after arXiv 2508.01989",
        {
            "kv_share": Parameter(0.5, 0.0, 1.0, most=1.0),
            "backlog_tokens": Parameter(32_768, 1024, 262_144, logarithmic=True),
        },
    )
}
