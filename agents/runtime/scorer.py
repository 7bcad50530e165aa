"""A network that scores placements one by one with the same weights: it serves any fleet.

What its layers mean is written at the module that is trained, ``agents/networks/scorer.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from conserve_gym.estimates import TABLE_COLUMNS
from conserve_gym.observation import FIELDS_OF

Float32Array = npt.NDArray[np.float32]

N_CONTEXT = len(FIELDS_OF["cluster"]) + len(FIELDS_OF["conversation"])
_N_ENGINE = len(FIELDS_OF["engines"])

# Placements at a time. Up to 2^18 multiplications OpenBLAS uses one thread; several wait for each
# other, milliseconds where other processes run too.
_BLOCK = 96


class Scorer:
    """Scores placements.

    Args:
        tensors: Its weights by name, of the shapes of ``shapes``.

    Attributes:
        context: Numbers that stand before the engines' rows.
    """

    def __init__(self, tensors: Mapping[str, Float32Array]) -> None:
        """Lay the weights out for rows of engines and of placements."""
        self._engine = _transposed(tensors["cluster.engine.weight"])
        self._context = tensors["cluster.context.weight"]
        self.context = self._context.shape[1]
        self._context_bias = tensors["cluster.context.bias"]
        self._embedding = _transposed(tensors["cluster.embedding.weight"])
        self._embedding_bias = tensors["cluster.embedding.bias"]
        self._prefiller = _transposed(tensors["prefiller.weight"])
        self._decoder = _transposed(tensors["decoder.weight"])
        self._row = _transposed(tensors["row.weight"])
        self._summary = tensors["summary.weight"]
        self._summary_bias = tensors["summary.bias"]
        self._score = _transposed(tensors["score.weight"])
        self._score_bias = tensors["score.bias"]

    def scores(self, scaled: Float32Array, placements: Float32Array) -> Float32Array:
        """Return one score a placement.

        Args:
            scaled: Scaled observation of a fleet of any size, (fields,), after a preference where
                the network was shown one.
            placements: As ``conserve_gym.actions`` gives them, (placements, columns).
        """
        context, engines = scaled[: self.context], scaled[self.context :].reshape(-1, _N_ENGINE)
        hidden: Float32Array = engines @ self._engine
        hidden += self._context @ context + self._context_bias
        embeddings: Float32Array = _relu(hidden) @ self._embedding
        embeddings += self._embedding_bias
        _relu(embeddings)
        mean = embeddings.sum(axis=0) / np.float32(len(embeddings))
        summary = np.concatenate((mean, embeddings.max(axis=0), context))

        ends = placements[:, :2].astype(np.intp)
        at, to = ends[:, 0], ends[:, 1]
        colocated = at == to
        row = placements[:, 1:].copy()
        row[:, 0] = colocated
        decoder = embeddings @ self._decoder
        decoder += self._summary @ summary + self._summary_bias
        prefiller = embeddings @ self._prefiller
        both = np.empty((len(placements), 2), dtype=np.float32)
        for start in range(0, len(placements), _BLOCK):
            rows = slice(start, start + _BLOCK)
            between: Float32Array = prefiller.take(at[rows], axis=0)
            between += decoder.take(to[rows], axis=0)
            between += row[rows] @ self._row
            both[rows] = _relu(between) @ self._score
        both += self._score_bias
        return np.where(colocated, both[:, 1], both[:, 0])

    @classmethod
    def from_header(cls, network: Mapping[str, Any], tensors: Mapping[str, Float32Array]) -> Scorer:
        """Build it from a header's ``network``.

        Raises:
            ValueError: A weight has another shape than the header says.
        """
        widths = network["embedding"], network["hidden"], network["context"]
        for name, shape in shapes(*widths).items():
            if tensors[name].shape != shape:
                raise ValueError(
                    f"network: {name} has shape {tensors[name].shape}, expected {shape}"
                )
        return cls(tensors)


def shapes(embedding: int, hidden: int, context: int = N_CONTEXT) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight.

    Args:
        embedding: Numbers in an engine's embedding.
        hidden: Numbers in the layer after it.
        context: Numbers that stand before the engines' rows.
    """
    return {
        "cluster.engine.weight": (embedding, _N_ENGINE),
        "cluster.context.weight": (embedding, context),
        "cluster.context.bias": (embedding,),
        "cluster.embedding.weight": (embedding, embedding),
        "cluster.embedding.bias": (embedding,),
        "prefiller.weight": (hidden, embedding),
        "decoder.weight": (hidden, embedding),
        "row.weight": (hidden, TABLE_COLUMNS - 1),
        "summary.weight": (hidden, 2 * embedding + context),
        "summary.bias": (hidden,),
        "score.weight": (2, hidden),
        "score.bias": (2,),
    }


def _transposed(weight: Float32Array) -> Float32Array:
    return np.ascontiguousarray(weight.T)


def _relu(values: Float32Array) -> Float32Array:
    return np.maximum(values, np.float32(0.0), out=values)
