"""Fitting policies to recordings: what is learned from noisy values, ties and masks."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO

from conserve_gym.agents.imitation.cloning import _returns, fit
from conserve_gym.agents.imitation.imitation_spec import ImitationSpec
from conserve_gym.agents.imitation.recording import Recorded
from conserve_gym.agents.training_spec import DiscountSpec

torch.set_num_threads(1)  # as in training

SPEC = ImitationSpec(
    base="conserve",
    dagger_rounds=0,
    validation_fraction=0.5,
    n_epochs=60,
    patience=60,
    batch_size=128,
    learning_rate=0.01,
    workers=1,
    policy_kwargs={},
)
PER_SECOND = DiscountSpec("per_second", horizon_s=10.0, gamma=0.5)


class _Blank(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)


def recorded(shown: np.ndarray, values: np.ndarray) -> Recorded:
    n = len(shown)
    return Recorded(shown.astype(np.float32), values, np.zeros(n), np.ones(n))


def model() -> Any:
    return MaskablePPO("MlpPolicy", _Blank(), seed=0, device="cpu", n_steps=8, batch_size=8)


def chosen(of: Any, shown: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return of.policy.get_distribution(torch.from_numpy(shown)).mode().numpy()


def test_the_action_that_is_best_on_average_is_learned() -> None:
    """Action 0 is best more often, action 1 by more; action 2 is worth most and never allowed."""
    rng = np.random.default_rng(0)

    def episode() -> Recorded:
        shown = rng.random((256, 2))
        rarely = rng.random(256) < 0.3
        values = np.stack([np.ones(256), np.where(rarely, 11.0, 0.0), np.full(256, np.nan)], axis=1)
        flipped = shown[:, 0] < 0.5
        values[flipped, :2] = values[flipped, 1::-1]
        return recorded(shown, values)

    learner = model()
    found = fit(learner, [episode(), episode()], [episode()], SPEC, PER_SECOND)
    probe = np.array([[0.1, 0.5], [0.9, 0.5]], dtype=np.float32)
    with torch.no_grad():
        scores = learner.policy.action_net(
            learner.policy.mlp_extractor.forward_actor(torch.from_numpy(probe))
        )
    assert scores[:, :2].argmax(dim=1).tolist() == [0, 1]
    assert found.agreement_pct < 60.0, "it is right in three of ten cases, and those are worth more"
    assert found.gain_pct > 50.0


def test_decisions_without_a_difference_weigh_nothing() -> None:
    rng = np.random.default_rng(1)
    shown = rng.random((400, 2))
    values = np.zeros((400, 3))
    values[:40, 2] = 1.0  # all others are ties
    episode = recorded(shown, values)
    learner = model()
    found = fit(learner, [episode], [episode], SPEC, PER_SECOND)
    assert (chosen(learner, episode.shown) == 2).all()
    assert (found.agreement_pct, found.gain_pct) == (100.0, 100.0)


def test_returns_by_hand() -> None:
    one = Recorded(
        np.zeros((3, 2), np.float32),
        np.zeros((3, 3)),
        np.array([1.0, 0.0, 2.0]),
        np.array([5, 10, 1]),
    )
    last, first = 2.0, 1.0 + np.exp(-0.5) * np.exp(-1.0) * 2.0
    assert _returns(one, PER_SECOND) == pytest.approx([first, np.exp(-1.0) * 2.0, last])
    per_decision = DiscountSpec("per_decision", horizon_s=10.0, gamma=0.5)
    assert _returns(one, per_decision) == pytest.approx([1.5, 1.0, 2.0])
