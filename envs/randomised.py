"""Scenarios drawn at random, one an episode, for policies that shall serve more than one cluster.

What is drawn stands in ``conf/randomise``; whatever is not drawn is the nominal scenario's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, get_args

import numpy as np
from omegaconf import DictConfig
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from conserve_gym.deployment import Deployment
from conserve_gym.envs.capacity import capacity
from conserve_gym.envs.configuration import (
    Scenario,
    compose_scenario,
    load_scenario,
    nominal_scenario,
    validated,
)
from conserve_gym.envs.fields import STRICT, Positive, Range, Share
from conserve_gym.envs.random_cluster import RandomCluster
from conserve_gym.envs.random_traffic import FittingWorkload, RandomArrivals, RandomWorkload
from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.envs.serving.scaled_constants import Constant, scaled
from conserve_gym.envs.workloads.workload import Workload
from conserve_gym.fleet import Role


@dataclass(frozen=True, config=STRICT)
class RandomiseSpec:
    """What is drawn.

    Attributes:
        load: Arrival rate over what the cluster can serve at most, about (``envs/capacity.py``).
        arrivals: How bursty they come.
        workloads: Weight of each file of ``conf/workload``; none leave the nominal one.
        mixed_share: Share of the episodes that mix two of them.
        conversations: Conversations in an episode of these.
        cluster: What clusters are drawn from; None leaves the nominal one.
        constants: Factors of the calibration's constants, each drawn by itself; None leaves them.

    Raises:
        ValueError: A value is out of range.
    """

    load: Range
    arrivals: RandomArrivals
    workloads: dict[str, Positive]
    mixed_share: Share
    conversations: PositiveInt
    cluster: RandomCluster | None
    constants: Range | None


class RandomisedScenario:
    """Draws scenarios.

    Args:
        nominal: What is not drawn.
        spec: What is.

    Attributes:
        nominal: The scenario in which nothing is drawn.

    Raises:
        ConfigurationError: There is no such workload.
    """

    def __init__(self, nominal: Scenario, spec: RandomiseSpec) -> None:
        """Build the workloads, so that draws are cheap."""
        self.nominal = nominal
        self._spec = spec
        workloads = {name: _embedded(name, spec.conversations) for name in spec.workloads}
        self._workloads = RandomWorkload(
            workloads or {"nominal": nominal.workload},
            spec.workloads or {"nominal": 1.0},
            spec.mixed_share,
            spec.conversations,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> RandomisedScenario:
        """Return itself: it never changes, and copies of an environment share it."""
        return self

    @property
    def draws_clusters(self) -> bool:
        """Whether episodes have different engines."""
        return self._spec.cluster is not None

    def draw(self, rng: np.random.Generator) -> Scenario:
        """Return a scenario; the same one from a generator in the same state."""
        workload, demand = self._workloads.draw(rng)
        cluster = self._cluster(rng)
        rate = rng.uniform(*self._spec.load) * capacity(cluster, self.nominal.deployment, demand)
        smallest = min(engine.kv_capacity_tokens for engine in cluster.engines)
        return replace(
            self.nominal,
            cluster=cluster,
            workload=FittingWorkload(workload, smallest),
            arrivals=self._spec.arrivals.draw(rate, rng),
        )

    def roles(self, deployment: Deployment) -> Iterator[tuple[Role, ...]]:
        """Yield the engines' roles in every cluster that may be drawn.

        Args:
            deployment: How they are run.
        """
        if self._spec.cluster is None:
            yield self.nominal.cluster.fleet(deployment).roles
            return
        for roles in self._spec.cluster.roles():
            yield (Role.MIXED,) * len(roles) if deployment.all_mixed else roles

    def _cluster(self, rng: np.random.Generator) -> ClusterSpec:
        spec = self._spec
        cluster = spec.cluster.draw(rng) if spec.cluster else self.nominal.cluster
        if spec.constants:
            low, high = map(math.log, spec.constants)
            for constant in get_args(Constant):
                cluster = scaled(cluster, constant, math.exp(rng.uniform(low, high)))
        return cluster


@cache  # composing a large file takes seconds
def _embedded(name: str, conversations: int) -> Workload:
    overrides = [f"workload={name}", f"workload.conversations={conversations}"]
    return load_scenario(overrides).workload


def scenarios(config: DictConfig) -> Scenario | RandomisedScenario:
    """Return what a configuration's environments play: a scenario, or what draws them.

    Raises:
        ConfigurationError: A key or value is not right.
        WorkloadError: The workload or its arrivals cannot be used.
    """
    nominal = nominal_scenario(config)
    if config.get("randomise") is None:
        return nominal
    return RandomisedScenario(nominal, validated(RandomiseSpec, config.randomise, "randomise"))


def load_scenarios(overrides: Sequence[str] = ()) -> Scenario | RandomisedScenario:
    """As ``scenarios``, from the packaged configuration without a Hydra application.

    Args:
        overrides: As on the command line: ``["randomise=fleet", "randomise.load=[0.5,1]"]``.

    Raises:
        ConfigurationError: A key or value is not right.
    """
    return scenarios(compose_scenario(overrides))


def of_seeds(played: Scenario | RandomisedScenario, seeds: Sequence[int]) -> list[Scenario]:
    """Return the scenario of each seed: the one there is, or what each draws."""
    if isinstance(played, Scenario):
        return [played] * len(seeds)
    return [played.draw(np.random.default_rng(seed)) for seed in seeds]
