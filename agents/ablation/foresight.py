"""Perfect predictions: what the conversations in a cluster are still going to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.workloads.conversation import Conversation, Turn
from conserve_gym.ledger import ConversationEnded, Placed, TurnFinished
from conserve_gym.observation import Observation

FloatArray = npt.NDArray[np.float64]


class Prediction(NamedTuple):
    """What is known to come, in tokens.

    Attributes:
        output: Answers of the conversation at the door.
        appended: New prompt tokens of its later turns.
        peak: KV that it will hold at its end.
        remaining_output: Answers still to come of those pinned to each engine, (engines,).
        remaining_appended: New prompt tokens still to come of these, (engines,).
        peaks: KV that these will hold at their ends, (engines,).
    """

    output: float
    appended: float
    peak: float
    remaining_output: FloatArray
    remaining_appended: FloatArray
    peaks: FloatArray


class Foresight:
    """Knows a cluster's conversations to their ends; nothing in the real world does.

    Args:
        cluster: A cluster in which every conversation is placed once.
    """

    def __init__(self, cluster: Cluster) -> None:
        """Start before the first event."""
        self._cluster = cluster
        self._read = 0
        self._decode_at: dict[int, int] = {}
        self._totals = np.zeros((3, len(cluster.fleet.roles)))  # outputs, appended, peaks

    def predict(self, conversation: int) -> Prediction:
        """Return what is still to come, with a conversation at the door."""
        self._update()
        turns = self._cluster.conversations[conversation].turns
        first = turns[0]
        output, appended, peak = _amounts(turns)
        return Prediction(output, appended - first.new_tokens, peak, *self._totals.copy())

    def _update(self) -> None:
        ledger, conversations = self._cluster.ledger, self._cluster.conversations
        for event in ledger.since(self._read):
            if isinstance(event, Placed):
                self._decode_at[event.conversation] = event.decode_at
                turns = conversations[event.conversation].turns
                self._totals[:, event.decode_at] += _amounts(turns)
            elif isinstance(event, TurnFinished):
                turn = conversations[event.conversation].turns[event.turn]
                engine = self._decode_at[event.conversation]
                self._totals[:2, engine] -= turn.output_tokens, turn.new_tokens
            elif isinstance(event, ConversationEnded):
                engine = self._decode_at.pop(event.conversation)
                peak = conversations[event.conversation].peak_tokens
                self._totals[2, engine] -= peak
        self._read = len(ledger)


class TrueOutputs:
    """Knows every output beforehand, in the place of a predictor.

    Args:
        conversations: Those of the episode.
    """

    def __init__(self, conversations: Sequence[Conversation]) -> None:
        """Keep the episode."""
        self._conversations = conversations

    def reset(self) -> None:
        """Keep the episode."""

    def expected_output(self, observation: Observation) -> float:
        """Return the output of the turn at the door in tokens."""
        turns = self._conversations[observation.conversation].turns
        return float(turns[observation.turn].output_tokens)


def _amounts(turns: tuple[Turn, ...]) -> tuple[float, float, float]:
    outputs = sum(turn.output_tokens for turn in turns)
    new = sum(turn.new_tokens for turn in turns)
    return outputs, new, max(turn.input_tokens + turn.output_tokens for turn in turns)
