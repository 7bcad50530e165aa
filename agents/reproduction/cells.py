"""What is played: one arm on one clock, in one setting, with one seed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np

from conserve_gym.agents.reproduction import artifact_clock, user_clock
from conserve_gym.agents.reproduction.arms import ARMS, MISROUTED_SHARE
from conserve_gym.agents.reproduction.detours import misrouted
from conserve_gym.agents.reproduction.recording import PAPER_SEED, SATURATION, Draw, draw
from conserve_gym.agents.reproduction.sensitivity import scaled
from conserve_gym.agents.reproduction.spec import CAPS, ReproductionSpec, WorkloadSpec
from conserve_gym.envs.configuration import Scenario, load_scenario
from conserve_gym.envs.workloads.arrivals import RecordedPrefiller
from conserve_gym.envs.workloads.conversation import Conversation
from conserve_gym.envs.workloads.workload import draw_episode
from conserve_gym.metrics import CLOCKS, Clock

Part = Literal["paper", "orders", "shares", "scenarios", "sensitivity"]
UNCAPPED = "300/300"

_COMPARED = ("colocate_oracle", "ampd", "ampd_played", "conserve_oracle")
"""Arms whose winner is looked for where a constant is scaled. Full Disagg never is: it is behind by
a factor of ten."""

_BEYOND = (
    "colocate_oracle",
    "colocate",
    "full_disagg",
    "ampd_played",
    "conserve_oracle",
    "conserve",
)


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
        seed: Of the draw; of ``orders``, of the order of conversations alone.
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
        for arm, clock in _arms_on_clocks(ARMS):
            for rate in spec.rates:
                for seed in spec.seeds:
                    yield Cell("paper", caps, arm, clock, rate, seed)
    for arm, clock in _arms_on_clocks(ARMS):
        for order in range(spec.orders):
            yield Cell("orders", UNCAPPED, arm, clock, SATURATION, order)
    for share in spec.misrouted_shares:
        for seed in spec.seeds:
            yield Cell("shares", f"{share:g}", "ampd", "artifact", SATURATION, seed)
    for name, scenario in spec.scenarios.items():
        for arm in _BEYOND:
            for rate in scenario.rates:
                for seed in spec.seeds[: spec.scenario_seeds]:
                    yield Cell("scenarios", name, arm, "user", rate, seed)
    for constant in spec.sensitivity.constants:
        for factor in spec.sensitivity.factors:
            for arm, clock in _arms_on_clocks(_COMPARED):
                for rate in spec.rates:
                    for seed in spec.seeds[: spec.sensitivity.seeds]:
                        variant, part = scaled_setting(constant, factor)
                        yield Cell(part, variant, arm, clock, rate, seed)


def _arms_on_clocks(names: Iterable[str]) -> Iterator[tuple[str, Clock]]:
    for name in names:
        for clock in CLOCKS:
            if ARMS[name].own_run if clock == "user" else ARMS[name].run:
                yield name, clock


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
    arm = ARMS[cell.arm]
    if not isinstance(scenario.arrivals, RecordedPrefiller):
        arrivals = replace(scenario.arrivals, rate=cell.rate)  # type: ignore[type-var]
        rng = np.random.default_rng(cell.seed)
        conversations = draw_episode(scenario.workload, arrivals, rng)
        numbers: tuple[int, ...] = tuple(range(len(conversations)))
    else:
        drawn = _draw(scenario, cell)
        if cell.clock == "artifact":
            return artifact_clock.play(cluster, arm, drawn, cell.seed, share)
        conversations = [
            Conversation(time, turns)
            for time, turns in zip(drawn.starts_s, drawn.turns, strict=True)
        ]
        numbers = drawn.numbers
    counts = [len(conversation.turns) for conversation in conversations]
    turns = misrouted(counts, numbers, share, cell.seed)
    return user_clock.play(cluster, arm, conversations, turns, cell.seed)


def _draw(scenario: Scenario, cell: Cell) -> Draw:
    if cell.part == "orders":
        return draw(scenario, cell.rate, PAPER_SEED, cell.seed)
    return draw(scenario, cell.rate, cell.seed)


def _scenario(spec: ReproductionSpec, cell: Cell) -> Scenario:
    if cell.part != "scenarios":
        caps = cell.variant if cell.part == "paper" else UNCAPPED
        return _loaded(_paper_overrides(spec.workload, caps))
    beyond = spec.scenarios[cell.variant]
    workload = _paper_workload(spec.workload)
    if beyond.workload is not None:
        workload = (f"workload={beyond.workload}",)
    return _loaded(
        (
            f"cluster={beyond.cluster}",
            f"arrivals={beyond.arrivals}",
            *workload,
            *beyond.changes,
        )
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


def paper_scenario(workload: WorkloadSpec) -> Scenario:
    """Return the paper's setting at 300 W.

    Raises:
        WorkloadError: The conversations cannot be read.
        ConfigurationError: A key or value is not right.
    """
    return _loaded(_paper_overrides(workload, UNCAPPED))


def _paper_overrides(workload: WorkloadSpec, caps: str) -> tuple[str, ...]:
    return (f"cluster={CAPS[caps]}", "arrivals=paper_saturation", *_paper_workload(workload))
