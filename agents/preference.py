"""How much a user prefers energy to latency: a knob that a policy is trained with, and shown.

It is no field of the observation, which holds what happened: it stands before it, as the first of
the numbers that a network sees.
"""

from __future__ import annotations

from typing import Any, cast

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from conserve_gym.envs.placement_env import PlacementEnv
from conserve_gym.envs.reward import weighted

Float32Array = npt.NDArray[np.float32]

_STEPS = 10  # that are drawn, both ends among them: users ask for these first


def with_preference(preference: float, seen: Float32Array) -> Float32Array:
    """Return what a network sees, with the preference before it."""
    return np.concatenate([np.array([preference], dtype=np.float32), seen])


def preference_space(seen: spaces.Box) -> spaces.Box:
    """Return the space of such vectors."""
    low, high = seen.low.astype(np.float32), seen.high.astype(np.float32)
    return spaces.Box(with_preference(0.0, low), with_preference(1.0, high))


class DrawnPreference(gymnasium.Wrapper[Float32Array, np.int64, Float32Array, np.int64]):
    """Draws a preference from 0 to 1 an episode, shows it, and weighs energy by it.

    Args:
        env: An environment that shows a vector. Its weight of energy is that of a preference of 1.
    """

    def __init__(self, env: gymnasium.Env[Float32Array, np.int64]) -> None:
        """Lay out the space."""
        super().__init__(env)
        self._placement = cast(PlacementEnv, env.unwrapped)
        space: spaces.Space[Any] = preference_space(cast(spaces.Box, env.observation_space))
        self.observation_space = space
        self._preference = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Float32Array, dict[str, Any]]:
        """Draw it, and reset the environment, which plays the episode that it plays without."""
        seen, info = self.env.reset(seed=seed, options=options)
        self._preference = float(self.np_random.integers(0, _STEPS, endpoint=True)) / _STEPS
        return with_preference(self._preference, seen), info

    def step(self, action: np.int64) -> tuple[Float32Array, float, bool, bool, dict[str, Any]]:
        """Place the conversation at the door; the reward is that of the preference."""
        seen, _, terminated, truncated, info = self.env.step(action)
        weights = self._placement.scenario.reward.preferring(self._preference)
        reward = weighted(info["reward_terms"], weights)
        return with_preference(self._preference, seen), reward, terminated, truncated, info
