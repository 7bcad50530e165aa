"""A policy with one weight a number: the placement with the highest weighted sum is chosen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from conserve_gym.agents.ablation.features import Features, Group
from conserve_gym.agents.ablation.foresight import FloatArray, Foresight
from conserve_gym.deployment import Deployment, Reservation
from conserve_gym.fleet import Fleet
from conserve_gym.observation import Observation
from conserve_gym.placement import Placement

_MEMORY = 0.9
"""What an earlier choice counts after each new one."""


class LinearPolicy:
    """Scores every placement that has room.

    Any engine may prefill and decode, so that it can colocate, disaggregate and set engines apart.

    Args:
        fleet: Engines, all of them mixed.
        groups: What it looks at.
        weights: One for each number of these groups, in their order.

    Attributes:
        foresight: Where perfect predictions come from; set before an episode that needs them.
    """

    def __init__(self, fleet: Fleet, groups: Sequence[Group], weights: FloatArray) -> None:
        """Prepare the features."""
        self.name = " + ".join(groups)
        self.deployment = deployment(groups)
        self.foresight: Foresight | None = None
        self._features = Features(fleet)
        self._groups = groups
        self._weights = weights
        self._engines = len(fleet.roles)
        self._chosen = np.zeros(self._engines)

    def reset(self, seed: int) -> None:
        """Forget earlier choices."""
        self._chosen = np.zeros(self._engines)

    def decide(self, observation: Observation) -> Placement:
        """Choose the placement with the highest score among those with room."""
        scores = self.numbers(observation) @ self._weights
        features = self._features
        room = observation.open_to[features.decode_at]
        if room.any():
            scores = np.where(room, scores, -np.inf)
        placement = features.placements[int(scores.argmax())]
        self._chosen *= _MEMORY
        self._chosen[placement.decode_at] += 1.0 - _MEMORY
        return placement

    def numbers(self, observation: Observation) -> FloatArray:
        """Return what it looks at, shape (placements, numbers)."""
        foresight = self.foresight
        prediction = foresight.predict(observation.conversation) if foresight else None
        return np.concatenate(
            [
                self._features(group, observation, self._chosen, prediction)
                for group in self._groups
            ],
            axis=1,
        )


def deployment(groups: Sequence[Group]) -> Deployment:
    """Return how the policy runs the GPUs; a door needs the router's bookkeeping."""
    return Deployment(
        all_mixed=True,
        reservation=Reservation.PER_TURN if Group.BOOKKEEPING in groups else Reservation.NONE,
        engine_exports=Group.EXPORTS in groups,
    )
