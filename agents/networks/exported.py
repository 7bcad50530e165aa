"""The network of a trained model in the form that the runtime evaluates, and its own scores."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.qrdqn.policies import QRDQNPolicy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.dqn.policies import DQNPolicy
from torch import nn

from conserve_gym.agents.networks.actor_critic import ScorerAndCritic
from conserve_gym.agents.networks.linear_model import LinearModel
from conserve_gym.agents.networks.scorer import Scorer
from conserve_gym.envs.configuration import ConfigurationError
from conserve_gym.estimates import COLUMNS

Float32Array = npt.NDArray[np.float32]
Exported = tuple[dict[str, Any], dict[str, Float32Array]]
"""A header's ``network``, and its tensors by name."""


def exported(model: Any) -> Exported:
    """Return the network that chooses a model's actions.

    Raises:
        ConfigurationError: The runtime knows no such layer.
    """
    if isinstance(model, LinearModel):
        columns = [column.name for column in COLUMNS]
        return {"kind": "linear", "columns": columns}, {"weights": model.network.weights}
    policy = model.policy
    if isinstance(policy, ActorCriticPolicy | MaskableActorCriticPolicy):
        extractor: Any = policy.mlp_extractor
        if isinstance(extractor, ScorerAndCritic):
            return _scorer(extractor.scorer)
        return _mlp([*extractor.policy_net, policy.action_net])
    if isinstance(policy, QRDQNPolicy):
        values, quantiles = policy.quantile_net.quantile_net, policy.quantile_net.n_quantiles
    else:
        values, quantiles = policy.q_net.q_net, 1
    return _scorer(values) if isinstance(values, Scorer) else _mlp(values, quantiles)


def scores(model: Any, shown: Float32Array, n_actions: int) -> Float32Array:
    """Return the training framework's own scores.

    Args:
        model: The model.
        shown: What its network is shown, (observations, numbers).
        n_actions: How many it chooses from.

    Returns:
        Shape (observations, actions).
    """
    if isinstance(model, LinearModel):
        return np.stack([model.scores(each, n_actions) for each in shown])
    policy, views = model.policy, torch.from_numpy(shown)
    with torch.inference_mode():
        if isinstance(policy, QRDQNPolicy):
            found = policy.quantile_net(views).mean(dim=1)
        elif isinstance(policy, DQNPolicy):
            found = policy.q_net(views)
        else:
            found = policy.action_net(policy.mlp_extractor.forward_actor(views))
    array: Float32Array = found.numpy()
    return array


def _mlp(modules: Iterable[nn.Module], quantiles: int = 1) -> Exported:
    tensors: dict[str, Float32Array] = {}
    layers: list[dict[str, str]] = []
    for module in modules:
        if isinstance(module, nn.Linear):
            name = f"policy.{len(layers)}"
            tensors[f"{name}.weight"] = module.weight.detach().numpy()
            tensors[f"{name}.bias"] = module.bias.detach().numpy()
            layers.append(
                {"weight": f"{name}.weight", "bias": f"{name}.bias", "activation": "linear"}
            )
        elif isinstance(module, nn.Tanh | nn.ReLU):
            layers[-1]["activation"] = type(module).__name__.lower()
        else:
            raise ConfigurationError(
                f"agent.policy_kwargs: the runtime knows no layer {type(module).__name__}"
            )
    for name in (layers[-1]["weight"], layers[-1]["bias"]):  # all of the first quantile, ...
        last = tensors[name]
        tensors[name] = last.reshape(quantiles, -1, *last.shape[1:]).mean(axis=0)
    return {"kind": "mlp", "layers": layers}, tensors


def _scorer(scorer: Scorer) -> Exported:
    tensors = {name: weight.numpy() for name, weight in scorer.state_dict().items()}
    for name in ("score.weight", "score.bias"):  # the mean over quantiles is linear
        last = tensors[name]
        tensors[name] = last.reshape(2, -1, *last.shape[1:]).mean(axis=1)
    hidden, embedding = scorer.decoder.weight.shape
    context = scorer.cluster.context.in_features
    widths = {"context": context, "embedding": embedding, "hidden": hidden}
    return {"kind": "scorer", **widths}, tensors
