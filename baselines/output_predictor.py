"""How many tokens a turn will put out: learned from what is known when it arrives.

A ridge regression of the log of a turn's output on its prompt, its new tokens, its index, and the
conversation's earlier outputs. Nobody tells a policy outputs, but a later turn shows the last one:
of its prompt, what is not new is the last prompt and its output.

``python -m conserve_gym.agents.output_lengths`` fits the weights in ``output_lengths.json`` on
episodes of training seeds, for each workload and for all of them together, and measures on seeds of
their own how far predicted medians are off:

    trained on, played on     median |log error|   R2 of the log   MAPE
    miniswe, miniswe                        0.21            0.32    35 %
    claude_code, claude_code                0.50            0.10    72 %
    chat, chat                              0.69            0.15   324 %
    all, miniswe                            0.44            0.05    61 %
    all, claude_code                        0.50            0.05    71 %
    all, chat                               0.85            0.09   284 %

Little can be told of outputs from lengths alone; on miniswe nearly all of it is the turn's index.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from conserve_gym.observation import FloatArray, Observation

WEIGHTS = Path(__file__).with_name("output_lengths.json")

WORKLOADS = ("miniswe", "claude_code", "chat")
TRAINED_ON = ("all", *WORKLOADS)

FEATURES = (
    "one",
    "log prompt",
    "log new",
    "log turn",
    "mean log of earlier outputs",
    "log of last output",
    "first",
    "second",
    "third",
    "fourth",
)


class OutputPredictor(Protocol):
    """Tells how long a turn's output will be."""

    def reset(self) -> None:
        """Forget earlier episodes."""

    def expected_output(self, observation: Observation) -> float:
        """Return the expected output of the turn at the door in tokens; called once a turn."""


def features(prompt: int, new: int, turn: int, outputs: Sequence[int]) -> FloatArray:
    """Return what is known of a turn at its arrival, in the order of ``FEATURES``.

    Args:
        prompt: Its full prompt in tokens.
        new: Part that its conversation's KV does not cover.
        turn: Its index, from 0.
        outputs: Outputs of the conversation's earlier turns, as far as they are known.
    """
    logs = np.log1p(outputs) if outputs else np.zeros(1)
    values = [1.0, np.log1p(prompt), np.log1p(new), np.log1p(turn), logs.mean(), logs[-1]]
    return np.array(values + [float(turn == index) for index in range(4)])


class Ridge:
    """A fitted regression.

    Args:
        weights: One a feature.
        smearing: Mean over median of an output, given its features (Duan's smearing factor).
    """

    def __init__(self, weights: Sequence[float], smearing: float) -> None:
        """Take the weights."""
        self.weights = np.array(weights)
        self.smearing = smearing

    def median(self, known: FloatArray) -> FloatArray:
        """Return the median output for features of shape (..., features)."""
        median: FloatArray = np.exp(known @ self.weights)
        return median


class LearnedOutput:
    """Predicts a turn's mean output.

    Args:
        ridge: The regression.
    """

    def __init__(self, ridge: Ridge) -> None:
        """Start without conversations."""
        self._ridge = ridge
        self._seen: dict[int, tuple[int, tuple[int, ...]]] = {}  # conversation: prompt, outputs

    def reset(self) -> None:
        """Forget all conversations."""
        self._seen = {}

    def expected_output(self, observation: Observation) -> float:
        """Return the expected output of the turn at the door in tokens."""
        prompt, new = int(observation["prompt"]), int(observation["new"])
        last_prompt, outputs = self._seen.get(observation.conversation, (prompt, ()))
        last_output = prompt - new - last_prompt
        if last_output > 0:  # else the history was cut
            outputs = (*outputs, last_output)
        self._seen[observation.conversation] = (prompt, outputs)
        known = features(prompt, new, observation.turn, outputs)
        return float(self._ridge.median(known)) * self._ridge.smearing


@cache
def table() -> dict[str, Any]:
    """Return the fitted weights and their errors."""
    fitted: dict[str, Any] = json.loads(WEIGHTS.read_text())
    return fitted


def learned(trained_on: str) -> LearnedOutput:
    """Return the predictor that was trained on a workload, or on ``all``."""
    fitted = table()["fits"][trained_on]
    return LearnedOutput(Ridge(fitted["weights"], fitted["smearing"]))
