"""Least outstanding: the conversation to the engine with fewest turns in flight.

Join the shortest queue (``least outstanding requests`` of load balancers, ``JSQScheduler`` of
github.com/Mutinifni/splitwise-sim at 3780880), with the conversation pinned so that its KV is
found again. Turns in a tool's hands are not in flight, so that engines full of idle
conversations look free: of equals the one with most free KV is taken.
"""

from __future__ import annotations

from conserve_gym.baselines.baseline import Baseline
from conserve_gym.deployment import Deployment
from conserve_gym.observation import Observation
from conserve_gym.placement import Placement
from conserve_gym.policy import Reads


class LeastOutstanding:
    """Pins to the engine with fewest turns in flight and prefills there."""

    def __init__(self) -> None:
        """Take all engines as equals."""
        self.name = "least_outstanding"
        self.deployment = Deployment(all_mixed=True)

    def reset(self, seed: int) -> None:
        """Keep no state."""

    def decide(self, observation: Observation) -> Placement:
        """Choose the engine with fewest turns in flight among those with room."""
        decoders = observation.fleet.decoders
        with_room = [engine for engine in decoders if observation.open_to[engine]]
        in_flight = observation.engine_field("turns_in_flight")
        free = observation.free_kv_tokens
        engine = min(with_room or decoders, key=lambda i: (in_flight[i], -free[i]))
        return Placement(engine, engine)


BASELINES = {
    "least_outstanding": Baseline(
        lambda site: LeastOutstanding(), Reads.BOOKKEEPING, "join the shortest queue"
    )
}
