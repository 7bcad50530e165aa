"""A candidate that decides beside the acting policy, without effect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from conserve_gym.agents.runtime import available
from conserve_gym.agents.runtime.scheduler import Decision, Scheduler
from conserve_gym.observation import Observation
from conserve_gym.placement import Placement


class Disagreement(NamedTuple):
    """A candidate would have decided otherwise.

    Attributes:
        placement: Where the candidate would have placed the conversation.
        score_gain: What the candidate expects of it: its score of its own choice less its score of
            what was done. Scores of value networks are returns, those of policy networks
            logarithms of probabilities. None where one of the two has no score.
        fallback: Why the candidate's rule decided; empty where its network did.
    """

    placement: Placement
    score_gain: float | None
    fallback: str


class Shadow:
    """Decides with a candidate and keeps what differs.

    Args:
        scheduler: The candidate.

    Attributes:
        decisions: Decisions compared.
        disagreements: Of these, placements that differ.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        """Start counting."""
        self.scheduler = scheduler
        self.decisions = self.disagreements = 0

    def compare(
        self,
        observation: Observation,
        acting: Decision,
        up: Sequence[bool],
        *,
        must_place: bool,
    ) -> Disagreement | None:
        """Return what the candidate would have done instead; None where it agrees."""
        self.decisions += 1
        ours = available.decision(self.scheduler, observation, up, must_place=must_place)
        if ours.placement == acting.placement:
            return None
        self.disagreements += 1
        theirs = self.scheduler.action_of(observation, acting.placement)
        gain = None
        if ours.action >= 0 and theirs is not None:
            gain = float(ours.scores[ours.action] - ours.scores[theirs])
        return Disagreement(ours.placement, gain, ours.fallback)
