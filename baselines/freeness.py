"""Freeness: Llumnix's dispatch, to the engine with most KV left for each turn in its batch.

Source: Llumnix (OSDI '24, arXiv 2406.03243): freeness is (M - virtual usage) / batch, about the
decode steps that an engine has memory for, and a new request goes where it is largest. Requests in
an engine's queue count in both, as in ``RemainingStepsLoad`` of github.com/AlibabaPAI/llumnix at
0b49181. An engine without any is as free as can be; of these the one with most free KV is taken.

What differs: engines are not asked; usage is the KV that conversations pinned there are known to
hold, idle ones too, which Llumnix would let go, and the batch is the turns in flight. There is no
migration, which is Llumnix's main matter: a conversation stays where it was dispatched.
"""

from __future__ import annotations

import math

from conserve_gym.baselines.baseline import Baseline
from conserve_gym.deployment import Deployment
from conserve_gym.observation import Observation
from conserve_gym.placement import Placement
from conserve_gym.policy import Reads


class Freeness:
    """Pins to the engine with most free KV for each turn in flight, and prefills there."""

    def __init__(self) -> None:
        """Take all engines as equals."""
        self.name = "freeness"
        self.deployment = Deployment(all_mixed=True)

    def reset(self, seed: int) -> None:
        """Keep no state."""

    def decide(self, observation: Observation) -> Placement:
        """Choose the freest engine among those with room."""
        free = observation.free_kv_tokens.tolist()
        batch = observation.engine_field("turns_in_flight").tolist()
        decoders = observation.fleet.decoders
        with_room = [engine for engine in decoders if observation.open_to[engine]]

        def freeness(engine: int) -> tuple[float, float]:
            share = free[engine] / batch[engine] if batch[engine] else math.inf
            return share, free[engine]

        engine = max(with_room or decoders, key=freeness)
        return Placement(engine, engine)


BASELINES = {
    "freeness": Baseline(
        lambda site: Freeness(), Reads.BOOKKEEPING, "Llumnix, arXiv 2406.03243 (dispatch only)"
    )
}
