"""A training run's model as a policy, with the training framework itself."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from conserve_gym.actions import ACTIONS
from conserve_gym.agents.training import ALGORITHMS, CONFIG, MODEL, latest_checkpoint
from conserve_gym.envs.configuration import ConfigurationError, scenario
from conserve_gym.observation import Observation, Scaler
from conserve_gym.placement import Placement


class LearnedPolicy:
    """The deterministic policy of a training run.

    Args:
        folder: The run's folder; its last checkpoint serves while it is not complete.

    Attributes:
        fleet: Engines that it was trained for.
        model: The Stable-Baselines3 model.
        config: The run's configuration.

    Raises:
        ConfigurationError: The folder holds no model, or one of another observation table.
    """

    def __init__(self, folder: Path) -> None:
        """Load the model."""
        path = folder / MODEL if (folder / MODEL).exists() else latest_checkpoint(folder)
        if path is None or not (folder / CONFIG).exists():
            raise ConfigurationError(f"{folder} holds no trained model")
        config = OmegaConf.load(folder / CONFIG)
        assert isinstance(config, DictConfig)
        self.config = config
        self.name = folder.name
        built = scenario(config)
        self.deployment = built.deployment
        self.fleet = built.cluster.fleet(self.deployment)
        self.actions = ACTIONS[config.environment](self.fleet)
        self.scaler = Scaler(len(self.fleet.roles))
        algorithm, _ = ALGORITHMS[config.agent.algorithm]
        try:
            self.model: Any = algorithm.load(path, device="cpu")
        # Stable-Baselines3 asserts that the archive holds data.
        except (ValueError, KeyError, EOFError, AssertionError, zipfile.BadZipFile) as error:
            raise ConfigurationError(f"{path}: not a whole model ({error})") from None
        shape = self.model.observation_space.shape
        if shape != (self.scaler.size,):
            raise ConfigurationError(
                f"{path}: the model sees {shape[0]} numbers, the observation table gives "
                f"{self.scaler.size}: it belongs to another observation table"
            )

    def reset(self, seed: int) -> None:
        """Keep no state."""

    def decide(self, observation: Observation) -> Placement:
        """Choose the most probable action that finds room."""
        action = self.act(self.scaler(observation.raw), self.actions.mask(observation))
        return self.actions.placement(observation, action)

    def act(self, scaled: Any, mask: Any) -> int:
        """Return the model's action for a scaled observation."""
        masked = {"action_masks": mask} if self.config.agent.algorithm == "maskable_ppo" else {}
        action, _ = self.model.predict(scaled, deterministic=True, **masked)
        return int(action)
