"""Seeds of training, of evaluation and of the benchmark, kept apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from conserve_gym.envs.configuration import ConfigurationError

FIRST_TRAINING_SEED = 1_000_000
"""Training and tuning draw their episodes from seeds from here on, evaluation from seeds below."""

FIRST_TEST_SEED = 500_000
"""The benchmark counts its seeds from here on: nobody looks at them while choosing a policy."""

FIRST_VALIDATION_SEED = 400_000
"""Settings of training are chosen by seeds from here on; a count in an evaluation begins at 0."""


def evaluation_seeds(given: object, first: int = 0) -> list[int]:
    """Return seeds from a count or a list.

    Args:
        given: What the user wrote.
        first: Where a count begins.

    Raises:
        ConfigurationError: They are none that an evaluation may have.
    """
    seeds: list[Any] = []
    if isinstance(given, int) and not isinstance(given, bool):
        seeds = list(range(first, first + given))
        if not seeds:
            raise ConfigurationError(f"seeds={given} must be at least 1")
    elif isinstance(given, Sequence) and not isinstance(given, str):
        given = seeds = list(given)
    if not all(isinstance(seed, int) and 0 <= seed < FIRST_TRAINING_SEED for seed in seeds):
        raise ConfigurationError(
            f"seeds={given!r} must be a count or a list of seeds from 0 to "
            f"{FIRST_TRAINING_SEED - 1:,}; training has those above"
        )
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigurationError(f"seeds={given!r} must be at least one, and none twice")
    return seeds


def training_seed(seed: int, steps_done: int) -> int:
    """Return the seed of a run's first environment.

    A run that goes on after ``steps_done`` steps draws other episodes than it has seen.
    """
    drawn = np.random.SeedSequence([seed, steps_done]).generate_state(1)[0]
    return FIRST_TRAINING_SEED + int(drawn) % 1_000_000_000
