"""Kairos: prompts are deflected from a loaded prefiller to decoders that can bear them.

Source: arXiv 2607.02043 (load-aware prefill deflection; its code is no longer public). A prompt
goes to the prefiller by default, and T_P is its TTFT there: the queue, its prefill, and the KV's
transfer. Of each decoder that has no deflected prompt in flight, Kairos takes the largest chunk of
2,048 to 128 tokens whose step beside the running decodes stays within beta (1) x the strictest TBT
SLO among them. The prompt is deflected to where its TTFT in such chunks is smallest, if that is at
most alpha (1.3) x T_P and within its TTFT SLO.

``kairos_exports`` is told the true backlog of prompts, as in the paper. ``kairos`` counts it from
the ledger, where a prompt that is being computed counts as wholly waiting.

What differs: the chunk enters the estimate only, because engines here take the chunks that their
token budget gives; a deflected prompt then ends sooner and stalls decodes more than estimated. SLOs
are 5 x the time alone, as everywhere here; that of the strictest TBT is taken at an empty context.
The paper has no later turns: a decoder that holds their history computes the new tokens alone, any
other engine all that it does not hold.
"""

from __future__ import annotations

import math

from conserve_gym import rules
from conserve_gym.baselines.baseline import Baseline, Parameter
from conserve_gym.baselines.turn_costs import TurnCosts
from conserve_gym.deployment import Deployment
from conserve_gym.observation import Observation
from conserve_gym.placement import Placement
from conserve_gym.policy import Reads
from conserve_gym.site import Site

CHUNKS = (2048, 1024, 512, 256, 128)
SLO = 5.0


class Kairos:
    """Deflects prompts.

    Args:
        site: The cluster.
        alpha: TTFT of a deflected prompt that is taken, over T_P.
        beta: Step time that is safe, over the strictest TBT SLO.
        engine_exports: Whether engines tell their true backlog.
    """

    def __init__(
        self, site: Site, alpha: float, beta: float, *, engine_exports: bool = False
    ) -> None:
        """Take the margins."""
        self.name = "kairos_exports" if engine_exports else "kairos"
        self.deployment = Deployment(
            decides_every_turn=True, pulls_history=False, engine_exports=engine_exports
        )
        self._costs = TurnCosts(site, pulls_history=False)
        self._alpha = alpha
        self._beta = beta

    def reset(self, seed: int) -> None:
        """Keep no state."""

    def decide(self, observation: Observation) -> Placement:
        """Deflect the prompt if a decoder is fast and safe enough, else prefill it remotely."""
        home = rules.home_decoder(observation)
        prefill_at = rules.prefiller_or_self(observation, home)
        if prefill_at == home:
            return Placement(home, home)
        remote_s = self._costs.remote_ttft_s(observation, prefill_at, home)
        best, best_s = home, self._deflected_s(observation, home)
        for decode_at in observation.fleet.decoders:
            if observation.open_to[decode_at] and decode_at != home:
                seconds = self._deflected_s(observation, decode_at)
                if seconds < best_s:
                    best, best_s = decode_at, seconds
        if best_s <= self._alpha * remote_s and best_s <= self._slo_s(observation, best):
            return Placement(best, best)
        return Placement(prefill_at, home)

    def _deflected_s(self, observation: Observation, decode_at: int) -> float:
        """Return the TTFT in the largest safe chunks; infinity if a prompt runs or none is safe."""
        if self._costs.queue_s(observation, decode_at) > 0.0:
            return math.inf
        sequences, _ = self._costs.batch(observation, decode_at)
        safe_s = self._beta * SLO * self._costs.lone_decode_step_s(decode_at, 0)
        for tokens in CHUNKS:
            if (
                not sequences
                or self._costs.longest_step_s(observation, decode_at, tokens) <= safe_s
            ):
                return self._costs.chunks(observation, decode_at, tokens).seconds
        return math.inf

    def _slo_s(self, observation: Observation, decode_at: int) -> float:
        return SLO * self._costs.lone_prefill_s(observation, decode_at)


_MARGINS = {"alpha": Parameter(1.3, 0.5, 5.0), "beta": Parameter(1.0, 0.1, 5.0)}

BASELINES = {
    "kairos": Baseline(Kairos, Reads.BOOKKEEPING, "arXiv 2607.02043", _MARGINS),
    "kairos_exports": Baseline(
        lambda site, alpha, beta: Kairos(site, alpha, beta, engine_exports=True),
        Reads.EXPORTS,
        "arXiv 2607.02043",
        _MARGINS,
    ),
}
