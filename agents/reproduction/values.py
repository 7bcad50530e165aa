"""Looks figures of a reproduction up."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from conserve_gym.agents.reproduction.campaign import Results
from conserve_gym.agents.reproduction.cells import UNCAPPED, Cell, Part
from conserve_gym.agents.statistics import Estimate, estimate
from conserve_gym.metrics import Clock


class Values:
    """Metrics of cells, by everything but the seed.

    Args:
        results: What has been played.
    """

    def __init__(self, results: Results) -> None:
        """Group the cells."""
        self._by_setting: dict[Cell, dict[int, dict[str, float]]] = defaultdict(dict)
        for cell, metrics in results.items():
            self._by_setting[replace(cell, seed=-1)][cell.seed] = metrics

    def has(self, arm: str, rate: float, clock: Clock, variant: str, part: Part = "paper") -> bool:
        """Return whether a setting has been played."""
        return Cell(part, variant, arm, clock, rate, -1) in self._by_setting

    def by_seed(
        self,
        arm: str,
        metric: str,
        rate: float,
        clock: Clock = "artifact",
        variant: str = UNCAPPED,
        part: Part = "paper",
    ) -> dict[int, float]:
        """Return a metric of a setting by seed; empty if it has not been played."""
        played = self._by_setting.get(Cell(part, variant, arm, clock, rate, -1), {})
        return {seed: metrics[metric] for seed, metrics in played.items()}

    def mean(
        self,
        arm: str,
        metric: str,
        rate: float,
        clock: Clock = "artifact",
        variant: str = UNCAPPED,
        part: Part = "paper",
    ) -> Estimate:
        """Return a metric's mean over seeds; the setting has been played."""
        return estimate(list(self.by_seed(arm, metric, rate, clock, variant, part).values()))

    def difference(
        self,
        arms: tuple[str, str],
        metric: str,
        rate: float,
        clock: Clock = "artifact",
        variant: str = UNCAPPED,
        part: Part = "paper",
    ) -> Estimate:
        """Return the first arm's metric less the second's, paired by seed."""
        first, second = (self.by_seed(arm, metric, rate, clock, variant, part) for arm in arms)
        return estimate([first[seed] - second[seed] for seed in first if seed in second])
