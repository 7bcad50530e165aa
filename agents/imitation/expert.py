"""What each action would come to: the look-ahead's answer for every action, and not the best alone.

An episode is worth the sum over its conversations of 1 / (1 + (worst / SLO) ** 8), where worst is
the largest of a conversation's three normalised latencies: nearly the number that meet the SLO. A
single placement shifts all that come after it a little, so that counts of those within the SLO
change by chance and mostly not at all; how near they come to it says more of one decision.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from conserve_gym.actions import Actions
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.standalone import Standalone
from conserve_gym.metrics import SLO_FACTOR, ConversationRecord, RecordReader
from conserve_gym.observation import Observation
from conserve_gym.placement import Placement
from conserve_gym.policy import Policy

STEEPNESS = 8.0
"""On the paper's cluster with 100 miniswe conversations at 2.4 a second, where the base (ConServe)
attains 78 %, a perceptron cloned from 80 episodes attains 82, 83, 88 and 90 % with 1, 2, 4 and 8;
from 60 episodes it attains 88 % with 4, and 78 % with counts."""


class Expert:
    """Tries every action on a copy of the cluster, with the real future in it.

    Args:
        base: Who plays on after each action.
        alone: Standalone latencies of the episode's conversations.
    """

    def __init__(self, base: Policy, alone: Sequence[Standalone]) -> None:
        """Stand at the episode's start."""
        self._base = base
        self._alone = alone
        self._reader = RecordReader()
        self._read = 0
        self._worth = 0.0
        self._goes_on = float("nan")  # the end if the base plays on from here, where it is known

    def values(
        self, cluster: Cluster, observation: Observation, actions: Actions
    ) -> npt.NDArray[np.float64]:
        """Return what the episode would be worth after each action, NaN for those without room.

        It is asked at every decision of an episode, in turn.
        """
        self._worth += self._worths(self._reader.read(cluster.ledger.since(self._read)))
        self._read = len(cluster.ledger)
        ends = {self._base.decide(observation): self._goes_on}
        values = np.full(len(actions.meanings), np.nan)
        for action in np.flatnonzero(actions.mask(observation)).tolist():
            placement = actions.placement(observation, action)
            if np.isnan(ends.get(placement, np.nan)):
                ends[placement] = self._end(cluster, placement)
            values[action] = ends[placement]
        return values

    def taken(self, value: float) -> None:
        """Be told the value of the action that was taken: the base playing on comes to it."""
        self._goes_on = value

    def _end(self, cluster: Cluster, placement: Placement) -> float:
        twin, base, reader = copy.deepcopy((cluster, self._base, self._reader))
        twin.place(placement)
        while twin.advance():
            twin.place(base.decide(twin.observe()))
        return self._worth + self._worths(reader.read(twin.ledger.since(self._read)))

    def _worths(self, ended: Iterable[ConversationRecord]) -> float:
        worths = 0.0
        for record in ended:
            worst = np.nanmax(record.normalised(self._alone[record.conversation]))
            worths += 1.0 / (1.0 + (worst / SLO_FACTOR) ** STEEPNESS)
        return float(worths)
