"""A training run's model as a policy, with the training framework itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from omegaconf import DictConfig, OmegaConf

from conserve_gym.actions import actions_of, possible
from conserve_gym.agents.algorithms import ALGORITHMS
from conserve_gym.agents.networks.exported import scores
from conserve_gym.agents.networks.placement_view import view, view_space
from conserve_gym.agents.preference import preference_space, with_preference
from conserve_gym.agents.run_folder import CONFIG, MODEL, latest_checkpoint, load_model
from conserve_gym.agents.runtime.preference import checked_preference
from conserve_gym.agents.training import training_spec
from conserve_gym.deployment import Deployment
from conserve_gym.envs.configuration import ConfigurationError, offload_above, validated
from conserve_gym.envs.placement_env import ENVIRONMENTS
from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.estimates import TABLE_COLUMNS
from conserve_gym.fleet import Fleet
from conserve_gym.observation import Observation, Scaler
from conserve_gym.placement import Placement


class LearnedPolicy:
    """The deterministic policy of a training run.

    Args:
        folder: The run's folder; its last checkpoint serves while it is not complete.
        preference: How much energy counts, from 0 to 1, where the run was trained for any; None is
            0 there.

    Attributes:
        fleet: Engines that it decides for; at first those that it was trained for.
        model: The Stable-Baselines3 model, or what evolution found.
        config: The run's configuration.
        network: Kind of the model's network.
        complete: Whether the run has come to its end.
        preference: How much energy counts; None where the run was trained for one weight.
        observation: Which of the numbers that the network saw in training were the observation.

    Raises:
        ConfigurationError: The folder holds no model, or one of another observation table.
        PreferenceError: The preference is not from 0 to 1, or the run was trained for one weight.
    """

    def __init__(self, folder: Path, preference: float | None = None) -> None:
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
        self.model = load_model(ALGORITHMS[spec.agent.algorithm].model, path)
        self.network = spec.agent.network
        self.preference = 0.0 if spec.preference else None
        if preference is not None:
            self.preference = checked_preference(preference, folder.name, spec.preference)
            self.name += f"(preference={preference:g})"
        self._kind = spec.environment
        self._fit(self.fleet)
        self.observation = slice(0, None)
        if self.network == "linear":
            return
        shape, expected = self.model.observation_space.shape, self._space().shape
        rows = 0 if self.network == "mlp" else self.model.action_space.n * TABLE_COLUMNS
        self.observation = slice(int(spec.preference), shape[0] - rows)
        if config.get("randomise") is not None:
            self._resize()
        elif shape != expected:
            raise ConfigurationError(
                f"{path}: the model sees {shape[0]} numbers, the cluster of {folder / CONFIG} "
                f"gives {expected[0]}"
            )

    def serves(self, fleet: Fleet) -> bool:
        """Return whether the policy can decide for a fleet."""
        return fleet == self.fleet if self.network == "mlp" else possible(self._kind, fleet)

    def move_to(self, fleet: Fleet) -> None:
        """Decide for a fleet that the policy serves from now on."""
        self._fit(fleet)  # also one that is equal: its costs may differ, and with them estimates
        if self.network != "linear" and self._space() != self.model.observation_space:
            self._resize()

    def _resize(self) -> None:
        """Give the model the sizes of the fleet's observations and actions, and its own weights."""
        model = self.model
        model.observation_space = self._space()
        model.action_space = spaces.Discrete(len(self.actions.meanings))
        weights = model.policy.state_dict()
        model.policy = model.policy_class(
            model.observation_space, model.action_space, model.lr_schedule, **model.policy_kwargs
        )
        model.policy.load_state_dict(weights)

    def _fit(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.actions = actions_of(
            self._kind, fleet, offload_above(self.config), self.deployment.may_hold
        )
        self.scaler = Scaler(len(fleet.roles))

    def _space(self) -> spaces.Box:
        if self.network == "mlp":
            space: spaces.Box = spaces.Box(0.0, 1.0, (self.scaler.size,))
        else:
            space = view_space(len(self.fleet.roles), len(self.actions.meanings))
        return space if self.preference is None else preference_space(space)

    def reset(self, seed: int) -> None:
        """Keep no state."""

    def __deepcopy__(self, memo: dict[int, Any]) -> LearnedPolicy:
        """Return itself: it keeps no state, and copies that look ahead share the network."""
        return self

    def decide(self, observation: Observation) -> Placement:
        """Choose the placement of the most probable action that finds room."""
        return self.actions.placement(observation, self.action(observation))

    def action(self, observation: Observation) -> int:
        """Choose the most probable action that finds room, or the one of most value."""
        if self.network == "linear":  # as the exported policy does, to the last bit
            weights = self.model.network.at(self.preference or 0.0)
            found = self.actions.weighted(observation, weights)
        else:
            shown = self.shown(observation, self.preference)
            found = scores(self.model, shown[None], len(self.actions.meanings))[0]
        return int(np.where(self.actions.mask(observation), found, -np.inf).argmax())

    def shown(self, observation: Observation, preference: float | None) -> npt.NDArray[np.float32]:
        """Return what the network is shown, with a preference where it has one."""
        seen = self.scaler(observation.raw)
        if self.network != "mlp":
            seen = view(seen, self.actions.table(observation))
        return seen if preference is None else with_preference(preference, seen)
