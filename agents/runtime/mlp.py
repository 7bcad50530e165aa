"""A perceptron of the whole observation: it belongs to the fleet that it was trained for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
ACTIVATIONS: dict[str, Callable[[Float32Array], Float32Array]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, np.float32(0.0)),
    "linear": lambda x: x,
}


@dataclass(frozen=True)
class Layer:
    """One dense layer: activation(weight @ x + bias)."""

    weight: Float32Array
    bias: Float32Array
    activation: str


@dataclass(frozen=True)
class Mlp:
    """Layers from a scaled observation to one score an action."""

    layers: tuple[Layer, ...]

    def scores(self, scaled: Float32Array) -> Float32Array:
        """Return one score an action, shape (fields,) -> (actions,)."""
        values = scaled
        for layer in self.layers:
            values = layer.weight @ values
            values += layer.bias
            values = ACTIVATIONS[layer.activation](values)
        return values

    @classmethod
    def from_header(cls, network: Mapping[str, Any], tensors: Mapping[str, Float32Array]) -> Mlp:
        """Build it from a header's ``network``.

        Raises:
            ValueError: An activation is unknown.
        """
        layers = tuple(
            Layer(tensors[layer["weight"]], tensors[layer["bias"]], layer["activation"])
            for layer in network["layers"]
        )
        for layer in layers:
            if layer.activation not in ACTIVATIONS:
                raise ValueError(
                    f"activation={layer.activation!r} is none of {', '.join(ACTIVATIONS)}"
                )
        return cls(layers)

    def check(self, size: int, actions: int) -> None:
        """Check that it leads from an observation's size to so many actions.

        Raises:
            ValueError: A layer does not fit; the message names it.
        """
        width = size
        for index, layer in enumerate(self.layers):
            if layer.weight.ndim != 2 or layer.weight.shape != (layer.bias.size, width):
                raise ValueError(
                    f"network.layers[{index}] has a weight of shape {layer.weight.shape}, "
                    f"expected ({layer.bias.size}, {width})"
                )
            width = layer.bias.size
        if width != actions:
            raise ValueError(f"the network gives {width} scores for {actions} actions")
