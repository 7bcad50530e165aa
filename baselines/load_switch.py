"""Load switch: colocate while the load is low, disaggregate when it is high.

The rule that the paper's own curves ask for: on its four A40 Collocated is as good as ConServe or
better up to 1.25 conversations/s, and worse from 1.5 on (arXiv 2606.01839, evaluation). Nobody has
published it as a rule. The load is the KV that conversations are known to hold as a share of all
engines' capacity, or the recent arrival rate; the rate's default is the middle of that crossover,
per engine, and that of KV is ours.

Below the threshold conversations are pinned to the engine with most free KV, all engines alike.
Above it the engines that the cluster sets apart only prefill what comes, and the others decode
(ConServe's rule). Conversations stay where they are when it switches: for a while those engines
still decode what was colocated there, so that switching to and fro is worse than either. Hysteresis
keeps the noisy rate from that. Where all others are full, or a cluster sets no engine apart, the
engine with most free KV decodes, whichever it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from conserve_gym import rules
from conserve_gym.baselines.baseline import Baseline, Parameter
from conserve_gym.deployment import Deployment
from conserve_gym.observation import Observation
from conserve_gym.placement import Placement
from conserve_gym.policy import Reads

CROSSOVER_PER_ENGINE = 0.34
"""Conversations/s for each engine: 1.375 on four."""
KV_SHARE = 0.8
"""Best mean of 0.5 to 0.9, for miniswe at 1.25 to 2 conversations/s on a40_1p3d and 2 to 4 on
a40_1p7d (seeds 100 to 104)."""


class LoadSwitch:
    """Colocates below a load and disaggregates from it on.

    Args:
        prefillers: Engines that only prefill while the load is high.
        measure: What the load is: ``arrivals``, the recent rate, or ``kv``, what conversations
            are known to hold as a share of all engines' capacity.
        arrivals: Threshold in conversations/s for each engine.
        kv: Threshold as a share of capacity.
        hysteresis: Share of the threshold by which the load must fall below it before
            conversations are colocated again.
    """

    def __init__(
        self,
        prefillers: Sequence[int],
        *,
        measure: str,
        arrivals: float,
        kv: float,
        hysteresis: float,
    ) -> None:
        """Let every engine do both."""
        self.name = "load_switch"
        self.deployment = Deployment(all_mixed=True)
        self._prefillers = prefillers
        self._by_kv = measure == "kv"
        self._high = kv if self._by_kv else arrivals
        self._low = self._high * (1.0 - hysteresis)
        self._disaggregates = False

    def reset(self, seed: int) -> None:
        """Begin colocating."""
        self._disaggregates = False

    def decide(self, observation: Observation) -> Placement:
        """Choose by the load."""
        threshold = self._low if self._disaggregates else self._high
        self._disaggregates = self._load(observation) >= threshold
        if not self._disaggregates:
            return rules.place(observation, disaggregate=False)
        decoders, open_to = observation.fleet.decoders, observation.open_to
        others = [i for i in decoders if i not in self._prefillers and open_to[i]]
        decode_at = rules.most_free(observation, others or decoders)
        prefillers = [engine for engine in self._prefillers if engine != decode_at]
        prefill_at = rules.least_waiting(observation, prefillers) if prefillers else decode_at
        return Placement(prefill_at, decode_at)

    def _load(self, observation: Observation) -> float:
        if self._by_kv:
            capacity = np.array(observation.fleet.kv_capacity_tokens)
            return float(1.0 - observation.free_kv_tokens.sum() / capacity.sum())
        return observation["arrivals_recent"] / len(observation.fleet.roles)


BASELINES = {
    "load_switch": Baseline(
        lambda site, **parameters: LoadSwitch(site.prefillers, **parameters),
        Reads.BOOKKEEPING,
        "the crossover in arXiv 2606.01839, as a rule",
        {
            "measure": Parameter("kv", choices=("arrivals", "kv")),
            "arrivals": Parameter(CROSSOVER_PER_ENGINE, 0.001, 10.0, logarithmic=True),
            "kv": Parameter(KV_SHARE, 0.05, 0.95, most=1.0),
            "hysteresis": Parameter(0.1, 0.0, 0.5, most=1.0),
        },
    )
}
