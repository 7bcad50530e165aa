"""The scorer as the value of each action, for DQN and QR-DQN."""

from __future__ import annotations

from typing import Any

from sb3_contrib.qrdqn.policies import QRDQNPolicy, QuantileNetwork
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork

from conserve_gym.agents.networks.placement_view import context_size
from conserve_gym.agents.networks.scorer import Scorer


def _scorer(network: Any, outputs: int) -> Scorer:
    width, hidden = network.net_arch
    n_placements = int(network.action_space.n)
    context = context_size(network.observation_space.shape[0], n_placements)
    return Scorer(n_placements, width, hidden, outputs, context)


class ScorerQNetwork(QNetwork):
    """One score an action."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Put the scorer where Stable-Baselines3 has a perceptron."""
        super().__init__(*args, **kwargs)
        self.q_net = _scorer(self, 1)  # type: ignore[assignment]


class ScorerQuantileNetwork(QuantileNetwork):
    """Quantiles of each action's return."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Put the scorer where Stable-Baselines3 has a perceptron."""
        super().__init__(*args, **kwargs)
        self.quantile_net = _scorer(self, self.n_quantiles)  # type: ignore[assignment]


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
