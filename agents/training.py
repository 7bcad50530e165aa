"""Training runs: Stable-Baselines3 on a placement environment, resumable after a kill.

A run is a folder: ``config.yaml`` and ``run.json`` say what it is, ``checkpoints/`` holds the
newest states, ``model.zip`` appears when it is complete. Starting a run again in its folder goes
on from the last checkpoint.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from conserve_gym.agents.provenance import provenance, write_json
from conserve_gym.agents.semi_markov import (
    RecordTime,
    TimeDiscountMaskableRolloutBuffer,
    TimeDiscountRolloutBuffer,
)
from conserve_gym.envs.configuration import ConfigurationError, Scenario, scenario
from conserve_gym.envs.placement_env import ConversationPlacementEnv, JointPlacementEnv

ENVIRONMENTS = {"conversation": ConversationPlacementEnv, "joint": JointPlacementEnv}
ALGORITHMS: dict[str, tuple[Any, type[RolloutBuffer]]] = {
    "ppo": (PPO, TimeDiscountRolloutBuffer),
    "maskable_ppo": (MaskablePPO, TimeDiscountMaskableRolloutBuffer),
}
FIRST_TRAINING_SEED = 1_000_000
"""Training draws its episodes from seeds above this one, evaluation from seeds below."""

MODEL, CONFIG, RUN = "model.zip", "config.yaml", "run.json"
KEPT_CHECKPOINTS = 2


def train(config: DictConfig) -> Path:
    """Train until ``config.total_timesteps`` and return the run's folder.

    Raises:
        ConfigurationError: A key or value is not right, or the folder holds another run.
    """
    torch.set_num_threads(1)  # two threads are 3 to 19 times slower on small networks
    folder = Path(config.run)
    if (folder / MODEL).exists():
        raise ConfigurationError(f"run={folder} is complete; choose another folder")
    built = scenario(config)
    settings = _settings(config)
    _check_same(folder, settings)
    checkpoint = latest_checkpoint(folder)
    envs = _vector_env(built, config, checkpoint)
    model = _load(config, checkpoint, envs) if checkpoint else _create(config, folder, envs)
    _claim(folder, settings)
    remaining = config.total_timesteps - model.num_timesteps
    if checkpoint:
        print(f"resuming {folder} at {model.num_timesteps:,} of {config.total_timesteps:,} steps")
    callbacks: list[BaseCallback] = [
        LogEpisodes(),
        ObservedRange(),
        Checkpoint(folder, config.checkpoint_every),
    ]
    if config.discount.kind == "per_second":
        callbacks.insert(0, RecordTime())
    model.learn(
        remaining,
        callback=callbacks,
        reset_num_timesteps=not checkpoint,
        tb_log_name="tensorboard",
        progress_bar=config.progress_bar,
    )
    _save(model, folder / MODEL)
    return folder


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint of a run, if it has one."""
    return max(folder.glob("checkpoints/*.zip"), key=lambda path: int(path.stem), default=None)


class Checkpoint(BaseCallback):
    """Saves the whole model between rollouts; a file appears whole or not at all.

    Args:
        folder: The run's folder.
        every: Steps between checkpoints.
    """

    def __init__(self, folder: Path, every: int) -> None:
        """Prepare the folder."""
        super().__init__()
        self._folder = folder / "checkpoints"
        self._every = every

    def _on_training_start(self) -> None:
        self._folder.mkdir(exist_ok=True)
        self._saved_at = self.num_timesteps

    def _on_rollout_start(self) -> None:
        # The rollout before is learned from by now.
        if self.num_timesteps - self._saved_at >= self._every:
            self._saved_at = self.num_timesteps
            _save(self.model, self._folder / f"{self.num_timesteps}.zip")
            kept = sorted(self._folder.glob("*.zip"), key=lambda path: int(path.stem))
            for path in kept[:-KEPT_CHECKPOINTS]:
                path.unlink()

    def _on_step(self) -> bool:
        return True


