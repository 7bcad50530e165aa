"""Small training runs that several tests share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
from filelock import FileLock
from omegaconf import DictConfig

# Helpers beside these tests: pytest's importlib mode does not make them importable.
sys.path.insert(0, str(Path(__file__).parent))

TINY = (
    "experiment=quick",
    "progress_bar=false",
    "workload.conversations=16",
    "agent.n_envs=2",
    "agent.batch_size=64",
    "agent.learning_rate=0.01",  # so that the policy does not stay near indifference
    "total_timesteps=256",
    "checkpoint_every=128",
)


OFF_POLICY = ("agent.train_freq=4", "agent.gradient_steps=2", "agent.learning_starts=64")


EVOLUTION = (
    "agent=evolution",
    "environment=joint",
    "deployment.all_mixed=true",
    "progress_bar=false",
    "agent.population_size=4",
    "agent.workers=1",
    "workload.conversations=8",
    "total_timesteps=80",
)


def compose_evolution(*overrides: str) -> DictConfig:
    """Return the configuration of two generations."""
    with hydra.initialize_config_module("conserve_gym.conf", version_base="1.3"):
        return hydra.compose("train", [*EVOLUTION, *overrides])


def compose_tiny(*overrides: str) -> DictConfig:
    """Return a training configuration of a few seconds."""
    off_policy = any(override in ("agent=dqn", "agent=qrdqn") for override in overrides)
    steps = OFF_POLICY if off_policy else ("agent.n_steps=64",)
    with hydra.initialize_config_module("conserve_gym.conf", version_base="1.3"):
        return hydra.compose("train", [*TINY, *steps, *overrides])


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., DictConfig]:
    """Return the function that composes a training configuration of a few seconds."""
    return compose_tiny


JOINT = ("environment=joint", "agent=maskable_ppo", "candidates.offload_above=[null,512]")
RUNS: dict[str, tuple[str, ...]] = {
    "conversation": (),
    "joint": JOINT,
    "conversation_scorer": ("agent.network=scorer",),
    "joint_scorer": (*JOINT, "agent.network=scorer"),
    "conversation_dqn": ("agent=dqn",),
    "joint_linear": ("candidates.offload_above=[null,512]",),
    "conversation_qrdqn_scorer": ("agent=qrdqn", "agent.network=scorer"),
}


@pytest.fixture(scope="session", params=RUNS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished and exported run, for each kind of action and of network.

    Pytest sets it up again in each file that asks for it, and in each worker: who comes first
    trains.
    """
    from conserve_gym.agents.export import export
    from conserve_gym.agents.training import train

    shared = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        shared = shared.parent
    folder = shared / "trained" / str(request.param)
    folder.parent.mkdir(exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "policy").exists():
            compose = compose_evolution if request.param == "joint_linear" else compose_tiny
            train(compose(f"run={folder}", *RUNS[request.param]))
            export(folder, folder / "policy")
    return folder


@pytest.fixture(scope="session")
def exported(trained: Path) -> Path:
    """Return the exported policy of the finished run."""
    return trained / "policy"
