"""A rule that decides in a router, as an exported policy does."""

from __future__ import annotations

import numpy as np

from conserve_gym.agents.runtime.scheduler import DecidedBy, Decision, Scheduler
from conserve_gym.errors import ConServeGymError
from conserve_gym.observation import Observation
from conserve_gym.placement import HOLD
from conserve_gym.policy import Policy


class RuleScheduler(Scheduler):
    """Decides with a rule; where that cannot, with the one that stands behind every policy.

    Args:
        rule: Decides once a conversation.
    """

    def __init__(self, rule: Policy) -> None:
        """Begin as the rule begins."""
        super().__init__(None, deployment=rule.deployment)
        self.name = rule.name
        self.checksum = f"rule {rule.name}"
        self._rule = rule
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Begin anew, counting and deciding."""
        super().reset(seed)
        self._rule.reset(seed)

    def decision(self, observation: Observation, *, must_place: bool = False) -> Decision:
        """Choose where the conversation runs, and say how."""
        self.decisions += 1
        try:
            placement = self._rule.decide(observation)
        except ConServeGymError as error:
            return self._fall_back(observation, DecidedBy.NO_POLICY, str(error))
        if must_place and placement == HOLD:
            reason = "the rule would hold it for longer than the door"
            return self._fall_back(observation, DecidedBy.NO_POLICY, reason)
        return Decision(placement, -1, np.empty(0, dtype=np.float32))
