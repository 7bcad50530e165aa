"""Discounting by time: buffers for decisions that lie different times apart.

Between two decisions dt seconds pass, so the value of what follows is discounted by gamma ** dt,
with gamma a second's discount (a semi-Markov decision process; Bradtke and Duff 1994). With
dt = 1 the buffers equal those of Stable-Baselines3. Episodes must end by termination: the
bootstrap at a truncation in Stable-Baselines3 knows one gamma only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sb3_contrib.common.maskable.buffers import MaskableRolloutBuffer
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize


class _TimeDiscount:
    """Generalised advantage estimation with a discount for each transition's time."""

    buffer_size: int
    n_envs: int
    gamma: float
    gae_lambda: float
    rewards: npt.NDArray[np.float32]
    values: npt.NDArray[np.float32]
    advantages: npt.NDArray[np.float32]
    returns: npt.NDArray[np.float32]
    episode_starts: npt.NDArray[np.float32]
    dt: npt.NDArray[np.float32]

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self.dt = np.ones((self.buffer_size, self.n_envs), dtype=np.float32)

    def compute_returns_and_advantage(
        self, last_values: torch.Tensor, dones: npt.NDArray[np.bool_]
    ) -> None:
        discount = self.gamma**self.dt
        next_values = np.vstack([self.values[1:], last_values.cpu().numpy().reshape(1, -1)])
        goes_on = 1.0 - np.vstack([self.episode_starts[1:], dones.astype(np.float32)])
        errors = self.rewards + discount * next_values * goes_on - self.values
        decay = discount * self.gae_lambda * goes_on
        advantage = np.zeros(self.n_envs, dtype=np.float32)
        for step in reversed(range(self.buffer_size)):
            advantage = errors[step] + decay[step] * advantage
            self.advantages[step] = advantage
        self.returns = self.advantages + self.values


class TimeDiscountRolloutBuffer(_TimeDiscount, RolloutBuffer):
    """For ``stable_baselines3.PPO``."""


class TimeDiscountMaskableRolloutBuffer(_TimeDiscount, MaskableRolloutBuffer):
    """For ``sb3_contrib.MaskablePPO``."""


class TimeDiscountReplayBuffer(ReplayBuffer):
    """For ``stable_baselines3.DQN`` and ``sb3_contrib.QRDQN``.

    Args:
        args: As for the buffer of Stable-Baselines3.
        gamma: A second's discount.
        kwargs: As for the buffer of Stable-Baselines3.
    """

    def __init__(self, *args: Any, gamma: float, **kwargs: Any) -> None:
        """Make room for each transition's time."""
        super().__init__(*args, **kwargs)
        self.gamma = gamma
        self.dt = np.ones((self.buffer_size, self.n_envs), dtype=np.float32)

    def add(
        self,
        obs: npt.NDArray[Any],
        next_obs: npt.NDArray[Any],
        action: npt.NDArray[Any],
        reward: npt.NDArray[Any],
        done: npt.NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Add a transition of each environment, with its time."""
        self.dt[self.pos] = [info["dt"] for info in infos]
        super().add(obs, next_obs, action, reward, done, infos)

    def _get_samples(
        self, batch_inds: npt.NDArray[np.int64], env: VecNormalize | None = None
    ) -> ReplayBufferSamples:
        chosen = batch_inds, np.random.randint(self.n_envs, size=len(batch_inds))
        data = (
            self.observations[chosen],
            self.actions[chosen],
            self.next_observations[chosen],
            self.dones[chosen].reshape(-1, 1),
            self.rewards[chosen].reshape(-1, 1),
            self.gamma ** self.dt[chosen].reshape(-1, 1),
        )
        return ReplayBufferSamples(*map(self.to_torch, data))


class RecordTime(BaseCallback):
    """Writes each transition's ``info["dt"]`` into the rollout buffer, before it is added."""

    def _on_step(self) -> bool:
        buffer: Any = self.model.rollout_buffer  # type: ignore[attr-defined]
        buffer.dt[buffer.pos] = [info["dt"] for info in self.locals["infos"]]
        return True