class LogEpisodes(BaseCallback):
    """Logs the metrics of finished episodes beside the reward."""

    LOGGED = ("slo_attainment_pct", "goodput_per_s", "ttfet_p95", "tbt_p95", "tokens_per_joule")

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "metrics" in info:
                for name in self.LOGGED:
                    self.logger.record_mean(f"episode/{name}", info["metrics"][name])
        return True


class ObservedRange(BaseCallback):
    """Keeps the range of every observation field on the model, so that checkpoints have it."""

    def _on_rollout_end(self) -> None:
        model: Any = self.model
        observations = model.rollout_buffer.observations
        low, high = observations.min(axis=(0, 1)), observations.max(axis=(0, 1))
        if hasattr(model, "observed_low"):
            low = np.minimum(low, model.observed_low)
            high = np.maximum(high, model.observed_high)
        model.observed_low, model.observed_high = low, high

    def _on_step(self) -> bool:
        return True


def _settings(config: DictConfig) -> dict[str, Any]:
    """Return what makes a run this run: everything but where it is kept and how it is shown."""
    settings = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    return {key: settings[key] for key in settings if key not in ("run", "progress_bar")}


def _check_same(folder: Path, settings: dict[str, Any]) -> None:
    """Check that the folder holds this very run, or none."""
    stored = folder / CONFIG
    if stored.exists():
        before = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(stored)))
        differing = sorted(
            key for key in before.keys() | settings.keys() if before.get(key) != settings.get(key)
        )
        if differing:
            raise ConfigurationError(
                f"run={folder} holds a run with other settings ({', '.join(differing)}); "
                "choose another folder"
            )


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Write down what the run is."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RUN, provenance())
    partial = folder / (CONFIG + ".partial")
    OmegaConf.save(OmegaConf.create(settings), partial)
    os.replace(partial, folder / CONFIG)


def _vector_env(built: Scenario, config: DictConfig, checkpoint: Path | None) -> VecEnv:
    environment = ENVIRONMENTS.get(config.environment)
    if environment is None:
        raise ConfigurationError(
            f"environment={config.environment!r} is none of {', '.join(ENVIRONMENTS)}"
        )
    done = int(checkpoint.stem) if checkpoint else 0
    # A resumed run draws other episodes than those it has seen.
    seed = np.random.SeedSequence([config.seed, done]).generate_state(1)[0] % 1_000_000_000
    return make_vec_env(
        lambda: gymnasium.wrappers.FlattenObservation(environment(built)),
        n_envs=config.agent.n_envs,
        seed=FIRST_TRAINING_SEED + int(seed),
    )


def _create(config: DictConfig, folder: Path, envs: VecEnv) -> Any:
    agent = dict(instantiate(config.agent, _convert_="all"))
    agent.pop("n_envs")
    name = agent.pop("algorithm")
    if name not in ALGORITHMS:
        raise ConfigurationError(f"agent.algorithm={name!r} is none of {', '.join(ALGORITHMS)}")
    algorithm, buffer = ALGORITHMS[name]
    if config.discount.kind == "per_second":
        agent["gamma"] = float(np.exp(-1.0 / config.discount.horizon_s))
        agent["rollout_buffer_class"] = buffer
    elif config.discount.kind == "per_decision":
        agent["gamma"] = config.discount.gamma
    else:
        raise ConfigurationError(
            f"discount.kind={config.discount.kind!r} is none of per_second, per_decision"
        )
    try:
        return algorithm(
            "MlpPolicy",
            envs,
            seed=config.seed,
            device="cpu",
            tensorboard_log=str(folder),
            **agent,
        )
    except TypeError as error:
        raise ConfigurationError(f"agent: {error}") from None


def _load(config: DictConfig, checkpoint: Path, envs: VecEnv) -> Any:
    algorithm, _ = ALGORITHMS[config.agent.algorithm]
    return algorithm.load(checkpoint, env=envs, device="cpu")


def _save(model: BaseAlgorithm, path: Path) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:  # given a name, Stable-Baselines3 would append .zip
        model.save(file)
    os.replace(partial, path)
