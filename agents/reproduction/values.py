"""Looks figures of a reproduction up."""

from __future__ import annotations

from typing import NamedTuple

from conserve_gym.agents.reproduction.campaign import Results
from conserve_gym.agents.reproduction.cells import Part
from conserve_gym.agents.reproduction.spec import UNCAPPED
from conserve_gym.agents.statistics import Estimate, estimate
from conserve_gym.metrics import Clock


class Setting(NamedTuple):
    """What arms are compared in; see ``cells.Cell``."""

    rate: float
    clock: Clock = "artifact"
    variant: str = UNCAPPED
    part: Part = "paper"


class Values:
    """Metrics of cells, by everything but the seed.

    Args:
        results: What has been played.
    """

    def __init__(self, results: Results) -> None:
        """Group the cells."""
        self._played: dict[tuple[str, Setting], dict[int, dict[str, float]]] = {}
        for cell, metrics in results.items():
            setting = Setting(cell.rate, cell.clock, cell.variant, cell.part)
            self._played.setdefault((cell.arm, setting), {})[cell.seed] = metrics

    def has(self, arm: str, setting: Setting) -> bool:
        """Return whether an arm has been played in a setting."""
        return (arm, setting) in self._played

    def by_seed(self, arm: str, metric: str, setting: Setting) -> dict[int, float]:
        """Return a metric by seed; the arm has been played in the setting."""
        played = self._played[arm, setting]
        return {seed: metrics[metric] for seed, metrics in played.items()}

    def mean(self, arm: str, metric: str, setting: Setting) -> Estimate:
        """Return a metric's mean over seeds."""
        return estimate(list(self.by_seed(arm, metric, setting).values()))

    def difference(self, arms: tuple[str, str], metric: str, setting: Setting) -> Estimate:
        """Return the first arm's metric less the second's, paired by seed."""
        first, second = (self.by_seed(arm, metric, setting) for arm in arms)
        return estimate([first[seed] - second[seed] for seed in first if seed in second])
