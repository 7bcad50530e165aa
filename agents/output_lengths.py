"""Fits the predictor of output lengths, and measures how far it errs.

``python -m conserve_gym.agents.output_lengths`` writes ``baselines/output_lengths.json`` again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import Any, NamedTuple

import numpy as np

from conserve_gym.agents.seeds import FIRST_TRAINING_SEED
from conserve_gym.baselines.output_predictor import FEATURES, WEIGHTS, WORKLOADS, Ridge, features
from conserve_gym.envs.configuration import load_scenario
from conserve_gym.envs.workloads.conversation import Turn
from conserve_gym.envs.workloads.workload import draw_episode
from conserve_gym.observation import FloatArray

TRAINING_SEEDS = range(FIRST_TRAINING_SEED, FIRST_TRAINING_SEED + 12)
VALIDATION_SEEDS = range(1_000, 1_006)
"""Below those of training and of the benchmark, and none that an evaluation counts to."""

PENALTY = 1.0


class Samples(NamedTuple):
    """Turns as a predictor finds them.

    Attributes:
        known: Features, shape (turns, features).
        outputs: Tokens, shape (turns,).
    """

    known: FloatArray
    outputs: FloatArray


def samples(workload: str, seeds: Iterable[int]) -> Samples:
    """Return every turn of the episodes that the seeds draw."""
    scenario = load_scenario([f"workload={workload}"])
    drawn: list[tuple[FloatArray, int]] = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        for conversation in draw_episode(scenario.workload, scenario.arrivals, rng):
            drawn += _turns(conversation.turns)
    known, outputs = zip(*drawn, strict=True)
    return Samples(np.array(known), np.array(outputs, dtype=np.float64))


def _turns(turns: Sequence[Turn]) -> list[tuple[FloatArray, int]]:
    """Return a conversation's turns with what a router knows of them when they arrive."""
    found, outputs, last_prompt = [], [], 0
    for index, turn in enumerate(turns):
        last_output = turn.input_tokens - turn.new_tokens - last_prompt
        if index and last_output > 0:
            outputs.append(last_output)
        known = features(turn.input_tokens, turn.new_tokens, index, outputs)
        found.append((known, turn.output_tokens))
        last_prompt = turn.input_tokens
    return found


def fit(workloads: Sequence[Samples]) -> Ridge:
    """Fit the log of outputs; every workload weighs the same, whatever its number of turns."""
    known = np.concatenate([one.known for one in workloads])
    logs = np.log(np.concatenate([one.outputs for one in workloads]))
    weights = np.concatenate(
        [np.full(len(one.outputs), 1.0 / len(one.outputs)) for one in workloads]
    )
    weights *= len(logs) / weights.sum()
    penalty = PENALTY * np.eye(len(FEATURES))
    penalty[0, 0] = 0.0
    solved = np.linalg.solve(
        known.T @ (known * weights[:, None]) + penalty, known.T @ (weights * logs)
    )
    solved = np.array([float(f"{weight:.6g}") for weight in solved])
    smearing = float(np.average(np.exp(logs - known @ solved), weights=weights))
    return Ridge(solved.tolist(), float(f"{smearing:.6g}"))


def errors(ridge: Ridge, validation: Samples) -> dict[str, float]:
    """Return how far predicted medians are from outputs.

    Returns:
        Median absolute error of the log, R2 of the log, and mean absolute percentage error.
    """
    logs, medians = np.log(validation.outputs), ridge.median(validation.known)
    residuals = logs - np.log(medians)
    return {
        "median_absolute_log_error": float(np.median(np.abs(residuals))),
        "r2_of_log": 1.0 - float((residuals**2).mean() / logs.var()),
        "mape_pct": 100.0
        * float((np.abs(medians - validation.outputs) / validation.outputs).mean()),
    }


def fitted(training: Mapping[str, Samples], validation: Mapping[str, Samples]) -> dict[str, Any]:
    """Return weights and errors of a fit to each workload, and of one to all of them."""
    sets = {"all": list(training.values()), **{name: [one] for name, one in training.items()}}
    fits = {}
    for name, chosen in sets.items():
        ridge = fit(chosen)
        measured = {w: errors(ridge, one) for w, one in validation.items()}
        fits[name] = {
            "weights": ridge.weights.tolist(),
            "smearing": ridge.smearing,
            "errors": {
                w: {key: round(value, 4) for key, value in one.items()}
                for w, one in measured.items()
            },
        }
    return fits


def main() -> None:
    """Fit, and write the file."""
    training = {name: samples(name, TRAINING_SEEDS) for name in WORKLOADS}
    validation = {name: samples(name, VALIDATION_SEEDS) for name in WORKLOADS}
    fits = fitted(training, validation)
    written = {
        "source": "python -m conserve_gym.agents.output_lengths",
        "fitted": date.today().isoformat(),
        "training_seeds": [TRAINING_SEEDS.start, TRAINING_SEEDS.stop - 1],
        "validation_seeds": [VALIDATION_SEEDS.start, VALIDATION_SEEDS.stop - 1],
        "features": list(FEATURES),
        "fits": fits,
    }
    WEIGHTS.write_text(json.dumps(written, indent=1) + "\n")
    for name, one in fits.items():
        print(name, json.dumps(one["errors"]))


if __name__ == "__main__":
    main()
