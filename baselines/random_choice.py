"""Random: a fair coin between colocation and disaggregation."""

from __future__ import annotations

import numpy as np

from conserve_gym import rules
from conserve_gym.baselines.baseline import Baseline
from conserve_gym.deployment import Deployment
from conserve_gym.observation import Observation
from conserve_gym.placement import Placement
from conserve_gym.policy import Reads


class RandomChoice:
    """Tosses a coin of its own, which shifts nothing that other policies would see."""

    def __init__(self) -> None:
        """Take the cluster's roles as they are."""
        self.name = "random"
        self.deployment = Deployment()
        self._rng = np.random.default_rng(0)

    def reset(self, seed: int) -> None:
        """Start a stream of its own for the episode."""
        self._rng = np.random.default_rng([seed, 0x52414E44])

    def decide(self, observation: Observation) -> Placement:
        """Toss."""
        return rules.place(observation, disaggregate=bool(self._rng.integers(2)))


BASELINES = {"random": Baseline(lambda site: RandomChoice(), Reads.BOOKKEEPING, "a coin")}
