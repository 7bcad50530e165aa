"""What an action number means: shared by environments, exported policies and the runtime."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from conserve_gym import rules
from conserve_gym.estimates import Estimates
from conserve_gym.fleet import Fleet
from conserve_gym.observation import Observation
from conserve_gym.placement import HOLD, Placement, as_table, candidates

HOLD_MEANING = "hold at the door"


class Actions(Protocol):
    """A finite set of actions.

    Attributes:
        kind: Name of the set, as an exported policy's header has it.
        meanings: What each action does.
    """

    kind: str
    meanings: tuple[str, ...]

    def placement(self, observation: Observation, action: int) -> Placement:
        """Return the placement that an action asks for."""

    def mask(self, observation: Observation) -> npt.NDArray[np.bool_]:
        """Return which actions find room, shape (actions,); at least one is true."""

    def table(self, observation: Observation) -> npt.NDArray[np.float32]:
        """Return the placement of every action as networks see it, shape (actions, columns).

        The columns are those of ``as_table``, and then ``estimates.COLUMNS``.
        """

    def weighted(
        self, observation: Observation, weights: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Return the weighted sum of each action's estimates, shape (actions,)."""


class ConversationActions:
    """Colocate or disaggregate; the decoder is the one with most free KV.

    Args:
        fleet: Roles of the engines.

    Raises:
        ValueError: Some engine that decodes has no other that prefills for it.
    """

    kind = "conversation"
    meanings: tuple[str, ...] = ("colocate", "disaggregate")

    def __init__(self, fleet: Fleet) -> None:
        """Check that disaggregating is possible."""
        if not fleet.can_disaggregate:
            roles = [str(role) for role in fleet.roles]
            raise ValueError(
                f"cannot disaggregate: engines have roles {roles}; every one that decodes needs "
                "another that is 'prefill' or 'mixed'"
            )
        self._estimates = Estimates(fleet)
        self._both = np.ones(2, dtype=np.bool_)
        self._both.flags.writeable = False

    def placement(self, observation: Observation, action: int) -> Placement:
        """Return the placement that an action asks for."""
        return rules.place(observation, disaggregate=action == 1)

    def mask(self, observation: Observation) -> npt.NDArray[np.bool_]:
        """Return that both find room: the door opens only when some decoder has it."""
        return self._both

    def table(self, observation: Observation) -> npt.NDArray[np.float32]:
        """Return the placements of both actions as networks see them, shape (2, columns)."""
        placements = self._placements(observation)
        estimates = self._estimates(observation, self._ends(observation, placements))
        return np.concatenate([as_table(placements), estimates], axis=1)

    def weighted(
        self, observation: Observation, weights: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Return the weighted sum of both actions' estimates, shape (2,)."""
        ends = self._ends(observation, self._placements(observation))
        return self._estimates.weighted(observation, ends, weights)

    def _placements(self, observation: Observation) -> list[Placement]:
        return [self.placement(observation, action) for action in (0, 1)]

    def _ends(self, observation: Observation, placements: list[Placement]) -> npt.NDArray[np.intp]:
        prefill_at, decode_at = np.array([placement[:2] for placement in placements]).T
        return self._estimates.ends(prefill_at, decode_at, observation.home)


class TurnActions(ConversationActions):
    """Prefill a turn where it is decoded, or away from there.

    It is decoded where the conversation's last turn was, while there is room for it.

    Args:
        fleet: Roles of the engines.

    Raises:
        ValueError: Some engine that decodes has no other that prefills for it.
    """

    kind = "turn"
    meanings: tuple[str, ...] = ("prefill where it is decoded", "prefill at a prefill engine")

    def placement(self, observation: Observation, action: int) -> Placement:
        """Return the placement that an action asks for."""
        decode_at = rules.home_decoder(observation)
        return rules.place_at(observation, decode_at, disaggregate=action == 1)


class JointActions:
    """Choose the placement from the listed candidates.

    Args:
        fleet: Roles of the engines.
        offload_above: From how many new tokens on later turns may be prefilled away.
        may_hold: Whether the last action holds the conversation at the door.
    """

    kind = "joint"

    def __init__(
        self,
        fleet: Fleet,
        offload_above: Sequence[float] = (math.inf,),
        may_hold: bool = False,
    ) -> None:
        """List the candidates."""
        self._may_hold = may_hold
        placements = candidates(fleet, offload_above)
        self._prefill_at = np.array([placement.prefill_at for placement in placements])
        self._decode_at = np.array([placement.decode_at for placement in placements])
        self._candidates = placements + (HOLD,) * may_hold
        self._table = as_table(self._candidates)
        self._estimates = Estimates(fleet)
        self._ends = self._ends_from(-1)
        self._where = self._estimates.where(self._ends)
        self.meanings = tuple(map(_meaning, self._candidates))

    def placement(self, observation: Observation, action: int) -> Placement:
        """Return the placement that an action asks for."""
        return self._candidates[action]

    def mask(self, observation: Observation) -> npt.NDArray[np.bool_]:
        """Return which decoders have room; where none has, every action counts."""
        mask = np.empty(len(self._candidates), dtype=np.bool_)
        finds_room = mask[: len(self._decode_at)]
        finds_room[:] = observation.open_to.take(self._decode_at)
        if not np.count_nonzero(finds_room):  # in a quarter of the time of ``any``
            finds_room[:] = True
        if self._may_hold:  # held while nothing is under way, it would never be asked about again
            mask[-1] = np.count_nonzero(observation.engine_field("turns_in_flight"))
        return mask

    def table(self, observation: Observation) -> npt.NDArray[np.float32]:
        """Return the candidates as networks see them, shape (actions, columns)."""
        where, home = self._where, observation.home
        if home >= 0:
            where = self._estimates.where(self._ends_from(home))
        estimates = self._estimates.numbers(observation).take(where)
        return np.concatenate((self._table, estimates), axis=1)

    def weighted(
        self, observation: Observation, weights: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Return the weighted sum of each candidate's estimates, shape (actions,)."""
        home = observation.home
        ends = self._ends_from(home) if home >= 0 else self._ends
        return self._estimates.weighted(observation, ends, weights)

    def _ends_from(self, home: int) -> npt.NDArray[np.intp]:
        return self._estimates.ends(self._prefill_at, self._decode_at, home, hold=self._may_hold)


KINDS = tuple(actions.kind for actions in (ConversationActions, TurnActions, JointActions))


def actions_of(
    kind: str, fleet: Fleet, offload_above: Sequence[float] = (math.inf,), may_hold: bool = False
) -> Actions:
    """Return the actions of a kind on a fleet.

    Args:
        kind: One of ``KINDS``.
        fleet: Roles of the engines.
        offload_above: What joint actions list; later turns of the others stay where they are
            decoded.
        may_hold: Whether joint actions may hold the conversation at the door.

    Raises:
        ValueError: The fleet does not allow them, or there is no such kind.
    """
    if kind == JointActions.kind:
        return JointActions(fleet, offload_above, may_hold)
    if kind == TurnActions.kind:
        return TurnActions(fleet)
    if kind == ConversationActions.kind:
        return ConversationActions(fleet)
    raise ValueError(f"kind={kind!r} is none of {', '.join(KINDS)}")


def possible(kind: str, fleet: Fleet) -> bool:
    """Return whether a fleet allows actions of a kind."""
    return kind == JointActions.kind or fleet.can_disaggregate


def _meaning(placement: Placement) -> str:
    prefill_at, decode_at, offload_above = placement
    if placement == HOLD:
        return HOLD_MEANING
    if not placement.disaggregates:
        return f"colocate at {decode_at}"
    text = f"prefill at {prefill_at}, decode at {decode_at}"
    if math.isinf(offload_above):
        return text
    return f"{text}; later turns with {offload_above:g} new tokens or more as well"
