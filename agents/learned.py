"""A training run's model as a policy, with the training framework itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from conserve_gym.actions import actions_of
from conserve_gym.agents.run_folder import CONFIG, MODEL, latest_checkpoint, load_model
from conserve_gym.agents.training import ALGORITHMS, ENVIRONMENTS, training_spec
from conserve_gym.deployment import Deployment
from conserve_gym.envs.configuration import ConfigurationError, offload_above, validated
from conserve_gym.envs.serving.cluster_spec import ClusterSpec
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
        complete: Whether the run has come to its end.

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
        self.complete = path.name == MODEL
        self.name = folder.name if self.complete else f"{folder.name} at {path.stem} steps"
        spec = training_spec(config)
        environment = ENVIRONMENTS[spec.environment]
        self.deployment = environment.deployed(
            validated(Deployment, config.deployment, "deployment")
        )
        self.fleet = validated(ClusterSpec, config.cluster, "cluster").fleet(self.deployment)
        self.actions = actions_of(spec.environment, self.fleet, offload_above(config))
        self.scaler = Scaler(len(self.fleet.roles))
        algorithm, _ = ALGORITHMS[spec.agent.algorithm]
        self.model = load_model(algorithm, path)
        self._masked = spec.agent.algorithm == "maskable_ppo"
        shape = self.model.observation_space.shape
        if shape != (self.scaler.size,):
            raise ConfigurationError(
                f"{path}: the model sees {shape[0]} numbers, the cluster of {folder / CONFIG} "
                f"gives {self.scaler.size}"
            )

    def reset(self, seed: int) -> None:
        """Keep no state."""

    def decide(self, observation: Observation) -> Placement:
        """Choose the most probable action that finds room."""
        action = self.act(self.scaler(observation.raw), self.actions.mask(observation))
        return self.actions.placement(observation, action)

    def act(self, scaled: Any, mask: Any) -> int:
        """Return the model's action for a scaled observation."""
        masked = {"action_masks": mask} if self._masked else {}
        action, _ = self.model.predict(scaled, deterministic=True, **masked)
        return int(action)
