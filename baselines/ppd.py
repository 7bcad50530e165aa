"""PPD: short appends are prefilled where they are decoded, longer ones where it costs less.

Source: arXiv 2603.13358; github.com/freelulul/vllm-ppd, ``ppd_decision_engine.py`` (2026). Turn 1
goes through a prefiller. A later turn with fewer than 512 new tokens is prefilled by its decoder.
For a longer one the engine compares both ways in a table of benchmark results and stays local if

    w_ttft (TTFT_PD - TTFT_PPD) / TTFT_PD - w_tpot (TPOT_PPD - TPOT_PD) / TPOT_PD > 0

with both weights 1. A prefiller computes again what it does not hold of the history.

What differs: the table has one entry for each class of context, class of input to output ratio, and
load in requests/s. Here the site's profile gives the same four times for the turn itself, from the
queues and the batch that the ledger shows; TPOT_PPD is that of the turns decoded beside the
prefill, which it stalls. The table takes the turn's output from the data set, which nobody can
know; here it is the mean output of finished turns.
"""

from __future__ import annotations

from conserve_gym.baselines.baseline import Baseline, Parameter
from conserve_gym.baselines.per_turn import PerTurn
from conserve_gym.baselines.turn_costs import TurnCosts
from conserve_gym.observation import Observation
from conserve_gym.policy import Reads
from conserve_gym.site import Site


class Ppd(PerTurn):
    """Appends prefills to decoders.

    Args:
        site: The cluster.
        tokens: New tokens below which a later turn always stays local.
        w_ttft: Weight of the relative gain in TTFT.
        w_tpot: Weight of the relative loss in TPOT.
    """

    def __init__(self, site: Site, tokens: int, w_ttft: float, w_tpot: float) -> None:
        """Take threshold and weights."""
        super().__init__("ppd")
        self._costs = TurnCosts(site, pulls_history=False)
        self._tokens = tokens
        self._w_ttft = w_ttft
        self._w_tpot = w_tpot

    def stays(self, observation: Observation, prefill_at: int, decode_at: int) -> bool:
        """Whether the turn is prefilled by its decoder."""
        if observation["turn"] == 0:
            return False
        if observation["new"] < self._tokens:
            return True
        costs = self._costs
        remote_s = costs.remote_ttft_s(observation, prefill_at, decode_at)
        gain = 1.0 - costs.local_ttft_s(observation, decode_at) / remote_s
        stall_s = costs.stall_s(observation, decode_at, costs.local(observation, decode_at))
        tpot_s = costs.decode_step_s(observation, decode_at)
        loss = stall_s / max(observation["output_mean"], 1.0) / tpot_s
        return self._w_ttft * gain - self._w_tpot * loss > 0.0


BASELINES = {
    "ppd": Baseline(
        Ppd,
        Reads.BOOKKEEPING,
        "arXiv 2603.13358 and github.com/freelulul/vllm-ppd (2026)",
        {
            "tokens": Parameter(512, 16, 32_768, logarithmic=True),
            "w_ttft": Parameter(1.0, 0.05, 20.0, logarithmic=True),
            "w_tpot": Parameter(1.0, 0.05, 20.0, logarithmic=True),
        },
    )
}
