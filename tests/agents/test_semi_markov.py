"""Discounting by time: equal to stock buffers at dt = 1, and right on a hand-computed case."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from sb3_contrib import QRDQN
from sb3_contrib.common.maskable.buffers import MaskableRolloutBuffer
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.buffers import RolloutBuffer

from conserve_gym.agents.semi_markov import (
    RecordTime,
    TimeDiscountMaskableRolloutBuffer,
    TimeDiscountReplayBuffer,
    TimeDiscountRolloutBuffer,
)


def filled(kind: type[RolloutBuffer], steps: int, envs: int, seed: int = 0) -> RolloutBuffer:
    rng = np.random.default_rng(seed)
    buffer = kind(
        steps,
        gymnasium.spaces.Box(-1.0, 1.0, (3,)),
        gymnasium.spaces.Discrete(2),
        "cpu",
        gamma=0.9,
        gae_lambda=0.8,
        n_envs=envs,
    )
    buffer.reset()
    buffer.rewards[:] = rng.normal(size=(steps, envs))
    buffer.values[:] = rng.normal(size=(steps, envs))
    buffer.episode_starts[:] = rng.random((steps, envs)) < 0.2
    return buffer


@pytest.mark.parametrize(
    ("stock", "ours"),
    [
        (RolloutBuffer, TimeDiscountRolloutBuffer),
        (MaskableRolloutBuffer, TimeDiscountMaskableRolloutBuffer),
    ],
)
def test_equals_the_stock_buffer_when_every_step_takes_a_second(
    stock: type[RolloutBuffer], ours: type[RolloutBuffer]
) -> None:
    a, b = filled(stock, 20, 3), filled(ours, 20, 3)
    last, dones = torch.tensor([0.3, -1.0, 2.0]), np.array([False, True, False])
    for buffer in (a, b):
        buffer.compute_returns_and_advantage(last_values=last, dones=dones)
    np.testing.assert_allclose(a.advantages, b.advantages, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(a.returns, b.returns, rtol=1e-5, atol=1e-6)


def test_a_two_step_episode_by_hand() -> None:
    buffer = filled(TimeDiscountRolloutBuffer, 2, 1)
    buffer.rewards[:] = [[1.0], [2.0]]
    buffer.values[:] = [[0.5], [0.25]]
    buffer.episode_starts[:] = [[1.0], [0.0]]
    buffer.dt[:] = [[2.0], [0.5]]
    buffer.compute_returns_and_advantage(torch.tensor([4.0]), np.array([False]))
    second = 2.0 + 0.9**0.5 * 4.0 - 0.25
    first = 1.0 + 0.9**2 * 0.25 - 0.5 + 0.9**2 * 0.8 * second
    np.testing.assert_allclose(buffer.advantages.ravel(), [first, second], rtol=1e-6)


class _Clockwork(gymnasium.Env):
    """Every step takes another, known time."""

    observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        return np.zeros(1, np.float32), 0.0, self.count == 10, False, {"dt": float(self.count)}


def test_times_are_recorded_with_their_own_transition() -> None:
    model = PPO(
        "MlpPolicy",
        _Clockwork(),
        n_steps=30,
        batch_size=30,
        n_epochs=1,
        rollout_buffer_class=TimeDiscountRolloutBuffer,
        device="cpu",
        seed=0,
    )
    model.learn(30, callback=RecordTime())
    expected = np.tile(np.arange(1.0, 11.0), 3)
    np.testing.assert_array_equal(model.rollout_buffer.dt.ravel(), expected)


@pytest.mark.parametrize("algorithm", [DQN, QRDQN])
def test_a_replayed_transition_has_the_discount_of_its_own_time(algorithm: type[DQN]) -> None:
    model = algorithm(
        "MlpPolicy",
        _Clockwork(),
        buffer_size=16,
        learning_starts=4,
        batch_size=4,
        replay_buffer_class=TimeDiscountReplayBuffer,
        replay_buffer_kwargs={"gamma": 0.9},
        device="cpu",
        seed=0,
    )
    model.learn(20)
    buffer = model.replay_buffer
    # 20 transitions in 16 places: the first four are those of seconds 7 to 10.
    expected = np.concatenate([np.arange(7.0, 11.0), np.arange(5.0, 11.0), np.arange(1.0, 7.0)])
    np.testing.assert_array_equal(buffer.dt.ravel(), expected)
    sample = buffer._get_samples(np.arange(16))
    np.testing.assert_allclose(sample.discounts.numpy().ravel(), 0.9**expected, rtol=1e-6)
    np.testing.assert_array_equal(sample.dones.numpy().ravel(), expected == 10.0)


def test_a_value_is_learnt_that_counts_the_seconds() -> None:
    model = DQN(
        "MlpPolicy",
        _TwoSteps(),
        learning_starts=10,
        batch_size=32,
        train_freq=1,
        learning_rate=0.01,
        target_update_interval=20,
        replay_buffer_class=TimeDiscountReplayBuffer,
        replay_buffer_kwargs={"gamma": 0.5},
        device="cpu",
        seed=0,
    )
    model.learn(600)
    with torch.no_grad():
        first, second = model.q_net(torch.tensor([[0.0], [1.0]])).max(dim=1).values.tolist()
    assert second == pytest.approx(1.0, abs=0.05)
    assert first == pytest.approx(0.5**2, abs=0.05)  # two seconds before


class _TwoSteps(gymnasium.Env):
    """A step of two seconds, then one that brings a reward of 1."""

    observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.second = False
        return np.zeros(1, np.float32), {}

    def step(self, action):
        if self.second:
            return np.zeros(1, np.float32), 1.0, True, False, {"dt": 7.0}
        self.second = True
        return np.ones(1, np.float32), 0.0, False, False, {"dt": 2.0}
