"""LMetric: new prompt tokens times batch size, the least of all engines.

Source: arXiv 2603.15202. Each turn goes, prefill and decode, to the engine with the least
(prompt tokens queued there + those of its own that are not cached there) x (batch + 1). There is
no parameter. The batch is the turns in flight there, as a router counts them, and the queue the
prompts dispatched there whose first token it has not seen: the paper's router asks the engines for
both. Of equals each is taken in turn.

A plain router moves no KV, so what an engine lacks of the history is computed again; and it has no
door: turns wait at their engine.
"""

from __future__ import annotations

from conserve_gym.baselines.baseline import Baseline
from conserve_gym.baselines.tie_breaker import TieBreaker
from conserve_gym.deployment import Deployment, Reservation
from conserve_gym.observation import Observation
from conserve_gym.placement import Placement
from conserve_gym.policy import Reads


class LMetric:
    """Sends each turn to the engine with the least product."""

    def __init__(self) -> None:
        """Take all engines as equals, and every turn for itself."""
        self.name = "lmetric"
        self.deployment = Deployment(
            all_mixed=True,
            reservation=Reservation.NONE,
            decides_every_turn=True,
            pulls_history=False,
        )
        self._ties = TieBreaker()

    def reset(self, seed: int) -> None:
        """Forget who was last among equals."""
        self._ties = TieBreaker()

    def decide(self, observation: Observation) -> Placement:
        """Choose the engine with the least product."""
        uncached = observation["prompt"] - observation.engine_field("holds")
        prompts = observation.engine_field("prompt_in_flight") + uncached
        product = prompts * (observation.engine_field("turns_in_flight") + 1.0)
        engine = self._ties.least(observation.fleet.decoders, product.tolist().__getitem__)
        return Placement(engine, engine)


BASELINES = {"lmetric": Baseline(lambda site: LMetric(), Reads.BOOKKEEPING, "arXiv 2603.15202")}
