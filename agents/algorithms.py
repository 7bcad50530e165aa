"""Algorithms and networks, by the names that a configuration gives them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
from sb3_contrib import QRDQN, MaskablePPO
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.buffers import BaseBuffer

from conserve_gym.agents.networks.action_values import ScorerQPolicy, ScorerQuantilePolicy
from conserve_gym.agents.networks.actor_critic import MaskableScorerPolicy, ScorerPolicy
from conserve_gym.agents.networks.linear_model import LinearModel
from conserve_gym.agents.networks.placement_view import PlacementView
from conserve_gym.agents.semi_markov import (
    TimeDiscountMaskableRolloutBuffer,
    TimeDiscountReplayBuffer,
    TimeDiscountRolloutBuffer,
)


@dataclass(frozen=True)
class Algorithm:
    """One of Stable-Baselines3's.

    Attributes:
        model: The algorithm; of evolution, what it finds.
        buffer: Where it keeps transitions under a discount by time; None if it keeps none.
        policies: Its policy for each network.
        masked: Whether it takes masks of actions.
        on_policy: Whether it learns from its own latest steps alone.
    """

    model: Any
    buffer: type[BaseBuffer] | None
    policies: Mapping[str, Any]
    masked: bool = False
    on_policy: bool = True


ALGORITHMS: dict[str, Algorithm] = {
    "ppo": Algorithm(PPO, TimeDiscountRolloutBuffer, {"mlp": "MlpPolicy", "scorer": ScorerPolicy}),
    "maskable_ppo": Algorithm(
        MaskablePPO,
        TimeDiscountMaskableRolloutBuffer,
        {"mlp": "MlpPolicy", "scorer": MaskableScorerPolicy},
        masked=True,
    ),
    # What clones is a model of MaskablePPO that has not learned yet: its policy serves every
    # environment, and PPO can begin with its weights.
    "bc": Algorithm(
        MaskablePPO,
        TimeDiscountMaskableRolloutBuffer,
        {"mlp": "MlpPolicy", "scorer": MaskableScorerPolicy},
        masked=True,
    ),
    "dqn": Algorithm(
        DQN,
        TimeDiscountReplayBuffer,
        {"mlp": "MlpPolicy", "scorer": ScorerQPolicy},
        on_policy=False,
    ),
    "qrdqn": Algorithm(
        QRDQN,
        TimeDiscountReplayBuffer,
        {"mlp": "MlpPolicy", "scorer": ScorerQuantilePolicy},
        on_policy=False,
    ),
    "evolution": Algorithm(LinearModel, None, {}, masked=True),
}

VIEWS: dict[str, Any] = {"mlp": gymnasium.wrappers.FlattenObservation, "scorer": PlacementView}
"""What each network is shown of an environment."""
