"""A reproduction of a few conversations, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from conserve_gym.agents.reproduction.cells import paper_scenario
from conserve_gym.agents.reproduction.recording import SATURATION, Draw, draw
from conserve_gym.agents.reproduction.spec import (
    ReproductionSpec,
    ScenarioSpec,
    SensitivitySpec,
    WorkloadSpec,
)
from conserve_gym.envs.configuration import Scenario
from conserve_gym.envs.workloads.conversation import Conversation, Turn

WORKLOAD = WorkloadSpec(path=None, conversations=12, max_turns=5)

SPEC = ReproductionSpec(
    workload=WORKLOAD,
    rates=(SATURATION,),
    caps=("300/300",),
    seeds=(42, 0),
    redraw=True,
    misrouted_shares=(),
    sensitivity=SensitivitySpec(constants=(), factors=(), seeds=1),
    scenarios={},
    scenario_rates=None,
    scenario_seeds=1,
    workers=1,
    output=Path("unused"),
)


def spec(**changes: Any) -> ReproductionSpec:
    """Return the tiny reproduction with changes."""
    return replace(SPEC, **changes)


def beyond(rates: Sequence[float] = (1.0,)) -> ScenarioSpec:
    """Return a setting beyond the paper's."""
    return ScenarioSpec(
        says="shorter chunks at the prefiller",
        rates=tuple(rates),
        cluster="a40_1p3d",
        arrivals="paper_saturation",
        workload=None,
        changes=("cluster.engines.0.token_budget=4096",),
    )


def tiny() -> Scenario:
    """Return the paper's setting with a dozen conversations."""
    return paper_scenario(WORKLOAD)


def drawn(seed: int = 42) -> Draw:
    """Return a dozen conversations at saturation; the seed draws all that a seed can."""
    return draw(tiny(), SATURATION, seed, redraw=True)


def lone(turns: Sequence[Turn]) -> Draw:
    """Return a draw of one conversation, which comes at once."""
    return Draw((0,), (tuple(turns),), (0.0,), (0.0,), 42)


def arriving(draw: Draw) -> list[Conversation]:
    """Return a draw's conversations as they arrive."""
    return [Conversation(*one) for one in zip(draw.starts_s, draw.turns, strict=True)]
