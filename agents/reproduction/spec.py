"""What a reproduction is asked to play, validated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from conserve_gym.envs.fields import STRICT, Positive
from conserve_gym.envs.serving.scaled_constants import Constant

UNCAPPED = "300/300"

CAPS = {
    UNCAPPED: "a40_1p3d",
    "300/200": "a40_1p3d_capped_decoders",
    "200/200": "a40_1p3d_200w",
}
"""Clusters by the power caps of prefiller and decoders in watts."""

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Rates = Annotated[tuple[Positive, ...], Field(min_length=1)]
Seeds = Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]


@dataclass(frozen=True, config=STRICT)
class WorkloadSpec:
    """Which conversations the paper's arms play.

    Attributes:
        path: The paper's trace; None takes the generator that is made from its figures.
        conversations: How many, the first ones.
        max_turns: Longer ones are cut.
    """

    path: Path | None
    conversations: PositiveInt
    max_turns: PositiveInt


@dataclass(frozen=True, config=STRICT)
class SensitivitySpec:
    """Which constants are scaled, by how much.

    Attributes:
        constants: Which; none scales nothing.
        factors: By what each is multiplied.
        seeds: How many of the seeds.
    """

    constants: tuple[Constant, ...]
    factors: tuple[Positive, ...]
    seeds: PositiveInt


@dataclass(frozen=True, config=STRICT)
class ScenarioSpec:
    """A setting beyond the paper's.

    Attributes:
        says: What it is, for tables.
        rates: Conversations a second.
        cluster: An option of that group.
        arrivals: An option of that group.
        workload: An option of that group; None for the conversations of the paper's arms.
        changes: Further overrides.
    """

    says: str
    rates: Rates
    cluster: str
    arrivals: str
    workload: str | None
    changes: tuple[str, ...]


@dataclass(frozen=True, config=STRICT)
class ReproductionSpec:
    """What a reproduction plays.

    Attributes:
        workload: The paper's conversations.
        rates: Conversations a second; 1.634 is Poisson at 2 through one prefiller.
        caps: Some of ``CAPS``.
        seeds: Of the order of conversations; 42 gives the paper's own.
        redraw: Whether they are of arrivals and misrouted turns too.
        misrouted_shares: Shares of misrouted turns that AMPD is played with at saturation.
        sensitivity: Scaled constants.
        scenarios: Settings beyond the paper's, by name.
        scenario_rates: How many of each one's rates, the highest; None takes all.
        scenario_seeds: How many of the seeds they are played with; 0 plays none.
        workers: Processes; None takes one a core.
        output: The folder.
    """

    workload: WorkloadSpec
    rates: Rates
    caps: Annotated[tuple[str, ...], Field(min_length=1)]
    seeds: Seeds
    redraw: bool
    misrouted_shares: tuple[Share, ...]
    sensitivity: SensitivitySpec
    scenarios: dict[str, ScenarioSpec]
    scenario_rates: PositiveInt | None
    scenario_seeds: NonNegativeInt
    workers: PositiveInt | None
    output: Path

    def __post_init__(self) -> None:
        """Check the lists."""
        for name in self.caps:
            if name not in CAPS:
                raise ValueError(f"caps: {name!r} is none of {', '.join(CAPS)}")
        if UNCAPPED not in self.caps:
            raise ValueError(f"caps={list(self.caps)} lacks {UNCAPPED}, which others are told by")
        for key in ("rates", "caps", "seeds"):
            values = getattr(self, key)
            if len(set(values)) < len(values):
                raise ValueError(f"{key}={list(values)} names one twice")

    @property
    def played_scenarios(self) -> dict[str, ScenarioSpec]:
        """The scenarios, if any shall be played, with the rates that shall."""
        if not self.scenario_seeds:
            return {}
        return {
            name: replace(one, rates=tuple(sorted(one.rates)[-(self.scenario_rates or 0) :]))
            for name, one in self.scenarios.items()
        }
