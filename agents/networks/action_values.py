"""The scorer as the value of each action, for DQN and QR-DQN."""

from __future__ import annotations

from typing import Any

from sb3_contrib.qrdqn.policies import QRDQNPolicy, QuantileNetwork
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork

from conserve_gym.agents.networks.scorer import Scorer


class ScorerQNetwork(QNetwork):
    """One score an action."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Put the scorer where Stable-Baselines3 has a perceptron."""
        super().__init__(*args, **kwargs)
        width, hidden = self.net_arch
        self.q_net = Scorer(int(self.action_space.n), width, hidden)  # type: ignore[assignment]


class ScorerQuantileNetwork(QuantileNetwork):
    """Quantiles of each action's return."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Put the scorer where Stable-Baselines3 has a perceptron."""
        super().__init__(*args, **kwargs)
        width, hidden = self.net_arch
        scorer = Scorer(int(self.action_space.n), width, hidden, outputs=self.n_quantiles)
        self.quantile_net = scorer  # type: ignore[assignment]


class ScorerQPolicy(DQNPolicy):
    """For ``stable_baselines3.DQN``; ``net_arch`` is [embedding, hidden]."""

    def make_q_net(self) -> QNetwork:
        """Return a network of values."""
        arguments = self._update_features_extractor(self.net_args, features_extractor=None)
        return ScorerQNetwork(**arguments).to(self.device)


class ScorerQuantilePolicy(QRDQNPolicy):
    """For ``sb3_contrib.QRDQN``; ``net_arch`` is [embedding, hidden]."""

    def make_quantile_net(self) -> QuantileNetwork:
        """Return a network of quantiles."""
        arguments = self._update_features_extractor(self.net_args, features_extractor=None)
        return ScorerQuantileNetwork(**arguments).to(self.device)
