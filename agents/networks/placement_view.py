"""What a scorer is given: the observation and the placements to score, as one vector."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces

from conserve_gym.envs.placement_env import ObservationDict, PlacementEnv
from conserve_gym.estimates import LARGEST, TABLE_COLUMNS
from conserve_gym.observation import FIELDS_OF, GROUPS

N_CONTEXT = len(FIELDS_OF["cluster"]) + len(FIELDS_OF["conversation"])
N_ENGINE = len(FIELDS_OF["engines"])
_KV_CAPACITY = [field.name for field in FIELDS_OF["engines"]].index("kv_capacity")


def context_size(n_numbers: int, n_placements: int) -> int:
    """Return how many of a vector's numbers stand before the engines' rows.

    They are the fields of the cluster and of the conversation, after a preference where one is
    shown: what whole rows leave over.
    """
    return N_CONTEXT + (n_numbers - N_CONTEXT - n_placements * TABLE_COLUMNS) % N_ENGINE


def view(
    observation: npt.NDArray[np.float32], placements: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return a flat scaled observation followed by the rows of the placements."""
    return np.concatenate([observation, placements.ravel()])


def view_space(n_engines: int, n_placements: int) -> spaces.Box:
    """Return the space of such vectors."""
    highest = np.full((n_placements, TABLE_COLUMNS), LARGEST, dtype=np.float32)
    highest[:, :2] = n_engines - 1
    highest[:, 2] = 1.0
    lowest = -highest
    lowest[:, :3] = 0.0
    ones = np.ones(N_CONTEXT + n_engines * N_ENGINE, dtype=np.float32)
    return spaces.Box(view(0.0 * ones, lowest), view(ones, highest))


class PlacementView(
    gymnasium.ObservationWrapper[npt.NDArray[np.float32], np.int64, ObservationDict]
):
    """Flattens observations and adds what each action would do.

    Args:
        env: The environment.
    """

    def __init__(self, env: PlacementEnv) -> None:
        """Lay out the space."""
        super().__init__(env)
        space: spaces.Space[Any] = view_space(env.most_engines, env.most_actions)
        self.observation_space = space

    def observation(self, observation: ObservationDict) -> npt.NDArray[np.float32]:
        """Return the observation and the placements as one vector."""
        flat = np.concatenate([observation[group].ravel() for group in GROUPS])
        return view(flat, cast(PlacementEnv, self.env).placements())


class Seen(NamedTuple):
    """The parts of a batch of such vectors.

    Attributes:
        context: Fields of the cluster and of the conversation, (batch, fields), after a preference
            where one is shown.
        engines: Fields of the engines, (batch, engines, fields).
        placements: Rows of the placements, (batch, placements, columns).
    """

    context: torch.Tensor
    engines: torch.Tensor
    placements: torch.Tensor

    @property
    def real(self) -> torch.Tensor:
        """Whether each row is an engine's, and not one of zeros after a smaller cluster's."""
        return self.engines[..., _KV_CAPACITY] > 0.0


def parts(views: torch.Tensor, n_placements: int) -> Seen:
    """Take a batch of such vectors apart; the number of engines follows from the length."""
    rows = views.shape[1] - n_placements * TABLE_COLUMNS
    context = context_size(views.shape[1], n_placements)
    return Seen(
        views[:, :context],
        views[:, context:rows].reshape(len(views), -1, N_ENGINE),
        views[:, rows:].reshape(len(views), n_placements, TABLE_COLUMNS),
    )


def without_padding(views: npt.NDArray[np.float32], n_placements: int) -> npt.NDArray[np.float32]:
    """Return a batch of such vectors with NaN in the rows that are no engine's."""
    rows = views.shape[1] - n_placements * TABLE_COLUMNS
    known = views.copy()
    context = context_size(views.shape[1], n_placements)
    engines = known[:, context:rows].reshape(len(views), -1, N_ENGINE)
    engines[engines[..., _KV_CAPACITY] == 0.0] = np.nan
    known[:, context:rows] = engines.reshape(len(views), -1)
    return known
