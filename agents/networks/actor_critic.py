"""The scorer as a policy of PPO and of MaskablePPO."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from conserve_gym.agents.networks.placement_view import context_size, parts
from conserve_gym.agents.networks.scorer import ACTIVATION, ClusterSummary, Scorer


class ScorerAndCritic(nn.Module):
    """The scores, which are the logits, and what the value is read from.

    They share no weights, as in Stable-Baselines3's own network for vectors.

    Args:
        n_placements: How many there are to score.
        width: Numbers in an engine's embedding.
        hidden: Numbers in the layers after it.
        context: Numbers that stand before the engines' rows.
    """

    def __init__(self, n_placements: int, width: int, hidden: int, context: int) -> None:
        """Make both."""
        super().__init__()
        self.scorer = Scorer(n_placements, width, hidden, context=context)
        self.cluster = ClusterSummary(width, context)
        self.hidden = nn.Sequential(nn.Linear(self.cluster.size, hidden), ACTIVATION())

    def forward(self, views: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both."""
        return self.forward_actor(views), self.forward_critic(views)

    def forward_actor(self, views: torch.Tensor) -> torch.Tensor:
        """Return the scores, (batch, placements)."""
        scores: torch.Tensor = self.scorer(views)
        return scores

    def forward_critic(self, views: torch.Tensor) -> torch.Tensor:
        """Return what the value is read from, (batch, hidden)."""
        _, summary = self.cluster(parts(views, self.scorer.n_placements))
        read: torch.Tensor = self.hidden(summary)
        return read


class ScorerPolicy(ActorCriticPolicy):
    """For ``stable_baselines3.PPO``; ``net_arch`` is [embedding, hidden]."""

    def _build(self, lr_schedule: Schedule) -> None:
        _build(self, lr_schedule)


class MaskableScorerPolicy(MaskableActorCriticPolicy):
    """For ``sb3_contrib.MaskablePPO``; ``net_arch`` is [embedding, hidden]."""

    def _build(self, lr_schedule: Schedule) -> None:
        _build(self, lr_schedule)


def _build(policy: Any, lr_schedule: Schedule) -> None:
    """Put the scorer where Stable-Baselines3 has two perceptrons and a layer of logits."""
    width, hidden = policy.net_arch
    n_placements = int(policy.action_space.n)
    context = context_size(policy.observation_space.shape[0], n_placements)
    policy.mlp_extractor = ScorerAndCritic(n_placements, width, hidden, context)
    policy.action_net = nn.Identity()
    policy.value_net = nn.Linear(hidden, 1)
    # The gains of Stable-Baselines3: at first, all placements are about as probable.
    layers = (policy.mlp_extractor, policy.mlp_extractor.scorer.score, policy.value_net)
    for module, gain in zip(layers, (np.sqrt(2), 0.01, 1.0), strict=True):
        module.apply(partial(policy.init_weights, gain=gain))
    policy.to(policy.device)
    policy.optimizer = policy.optimizer_class(
        policy.parameters(), lr=lr_schedule(1), **policy.optimizer_kwargs
    )
