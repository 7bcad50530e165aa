"""Round robin: the next conversation to the next engine.

The rule of any load balancer that counts nothing (``RoundRobinScheduler`` of
github.com/Mutinifni/splitwise-sim at 3780880, ``round_robin`` of SGLang's router), with the
conversation pinned so that its KV is found again. Nothing waits at the door: who counts nothing
cannot know that an engine is full.
"""

from __future__ import annotations

from conserve_gym.baselines.baseline import Baseline
from conserve_gym.deployment import Deployment, Reservation
from conserve_gym.observation import Observation
from conserve_gym.placement import Placement
from conserve_gym.policy import Reads


class RoundRobin:
    """Pins to each engine in turn and prefills there."""

    def __init__(self) -> None:
        """Take all engines as equals."""
        self.name = "round_robin"
        self.deployment = Deployment(all_mixed=True, reservation=Reservation.NONE)
        self._next = 0

    def reset(self, seed: int) -> None:
        """Begin with the first engine."""
        self._next = 0

    def decide(self, observation: Observation) -> Placement:
        """Choose the engine after the last one chosen."""
        engines = observation.fleet.decoders
        engine = engines[self._next % len(engines)]
        self._next += 1
        return Placement(engine, engine)


BASELINES = {
    "round_robin": Baseline(
        lambda site: RoundRobin(), Reads.ARRIVAL, "round robin, as in any load balancer"
    )
}
