"""The one interface of heuristic and learned policies."""

from __future__ import annotations

from typing import Protocol

from conserve_gym.deployment import Deployment
from conserve_gym.observation import Observation
from conserve_gym.placement import Placement


class Policy(Protocol):
    """Chooses a placement for the conversation at the door.

    Attributes:
        name: How the policy is called in tables.
        deployment: How it runs the GPUs.
    """

    name: str
    deployment: Deployment

    def reset(self, seed: int) -> None:
        """Forget earlier episodes; draw any randomness from ``seed``."""

    def decide(self, observation: Observation) -> Placement:
        """Choose where the conversation runs."""
