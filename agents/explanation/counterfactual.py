"""What an exported policy's network says to observations that were not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from conserve_gym.agents.explanation.recording import Step
from conserve_gym.agents.runtime.linear import Linear
from conserve_gym.agents.runtime.mlp import Float32Array, Mlp
from conserve_gym.agents.runtime.scheduler import Scheduler
from conserve_gym.estimates import COLUMNS, TABLE_COLUMNS, Estimates
from conserve_gym.fleet import Fleet
from conserve_gym.observation import FIELDS_OF, FloatArray, Scaler

IntArray = npt.NDArray[np.intp]
FIRST_ESTIMATE = TABLE_COLUMNS - len(COLUMNS)
"""Column of the first estimate in a table of placements."""


class Counterfactual:
    """Asks a policy's network again, with something changed.

    The placements that a decision chose between stay, with the room that they found; estimates of
    them are computed again from the changed observation.

    Args:
        scheduler: The policy; its artefact decides.
        fleet: The engines.

    Attributes:
        fleet: The engines.
        fields: Positions of each observation field in a raw observation: those of all engines
            belong to one field.
        reads_estimates: Whether the network is shown the estimates.
        weights: Those of the estimates, where scores are their weighted sums; else None.
    """

    def __init__(self, scheduler: Scheduler, fleet: Fleet) -> None:
        """Prepare for a fleet."""
        assert scheduler.artifact is not None
        self._network = network = scheduler.artifact.network
        self._preference = scheduler.preference
        self.fleet = fleet
        self._scaler = Scaler(len(fleet.roles))
        self._estimates = Estimates(fleet)
        self._actions = scheduler.artifact.actions(fleet)
        self.reads_estimates = not isinstance(network, Mlp)
        preference = self._preference or 0.0
        self.weights = network.at(preference) if isinstance(network, Linear) else None
        shared = [f"{f.group}.{f.name}" for g in ("cluster", "conversation") for f in FIELDS_OF[g]]
        self.fields = {name: np.array([i]) for i, name in enumerate(shared)}
        of_engine = FIELDS_OF["engines"]
        for i, field in enumerate(of_engine, start=len(shared)):
            self.fields[f"engines.{field.name}"] = np.arange(i, self._scaler.size, len(of_engine))

    def table(self, step: Step) -> Float32Array:
        """Return the placements of a decision as the network saw them."""
        return self._actions.table(step.observation)

    def mask(self, step: Step) -> npt.NDArray[np.bool_]:
        """Return which of them found room."""
        return self._actions.mask(step.observation)

    def scores(self, raw: FloatArray, table: Float32Array) -> Float32Array:
        """Return the scores of placements.

        Args:
            raw: Unscaled observation.
            table: The placements with their estimates.
        """
        scaled = self._scaler(raw)
        if self._preference is not None:
            scaled = np.concatenate((np.array([self._preference], dtype=np.float32), scaled))
        if isinstance(self._network, Mlp):
            return self._network.scores(scaled)
        return self._network.scores(scaled, table)

    def scores_of(self, step: Step, raw: FloatArray, table: Float32Array) -> Float32Array:
        """Return the scores of a decision's placements, had the observation been another.

        Args:
            step: The decision.
            raw: Unscaled observation to put in the place of its own.
            table: The decision's placements; their estimates are computed again.
        """
        if self.reads_estimates:
            ends = table[:, :2].astype(np.intp).T
            hold = bool(ends[0, -1] < 0)  # the last row, where a policy may hold
            at, to = ends[:, :-1] if hold else ends
            placed = self._estimates.ends(at, to, step.observation.home, hold=hold)
            estimates = self._estimates(replace(step.observation, raw=raw), placed)
            table = np.concatenate([table[:, :FIRST_ESTIMATE], estimates], axis=1)
        return self.scores(raw, table)
