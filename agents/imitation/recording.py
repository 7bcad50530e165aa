"""Recordings: what the network is shown at each decision, and what each action would come to.

An episode is a file of NumPy arrays. Its values were found with the future at hand, and ``note``
says so; what a policy learns from them, it must find in what it is shown.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from conserve_gym.agents.algorithms import VIEWS
from conserve_gym.agents.imitation.expert import Expert
from conserve_gym.agents.learned import LearnedPolicy
from conserve_gym.agents.policies import resolve
from conserve_gym.agents.seeds import FIRST_TRAINING_SEED
from conserve_gym.envs.configuration import Scenario
from conserve_gym.envs.placement_env import ENVIRONMENTS, PlacementEnv
from conserve_gym.envs.randomised import RandomisedScenario
from conserve_gym.envs.serving.standalone import StandaloneEngine
from conserve_gym.files import whole


@dataclass(frozen=True)
class Cell:
    """An episode to record.

    Attributes:
        round: 0 is played by the look-ahead, those after it by what was learned before.
        seed: Of its workload and arrivals.
    """

    round: int
    seed: int

    @property
    def file(self) -> str:
        """Name of its recording."""
        return f"round_{self.round}_seed_{self.seed}.npz"


class Recorded(NamedTuple):
    """Decisions.

    Attributes:
        shown: What the network is shown, (decisions, numbers).
        values: What the episode would be worth after each action, NaN for those without room,
            (decisions, actions).
        rewards: What followed until the next decision, (decisions,).
        dt: Seconds until then, (decisions,).
    """

    shown: npt.NDArray[np.float32]
    values: npt.NDArray[np.float64]
    rewards: npt.NDArray[np.float64]
    dt: npt.NDArray[np.float64]


def record(
    scenario: Scenario | RandomisedScenario,
    environment: str,
    network: str,
    base: str,
    learner: Path | None,
    cell: Cell,
    folder: Path,
) -> dict[str, Any]:
    """Play an episode and write down what the look-ahead finds out at each decision.

    Args:
        scenario: What it runs on, or what draws it.
        environment: Which environment.
        network: Kind of network that it is shown to.
        base: Policy that plays on after each action that is tried.
        learner: Run whose policy decides; None lets the look-ahead decide.
        cell: Which episode; its seed is one of training's.
        folder: Where the recording goes.

    Returns:
        How many decisions there were, and what share of conversations met their SLOs.
    """
    assert cell.seed >= FIRST_TRAINING_SEED
    torch.set_num_threads(1)  # as in training
    env: PlacementEnv = ENVIRONMENTS[environment](scenario)
    policy = None if learner is None else LearnedPolicy(learner)
    played = VIEWS[network](env)
    shown, _ = played.reset(seed=cell.seed)
    spec = env.scenario.cluster
    rule = resolve(base, spec)
    rule.reset(cell.seed)
    if policy is not None:
        policy.move_to(env.fleet)
    lone = StandaloneEngine.of(spec)
    expert = Expert(rule, [lone.latencies(one.turns) for one in env.cluster.conversations])
    decisions: list[tuple[Any, ...]] = []
    info: dict[str, Any] = {}
    while "metrics" not in info:
        observation = env.cluster.observe()
        values = np.full(env.most_actions, np.nan)
        values[: len(env.actions.meanings)] = expert.values(env.cluster, observation, env.actions)
        action = int(np.nanargmax(values)) if policy is None else policy.action(observation)
        expert.taken(values[action])
        before = shown
        shown, reward, _, _, info = played.step(np.int64(action))
        decisions.append((before, values, reward, info["dt"]))
    recorded = Recorded(*(np.array(part) for part in zip(*decisions, strict=True)))
    note = {
        "sees_future": True,
        "values": f"look_ahead({base}): what each action would come to, found with the future",
        "played_by": "the look-ahead" if learner is None else learner.name,
        "seed": cell.seed,
    }
    with whole(folder / cell.file) as partial, partial.open("wb") as file:
        np.savez_compressed(file, note=np.array(json.dumps(note)), **recorded._asdict())
    return {
        "decisions": len(decisions),
        "slo_attainment_pct": info["metrics"]["slo_attainment_pct"],
    }


def read(folder: Path, cells: Sequence[Cell]) -> list[Recorded]:
    """Return the recordings of some episodes."""
    recordings = []
    for cell in cells:
        with np.load(folder / cell.file) as arrays:
            recordings.append(Recorded(*(arrays[name] for name in Recorded._fields)))
    return recordings
