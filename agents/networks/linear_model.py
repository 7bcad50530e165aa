"""A linear scorer as a model on disk, with what a run folder and an export need of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from conserve_gym.agents.runtime.linear import Linear
from conserve_gym.estimates import COLUMNS, TABLE_COLUMNS
from conserve_gym.observation import Scaler, field_table

Float32Array = npt.NDArray[np.float32]


class LinearModel:
    """Weights of a linear scorer, and where their search stands.

    It is kept as an npz archive, so that nothing of it is unpickled.

    Args:
        weights: As ``Linear`` takes them.
        num_timesteps: Decisions played so far.
        observed: Smallest and largest scaled value of each field, engines as one, (2, fields).
        told: What the search was told: for each generation and sample the value to be minimised
            and the weights, (generations, population, 1 + weights).

    Attributes:
        observation_table: The fields that it was trained with.
    """

    def __init__(
        self,
        weights: Float32Array,
        num_timesteps: int,
        observed: Float32Array,
        told: npt.NDArray[np.float64],
    ) -> None:
        """Take the state."""
        self.network = Linear(weights)
        self.num_timesteps = num_timesteps
        self.observed = observed
        self.told = told
        self.observation_table = field_table()

    @classmethod
    def untrained(cls, weights: Float32Array, population: int) -> LinearModel:
        """Return a model that has seen nothing."""
        nothing = np.full((2, Scaler(1).size), np.inf, dtype=np.float32)
        nothing[1] = -np.inf
        return cls(weights, 0, nothing, np.empty((0, population, 1 + weights.size)))

    def predict(
        self,
        observation: Float32Array,
        deterministic: bool = True,
        *,
        action_masks: npt.NDArray[np.bool_],
    ) -> tuple[int, None]:
        """Return the best action that finds room, as Stable-Baselines3's models do."""
        scores = self.scores(observation, len(action_masks))
        return int(np.where(action_masks, scores, -np.inf).argmax()), None

    def scores(self, shown: Float32Array, n_actions: int) -> Float32Array:
        """Return one score an action, given an observation and the placements as one vector."""
        rows = n_actions * TABLE_COLUMNS
        return self.network.scores(shown[:-rows], shown[-rows:].reshape(-1, TABLE_COLUMNS))

    def save(self, file: IO[bytes]) -> None:
        """Write it down."""
        np.savez_compressed(
            file,
            weights=self.network.weights,
            num_timesteps=self.num_timesteps,
            observed=self.observed,
            told=self.told,
            columns=np.array([column.name for column in COLUMNS]),
            observation_table=np.array(json.dumps(self.observation_table)),
        )

    @classmethod
    def load(cls, path: Path, device: str = "cpu") -> LinearModel:
        """Read it back.

        Raises:
            ValueError: It belongs to other estimates.
        """
        with np.load(path, allow_pickle=False) as parts:
            if parts["columns"].tolist() != [column.name for column in COLUMNS]:
                raise ValueError("the model belongs to other estimates")
            arrays = (parts[name] for name in ("observed", "told"))
            model = cls(parts["weights"], int(parts["num_timesteps"]), *arrays)
            model.observation_table = json.loads(str(parts["observation_table"]))
        return model


def widened(observed: Float32Array, by: Float32Array) -> Float32Array:
    """Return the range that holds two ranges, (2, fields)."""
    return np.stack([np.minimum(observed[0], by[0]), np.maximum(observed[1], by[1])])
