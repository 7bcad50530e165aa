"""AMPD: each prefill, first or incremental, at its decoder or at a prefiller, as seems faster.

``ampd_emulation`` is what the ConServe paper calls AMPD (arXiv 2606.01839, arm
``per_turn_adaptive_disagg_decoders``): ConServe in which a random 10 % of later turns is sent to
the prefiller by mistake, without any cost rule. The artifact has a misrouted turn wait at its
decoder for what the detour would take (``agents/reproduction/detours.py``); here it really goes
there: it queues, pulls the history, and its KV returns. Which turns are misrouted is drawn by
conversation and turn, so that they are the same whatever happens. The paper pins a conversation's
KV; here a turn passes the door again, and KV between turns may be evicted.

``ampd_cost`` is the rule of AMPD itself (arXiv 2602.14516), as far as it is published: routing by
queue state, windowed TTFT and inter-token latency, and profiles of prefill T_pre(history, new),
decode T_dec(batch) and transfer T_kv, for SLO attainment. The exact inequality is not published.
Here a prefill stays local if

- its estimated TTFT there, queue and T_pre beside the running decodes, is not above that by way of
  the prefiller, queue, T_pre and T_kv; where prompts wait, an engine's windowed TTFT is the least
  that is expected of it;
- and the decoder's windowed inter-token latency, plus what the prefill's stall adds to it over an
  output of mean length, is within the SLO, 5 x that of the turn alone.

Windows are those of the ledger, exponential with 30 s instead of the last 10 s. AMPD's reordering
of waiting prefills and its offline planner are left out.
"""

from __future__ import annotations

import numpy as np

from conserve_gym.baselines.baseline import Baseline, Parameter
from conserve_gym.baselines.per_turn import PerTurn
from conserve_gym.baselines.turn_costs import TurnCosts
from conserve_gym.observation import Observation
from conserve_gym.policy import Reads
from conserve_gym.site import Site


class AmpdEmulation(PerTurn):
    """ConServe with a share of later turns misrouted.

    Args:
        share: Share of the later turns that take the detour.
    """

    def __init__(self, share: float) -> None:
        """Let prefillers pull history."""
        super().__init__("ampd_emulation", pulls_history=True)
        self._share = share
        self._seed = 0

    def reset(self, seed: int) -> None:
        """Draw the detours of another episode."""
        self._seed = seed

    def stays(self, observation: Observation, prefill_at: int, decode_at: int) -> bool:
        """Whether it is a later turn, and not misrouted."""
        if observation.turn == 0:
            return False
        key = [self._seed, 0x414D5044, observation.conversation, observation.turn]
        return float(np.random.default_rng(key).random()) >= self._share


class AmpdCost(PerTurn):
    """Routes each prefill by its estimated TTFT, and by what decodes can bear.

    Args:
        site: The cluster.
        slo: Inter-token latency that may be, over that of the turn alone.
    """

    def __init__(self, site: Site, slo: float) -> None:
        """Let prefillers pull history, as AMPD's do."""
        super().__init__("ampd_cost", pulls_history=True)
        self._costs = TurnCosts(site, pulls_history=True)
        self._slo = slo

    def stays(self, observation: Observation, prefill_at: int, decode_at: int) -> bool:
        """Whether the local way is as fast, and spares the running decodes."""
        local_s = max(
            self._costs.local_ttft_s(observation, decode_at),
            self._windowed_ttft_s(observation, decode_at),
        )
        remote_s = max(
            self._costs.remote_ttft_s(observation, prefill_at, decode_at),
            self._windowed_ttft_s(observation, prefill_at),
        )
        return local_s <= remote_s and self._decodes_bear_it(observation, decode_at)

    @staticmethod
    def _windowed_ttft_s(observation: Observation, engine: int) -> float:
        if not observation.of_engine("prompt_in_flight", engine):
            return 0.0
        return observation.of_engine("ttft_recent", engine)

    def _decodes_bear_it(self, observation: Observation, decode_at: int) -> bool:
        costs = self._costs
        now_s = observation.of_engine("tbt_recent", decode_at)
        now_s = now_s or costs.decode_step_s(observation, decode_at)
        stall_s = costs.stall_s(observation, decode_at, costs.local(observation, decode_at))
        then_s = now_s + stall_s / max(observation["output_mean"], 1.0)
        return then_s <= self._slo * costs.lone_decode_step_s(decode_at, int(observation["prompt"]))


BASELINES = {
    "ampd_emulation": Baseline(
        lambda site, share: AmpdEmulation(share),
        Reads.BOOKKEEPING,
        "arXiv 2606.01839 (AMPD)",
        {"share": Parameter(0.1, 0.0, 1.0, most=1.0)},
    ),
    "ampd_cost": Baseline(
        AmpdCost,
        Reads.BOOKKEEPING,
        "arXiv 2602.14516, its inequality chosen here",
        {"slo": Parameter(5.0, 1.0, 20.0, logarithmic=True)},
    ),
}
