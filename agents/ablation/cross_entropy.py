"""The cross-entropy method: search by samples around the best samples so far.

Source: Rubinstein and Kroese, The Cross-Entropy Method, 2004; with the noise floor of Szita and
Lorincz, Neural Computation 18, 2006, which keeps it from settling too soon.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from conserve_gym.agents.ablation.foresight import FloatArray

POPULATION = 24
_ELITES = 6
_FIRST_DEVIATION = 1.0
_LEAST_DEVIATION = 0.05


def maximise(
    worth: Callable[[FloatArray, int], float], start: FloatArray, iterations: int, seed: int
) -> FloatArray:
    """Return the mean of the last samples' best.

    Args:
        worth: Of a sample in an iteration; within one, all samples shall meet the same episodes.
        start: Where to begin.
        iterations: How many times ``POPULATION`` samples are drawn.
        seed: Of the samples.
    """
    rng = np.random.default_rng(seed)
    mean, deviation = start, np.full(start.shape, _FIRST_DEVIATION)
    for iteration in range(iterations):
        samples = rng.normal(mean, deviation, (POPULATION, start.size))
        samples[0] = mean  # so that a good mean is not lost
        worths = [worth(sample, iteration) for sample in samples]
        elites = samples[np.argsort(worths, kind="stable")[-_ELITES:]]
        mean = elites.mean(axis=0)
        deviation = np.maximum(elites.std(axis=0), _LEAST_DEVIATION)
    return mean
