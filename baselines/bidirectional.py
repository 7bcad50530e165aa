"""Bidirectional KV: every turn's prompt at a prefiller, which pulls the history back first.

vLLM's NIXL connector with ``bidirectional_kv_xfer`` (github.com/vllm-project/vllm pull request
32553, 2026) and its multi-turn proxy: each turn is prefilled by a prefiller, which copies what it
lacks of the conversation's KV from the last decoder, computes the new tokens alone, and sends the
KV on.

What differs: vLLM's ``kv_recompute_threshold``, 64 tokens of history below which it computes again,
is left out, as histories are longer. Its decoders keep a finished turn's KV for 480 s
(``decoder_kv_blocks_ttl``); here it stays until it is evicted, and what is gone is computed again.

``conserve_offload`` pulls history too, but pins a conversation: its decoder and the KV that the
door counts there stay its own between turns, and only turns that append 512 tokens or more take the
way over the prefiller. Here every turn does by default, and between turns nothing is reserved.
"""

from __future__ import annotations

from conserve_gym.baselines.baseline import Baseline, Parameter
from conserve_gym.baselines.per_turn import PerTurn
from conserve_gym.observation import Observation
from conserve_gym.policy import Reads


class Bidirectional(PerTurn):
    """Prefills every turn at a prefiller.

    Args:
        tokens: New tokens below which a turn is prefilled where it is decoded; vLLM's proxy has
            no such limit.
    """

    def __init__(self, tokens: int) -> None:
        """Let prefillers pull history."""
        super().__init__("bidirectional", pulls_history=True)
        self._tokens = tokens

    def stays(self, observation: Observation, prefill_at: int, decode_at: int) -> bool:
        """Whether the turn brings few new tokens."""
        return observation["new"] < self._tokens


BASELINES = {
    "bidirectional": Baseline(
        lambda site, tokens: Bidirectional(tokens),
        Reads.BOOKKEEPING,
        "github.com/vllm-project/vllm pull request 32553 (2026)",
        {"tokens": Parameter(0, 0, 8192)},
    )
}
