"""What an action number means: shared by environments, exported policies and the runtime."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from conserve_gym import rules
from conserve_gym.fleet import Fleet
from conserve_gym.observation import Observation
from conserve_gym.placement import Placement, candidates


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


class ConversationActions:
    """Colocate or disaggregate; the decoder is the one with most free KV.

    Args:
        fleet: Roles of the engines.

    Raises:
        ValueError: Some engine that decodes has no other that prefills for it.
    """

    kind = "conversation"
    meanings = ("colocate", "disaggregate")

    def __init__(self, fleet: Fleet) -> None:
        """Check that disaggregating is possible."""
        if not fleet.can_disaggregate:
            roles = [str(role) for role in fleet.roles]
            raise ValueError(
                f"cannot disaggregate: engines have roles {roles}; every one that decodes needs "
                "another that is 'prefill' or 'mixed'"
            )
        self._both = np.ones(2, dtype=np.bool_)
        self._both.flags.writeable = False

    def placement(self, observation: Observation, action: int) -> Placement:
        """Return the placement that an action asks for."""
        return rules.place(observation, disaggregate=action == 1)

    def mask(self, observation: Observation) -> npt.NDArray[np.bool_]:
        """Return that both find room: the door opens only when some decoder has it."""
        return self._both


class TurnActions(ConversationActions):
    """Prefill a turn where it is decoded, or away from there.

    It is decoded where the conversation's last turn was, while there is room for it.

    Args:
        fleet: Roles of the engines.

    Raises:
        ValueError: Some engine that decodes has no other that prefills for it.
    """

    kind = "turn"
    meanings = ("prefill where it is decoded", "prefill at a prefill engine")

    def placement(self, observation: Observation, action: int) -> Placement:
        """Return the placement that an action asks for."""
        decode_at = rules.home_decoder(observation)
        return rules.place_at(observation, decode_at, disaggregate=action == 1)


class JointActions:
    """Choose the pair of engines from the listed candidates.

    Args:
        fleet: Roles of the engines.
    """

    kind = "joint"

    def __init__(self, fleet: Fleet) -> None:
        """List the candidates."""
        self._candidates = candidates(fleet)
        self._decode_at = np.array([placement.decode_at for placement in self._candidates])
        self.meanings = tuple(
            f"prefill at {p.prefill_at}, decode at {p.decode_at}"
            if p.disaggregates
            else f"colocate at {p.decode_at}"
            for p in self._candidates
        )

    def placement(self, observation: Observation, action: int) -> Placement:
        """Return the placement that an action asks for."""
        return self._candidates[action]

    def mask(self, observation: Observation) -> npt.NDArray[np.bool_]:
        """Return which decoders have room; where none has, every action counts."""
        mask: npt.NDArray[np.bool_] = observation.open_to[self._decode_at]
        return mask if mask.any() else np.ones_like(mask)


ACTIONS: dict[str, type[ConversationActions] | type[JointActions]] = {
    actions.kind: actions for actions in (ConversationActions, TurnActions, JointActions)
}
