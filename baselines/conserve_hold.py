"""ConServe that holds: conversations wait at the door, the newest first, while prompts queue.

The control of learned policies that may hold: the same freedom, as a rule. A conversation is placed
as ConServe does while fewer than ``tokens`` prompt tokens are in flight at the prefiller that it
would go to; else it is held, and the next to arrive comes before it. So prompts wait at the door
instead of at the prefiller, and what is late anyway does not delay what can still be in time.

Newest first under overload: Maurer, Fail at Scale, ACM Queue 13 (2015). The default is ours, chosen
on training seeds: one prompt of the paper's trace in flight, and one about to follow.
"""

from __future__ import annotations

from conserve_gym import rules
from conserve_gym.baselines.baseline import Baseline, Parameter
from conserve_gym.deployment import Deployment
from conserve_gym.observation import Observation
from conserve_gym.placement import HOLD, Placement
from conserve_gym.policy import Reads

TOKENS = 24_576


class ConServeHold:
    """Disaggregates first turns, as long as the prefiller keeps up.

    Args:
        tokens: Prompt tokens in flight at the prefiller from which on conversations are held.
    """

    def __init__(self, tokens: float) -> None:
        """Take the cluster's roles as they are."""
        self.name = "conserve_hold"
        self._tokens = tokens
        self.deployment = Deployment(may_hold=True)

    def reset(self, seed: int) -> None:
        """Keep no state."""

    def decide(self, observation: Observation) -> Placement:
        """Choose as ConServe, or hold."""
        placement = rules.place(observation, disaggregate=True)
        waiting = observation.of_engine("prompt_in_flight", placement.prefill_at)
        return HOLD if waiting >= self._tokens else placement


BASELINES = {
    "conserve_hold": Baseline(
        lambda site, tokens: ConServeHold(tokens),
        Reads.BOOKKEEPING,
        "a control: ConServe with adaptive LIFO",
        {"tokens": Parameter(TOKENS, 1024, 262_144, logarithmic=True)},
    ),
}
