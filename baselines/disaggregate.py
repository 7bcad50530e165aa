"""Disaggregate: every turn's prompt at a prefill engine, its answer at a decode engine.

DistServe's rule (OSDI '24, arXiv 2401.09670): prompts to the prefill engine with the shortest
queue, first come first served, then to the least loaded decode engine. Each turn is a request of
its own, as for a server that knows of no conversations. The shortest queue is that with fewest
prompt tokens in flight, and the least loaded decoder that with most free KV. Placement of engines
by a search over parallelism, the other half of DistServe, is the cluster's matter.

Prefixes stay cached on both sides, which came after DistServe. No history is pulled back, so a
prefill engine has the prompts that it computed, but not the answers, and computes these again. Its
pool is what limits the rule: of later turns' prompts of miniswe on a40_1p3d it finds 99 % at 0.5
conversations/s, 37 % at 1 and 17 % at 1.5 (seed 0): the rest has been evicted.
``full_disagg`` is the paper's arm, which reuses nothing.
"""

from __future__ import annotations

from conserve_gym import rules
from conserve_gym.baselines.baseline import Baseline
from conserve_gym.deployment import Deployment
from conserve_gym.observation import Observation
from conserve_gym.placement import Placement
from conserve_gym.policy import Reads


class Disaggregate:
    """Sends each turn to the least loaded prefill engine and the least loaded decoder."""

    def __init__(self) -> None:
        """Take the cluster's roles as they are, and every turn for itself."""
        self.name = "disaggregate"
        self.deployment = Deployment(decides_every_turn=True, pulls_history=False)

    def reset(self, seed: int) -> None:
        """Keep no state."""

    def decide(self, observation: Observation) -> Placement:
        """Choose both engines for this turn."""
        return rules.place(observation, disaggregate=True)


BASELINES = {
    "disaggregate": Baseline(
        lambda site: Disaggregate(), Reads.BOOKKEEPING, "DistServe, arXiv 2401.09670"
    )
}
