"""The network of a trained model in the form that the runtime evaluates, and its own scores."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from conserve_gym.agents.networks.scorer import Scorer
from conserve_gym.envs.configuration import ConfigurationError

Float32Array = npt.NDArray[np.float32]
Exported = tuple[dict[str, Any], dict[str, Float32Array]]
"""A header's ``network``, and its tensors by name."""


def exported(model: Any) -> Exported:
    """Return the network that chooses a model's actions.

    Raises:
        ConfigurationError: The runtime knows no such layer.
    """
    extractor = model.policy.mlp_extractor
    if hasattr(extractor, "scorer"):
        return _scorer(extractor.scorer)
    return _mlp([*extractor.policy_net, model.policy.action_net])


def scores(model: Any, shown: Float32Array) -> Float32Array:
    """Return the training framework's own scores.

    Args:
        model: The model.
        shown: What its network is shown, (observations, numbers).

    Returns:
        Shape (observations, actions).
    """
    with torch.inference_mode():
        latent = model.policy.mlp_extractor.forward_actor(torch.from_numpy(shown))
        found: Float32Array = model.policy.action_net(latent).numpy()
    return found


def _mlp(modules: Iterable[nn.Module]) -> Exported:
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
    return {"kind": "mlp", "layers": layers}, tensors


def _scorer(scorer: Scorer) -> Exported:
    tensors = {name: weight.numpy() for name, weight in scorer.state_dict().items()}
    hidden, embedding = scorer.decoder.weight.shape
    return {"kind": "scorer", "embedding": embedding, "hidden": hidden}, tensors
