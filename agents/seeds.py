"""Seeds of training and of evaluation, kept apart."""

from __future__ import annotations

import numpy as np

FIRST_TRAINING_SEED = 1_000_000
"""Training draws its episodes from seeds from here on, evaluation from seeds below."""


def training_seed(seed: int, steps_done: int) -> int:
    """Return the seed of a run's first environment.

    A run that goes on after ``steps_done`` steps draws other episodes than it has seen.
    """
    drawn = np.random.SeedSequence([seed, steps_done]).generate_state(1)[0]
    return FIRST_TRAINING_SEED + int(drawn) % 1_000_000_000
