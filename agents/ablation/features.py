"""Numbers that describe each placement that could be chosen, by what they are made from."""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from conserve_gym.agents.ablation.foresight import FloatArray, Prediction
from conserve_gym.fleet import Fleet
from conserve_gym.observation import FIELDS_OF, Observation, Scaler, split
from conserve_gym.placement import candidates


class Group(StrEnum):
    """What numbers are made from.

    ARRIVAL is the turn at the door and the policy's own earlier choices, BOOKKEEPING what the
    router knows to be under way, HISTORY what it has seen end, EXPORTS what engines tell of
    themselves, and PREDICTIONS what nobody can know.
    """

    ARRIVAL = "arrival"
    BOOKKEEPING = "engine bookkeeping"
    HISTORY = "post-hoc history"
    EXPORTS = "engine exports"
    PREDICTIONS = "perfect predictions"


_CLUSTER = {field.name: i for i, field in enumerate(FIELDS_OF["cluster"])}
_ENGINE = {field.name: i for i, field in enumerate(FIELDS_OF["engines"])}
_HISTORY_OF_THE_CLUSTER = (
    "arrivals_recent",
    "turns_mean",
    "appended_mean",
    "output_mean",
    "kv_move_recent",
)
_AT_THE_DECODER = ("kv_known", "pinned", "turns_in_flight", "decoding", "prompt_in_flight")
_TOKENS = 262_144.0  # maps to 1, as tokens do in the observation


class Features:
    """Describes the placements that a fleet allows.

    Those of the cluster or of the conversation are multiplied by whether the placement
    disaggregates: the same for all placements, they could not tell them apart otherwise.

    Args:
        fleet: Roles and capacities of the engines.

    Attributes:
        placements: The candidates, in the order of the rows.
    """

    def __init__(self, fleet: Fleet) -> None:
        """List the candidates."""
        self.placements = candidates(fleet)
        self._prefill_at = np.array([one.prefill_at for one in self.placements])
        self.decode_at = np.array([one.decode_at for one in self.placements])
        self._away = (self._prefill_at != self.decode_at).astype(np.float64)
        self._scaler = Scaler(len(fleet.roles))
        self._capacity = np.array(fleet.kv_capacity_tokens, dtype=np.float64)

    def __call__(
        self,
        group: Group,
        observation: Observation,
        chosen: FloatArray,
        prediction: Prediction | None,
    ) -> FloatArray:
        """Return the numbers of one group, shape (placements, numbers).

        Args:
            group: Which.
            observation: What is seen.
            chosen: Share of the policy's latest choices that each engine decodes, (engines,).
            prediction: What is still to come; only PREDICTIONS look at it.
        """
        away, p, d = self._away, self._prefill_at, self.decode_at
        seen = split(self._scaler(observation.raw))
        engines, cluster = seen["engines"], seen["cluster"]
        if group is Group.ARRIVAL:
            columns = [away, away * seen["conversation"][0], chosen[d]]
        elif group is Group.BOOKKEEPING:
            columns = [engines[d, _ENGINE[name]] for name in _AT_THE_DECODER]
            columns += [
                away * engines[p, _ENGINE["prompt_in_flight"]],
                away * engines[p, _ENGINE["prompt_waited"]],
                away * engines[p, _ENGINE["kv_known"]],
                away * cluster[_CLUSTER["at_door"]],
                away * engines[:, _ENGINE["kv_known"]].mean(),
            ]
        elif group is Group.HISTORY:
            columns = [
                engines[d, _ENGINE["tbt_recent"]],
                away * engines[p, _ENGINE["ttft_recent"]],
                (1.0 - away) * engines[d, _ENGINE["ttft_recent"]],
            ]
            columns += [away * cluster[_CLUSTER[name]] for name in _HISTORY_OF_THE_CLUSTER]
        elif group is Group.EXPORTS:
            told = np.array(observation.exports, dtype=np.float64)
            waiting, decoding = _log(told[:, 0]), _log(told[:, 2])
            free, read = told[:, 1] / self._capacity, told[:, 3] / self._capacity
            columns = [waiting[d], away * waiting[p], free[d], decoding[d], read[d]]
        else:
            assert prediction is not None
            of_engines = [
                _log(prediction.remaining_output),
                _log(prediction.remaining_appended),
                prediction.peaks / self._capacity,
            ]
            of_the_door = _log(np.array(prediction[:3], dtype=np.float64))
            columns = [number[d] for number in of_engines]
            columns += [away * number[p] for number in of_engines]
            columns += [away * number for number in of_the_door]
            columns += [number * of_engines[2][d] for number in of_the_door]
        return np.stack(columns, axis=1)


def _log(tokens: FloatArray) -> FloatArray:
    scaled: FloatArray = np.log1p(tokens) / np.log1p(_TOKENS)
    return scaled
