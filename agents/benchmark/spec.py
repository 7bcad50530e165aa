"""What a benchmark is asked to play, validated."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass

from conserve_gym.agents.seeds import FIRST_TEST_SEED, evaluation_seeds
from conserve_gym.envs.fields import STRICT, Positive

Asked = str | dict[str, Any]
"""A policy as the user wrote it; see ``agents.policies.resolve``."""


@dataclass(frozen=True, config=STRICT)
class WorkloadSpec:
    """Conversations, and how densely they come.

    Attributes:
        overrides: What makes the scenario, such as ``workload=chat``.
        rates: Loads in conversations a second. Capacity is looked for between the ends.
    """

    overrides: tuple[str, ...]
    rates: Annotated[tuple[Positive, ...], Field(min_length=1)]


@dataclass(frozen=True, config=STRICT)
class BenchmarkSpec:
    """What a benchmark plays.

    Attributes:
        policies: Who plays.
        submission: One more, whose rank is told; None for none.
        clusters: Options of that group.
        workloads: By name; None leaves one out.
        arrivals: An option of that group, for workloads whose overrides name none.
        seeds: How many of the test block, or which ones below those of training.
        capacity_tolerance: Share of the load to which capacity is known; None leaves it out.
        workers: Processes; None takes one a core.
        output: The folder.
    """

    policies: Annotated[tuple[Asked, ...], Field(min_length=1)]
    submission: Asked | None
    clusters: Annotated[tuple[str, ...], Field(min_length=1)]
    workloads: dict[str, WorkloadSpec | None]
    arrivals: str
    seeds: int | tuple[int, ...]
    capacity_tolerance: Positive | None
    workers: PositiveInt | None
    output: Path

    def __post_init__(self) -> None:
        """Check the lists."""
        evaluation_seeds(self.seeds)
        if not self.played:
            raise ValueError("workloads: all are left out")
        lists: dict[str, tuple[object, ...]] = {
            "clusters": self.clusters,
            "policies": self.policies,
            **{f"workloads.{name}.rates": one.rates for name, one in self.played.items()},
        }
        for key, values in lists.items():
            if any(values.count(value) > 1 for value in values):
                raise ValueError(f"{key}={list(values)} names one twice")

    @property
    def played(self) -> dict[str, WorkloadSpec]:
        """The workloads that are not left out."""
        return {name: one for name, one in self.workloads.items() if one is not None}

    @property
    def test_seeds(self) -> list[int]:
        """The seeds of all episodes."""
        return evaluation_seeds(self.seeds, FIRST_TEST_SEED)

    @property
    def asked(self) -> list[Asked]:
        """Everybody who plays, the submission last."""
        added = [] if self.submission in (None, *self.policies) else [self.submission]
        return [one for one in (*self.policies, *added) if one is not None]
