"""What a trained policy attains on episodes that it has not seen, and that are not the benchmark's.

Settings are chosen by this, so that evaluations and the benchmark stay unseen.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from conserve_gym.agents.evaluation import play
from conserve_gym.agents.learned import LearnedPolicy
from conserve_gym.agents.seeds import FIRST_VALIDATION_SEED
from conserve_gym.envs.configuration import validation_part
from conserve_gym.envs.randomised import of_seeds, scenarios

EPISODES = 10


def attained_pct(run: Path, episodes: int = EPISODES) -> float:
    """Return a training run's mean SLO attainment, %, on loads like those of its training.

    Of recordings that it was trained on the train split of, the validation split is taken.

    Args:
        run: The run's folder.
        episodes: How many to play.
    """
    policy = LearnedPolicy(run)
    unseen = scenarios(validation_part(policy.config))
    seeds = range(FIRST_VALIDATION_SEED, FIRST_VALIDATION_SEED + episodes)
    attained = []
    for seed, scenario in zip(seeds, of_seeds(unseen, seeds), strict=True):
        policy.move_to(scenario.cluster.fleet(policy.deployment))
        attained.append(play(scenario, policy, seed).metrics["slo_attainment_pct"])
    return float(np.mean(attained))
