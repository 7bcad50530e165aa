"""The one interface of heuristic and learned policies."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from conserve_gym.deployment import Deployment
from conserve_gym.observation import Observation
from conserve_gym.placement import Placement


class Reads(StrEnum):
    """The most that a policy looks at, in the order of what it costs to have.

    ARRIVAL is the turn at the door and the policy's own earlier choices. BOOKKEEPING is all that a
    router has seen happen: the ledger. EXPORTS asks the engines. FUTURE is what nobody can know.
    """

    ARRIVAL = "arrival"
    BOOKKEEPING = "bookkeeping"
    EXPORTS = "engine exports"
    FUTURE = "the future"


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


def reads(deployment: Deployment) -> Reads:
    """Return the most that a policy of a deployment can look at."""
    if deployment.sees_future:
        return Reads.FUTURE
    return Reads.EXPORTS if deployment.engine_exports else Reads.BOOKKEEPING
