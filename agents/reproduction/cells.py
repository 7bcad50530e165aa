"""What is played: one arm on one clock, in one setting, with one seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np

from conserve_gym.agents.reproduction import artifact_clock, user_clock
from conserve_gym.agents.reproduction.arms import ARMS, MISROUTED_SHARE
from conserve_gym.agents.reproduction.recording import SATURATION, Draw, draw
from conserve_gym.agents.reproduction.spec import CAPS, UNCAPPED, ReproductionSpec, WorkloadSpec
from conserve_gym.envs.configuration import Scenario, load_scenario
from conserve_gym.envs.serving.scaled_constants import scaled
from conserve_gym.envs.workloads.arrivals import RecordedPrefiller
from conserve_gym.envs.workloads.workload import draw_episode
from conserve_gym.metrics import Clock

Part = Literal["paper", "shares", "scenarios", "sensitivity"]

COMPARED: dict[Clock, tuple[str, ...]] = {
    "artifact": ("colocate_oracle", "ampd", "conserve_oracle"),
    "user": ("colocate", "ampd_played", "conserve"),
}
"""Arms whose winner is looked for where a constant is scaled: the paper's, and those that do not
see the future. Full Disagg is left out: it is behind by a factor of ten."""

BEYOND = (
    "colocate_oracle",
    "colocate",
    "full_disagg",
    "ampd_played",
    "conserve_oracle",
    "conserve",
)
"""Arms that are played beyond the paper's settings."""


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        part: What it belongs to.
        variant: Power caps; of ``shares``, the share of misrouted turns; of ``scenarios``, the
            scenario; of ``sensitivity``, constant and factor with a blank between.
        arm: Which of ``ARMS``.
        clock: Which of the two.
        rate: Conversations a second.
        seed: Of the draw.
    """

    part: Part
    variant: str
    arm: str
    clock: Clock
    rate: float
    seed: int


def cells(spec: ReproductionSpec) -> Iterator[Cell]:
    """Yield everything that a reproduction plays."""
    for caps in spec.caps:
        for arm, clock in _arms_on_clocks():
            for rate in spec.rates:
                for seed in spec.seeds:
                    yield Cell("paper", caps, arm, clock, rate, seed)
    for share in spec.misrouted_shares:
        for seed in spec.seeds:
            yield Cell("shares", f"{share:g}", "ampd", "artifact", SATURATION, seed)
    for name, scenario in spec.played_scenarios.items():
        for arm in BEYOND:
            for rate in scenario.rates:
                for seed in spec.seeds[: spec.scenario_seeds]:
                    yield Cell("scenarios", name, arm, "user", rate, seed)
    for constant in spec.sensitivity.constants:
        for factor in spec.sensitivity.factors:
            variant, part = scaled_setting(constant, factor)
            for clock, arms in COMPARED.items():
                for arm in arms:
                    for rate in spec.rates:
                        for seed in spec.seeds[: spec.sensitivity.seeds]:
                            yield Cell(part, variant, arm, clock, rate, seed)


def _arms_on_clocks() -> Iterator[tuple[str, Clock]]:
    for name, arm in ARMS.items():
        if arm.run:
            yield name, "artifact"
        if arm.own_run:
            yield name, "user"


def scaled_setting(constant: str, factor: float) -> tuple[str, Part]:
    """Return variant and part of a scaled constant; by 1 it is the paper's setting."""
    return (UNCAPPED, "paper") if factor == 1.0 else (f"{constant} {factor:g}", "sensitivity")


def play(spec: ReproductionSpec, cell: Cell) -> dict[str, float]:
    """Play a cell and return its metrics."""
    scenario, share = _scenario(spec, cell), MISROUTED_SHARE
    cluster = scenario.cluster
    if cell.part == "shares":
        share = float(cell.variant)
    if cell.part == "sensitivity":
        constant, factor = cell.variant.rsplit(" ", 1)
        cluster = scaled(cluster, constant, float(factor))
    drawn = _draw(spec, scenario, cell)
    if cell.clock == "artifact":
        return artifact_clock.play(cluster, ARMS[cell.arm], drawn, share)
    return user_clock.play(cluster, ARMS[cell.arm], drawn, share)


def _draw(spec: ReproductionSpec, scenario: Scenario, cell: Cell) -> Draw:
    if isinstance(scenario.arrivals, RecordedPrefiller):
        return draw(scenario, cell.rate, cell.seed, redraw=spec.redraw)
    arrivals = replace(scenario.arrivals, rate=cell.rate)  # type: ignore[type-var]
    rng = np.random.default_rng(cell.seed)
    conversations = draw_episode(scenario.workload, arrivals, rng)
    times = tuple(conversation.arrival_s for conversation in conversations)
    return Draw(
        tuple(range(len(conversations))),
        tuple(conversation.turns for conversation in conversations),
        times,
        times,
        cell.seed,
    )


def _scenario(spec: ReproductionSpec, cell: Cell) -> Scenario:
    if cell.part != "scenarios":
        caps = cell.variant if cell.part == "paper" else UNCAPPED
        return _loaded(_paper_overrides(spec.workload, caps))
    return _loaded(_overrides_beyond(spec, cell.variant))


def _overrides_beyond(spec: ReproductionSpec, name: str) -> tuple[str, ...]:
    beyond = spec.scenarios[name]
    workload = _paper_workload(spec.workload)
    if beyond.workload is not None:
        workload = (f"workload={beyond.workload}",)
    return (
        f"cluster={beyond.cluster}",
        f"arrivals={beyond.arrivals}",
        *workload,
        *beyond.changes,
    )


def _paper_workload(workload: WorkloadSpec) -> tuple[str, ...]:
    source = (
        ("workload=miniswe",)
        if workload.path is None
        else ("workload=trace", f"workload.path={workload.path}")
    )
    return (
        *source,
        f"workload.conversations={workload.conversations}",
        f"workload.max_turns={workload.max_turns}",
    )


@lru_cache(maxsize=64)
def _loaded(overrides: tuple[str, ...]) -> Scenario:
    return load_scenario(overrides)


def check(spec: ReproductionSpec) -> None:
    """Check, before anything is played, that every setting can be built.

    Raises:
        ConfigurationError: A key or value is not right.
        WorkloadError: A workload cannot be read.
    """
    for caps in spec.caps:
        _loaded(_paper_overrides(spec.workload, caps))
    for name in spec.played_scenarios:
        _loaded(_overrides_beyond(spec, name))


def paper_scenario(workload: WorkloadSpec) -> Scenario:
    """Return the paper's setting at 300 W.

    Raises:
        WorkloadError: The conversations cannot be read.
        ConfigurationError: A key or value is not right.
    """
    return _loaded(_paper_overrides(workload, UNCAPPED))


def _paper_overrides(workload: WorkloadSpec, caps: str) -> tuple[str, ...]:
    return (f"cluster={CAPS[caps]}", "arrivals=paper_saturation", *_paper_workload(workload))
