"""The arms of the ablation, and how one is trained and judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from conserve_gym.agents.ablation.cross_entropy import POPULATION, maximise
from conserve_gym.agents.ablation.features import Group
from conserve_gym.agents.ablation.foresight import FloatArray, Foresight, TrueOutputs
from conserve_gym.agents.ablation.linear import LinearPolicy, deployment
from conserve_gym.agents.evaluation import Episode, measured
from conserve_gym.agents.seeds import FIRST_TRAINING_SEED
from conserve_gym.baselines.output_predictor import learned
from conserve_gym.baselines.predicted_output import PredictedOutput
from conserve_gym.envs.configuration import ConfigurationError, Scenario
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.profile import site
from conserve_gym.envs.workloads.workload import draw_episode

_SEEN = (Group.ARRIVAL, Group.BOOKKEEPING, Group.HISTORY)
ARMS: dict[str, tuple[Group, ...]] = {
    "arrival alone": (Group.ARRIVAL,),
    "with bookkeeping": (Group.ARRIVAL, Group.BOOKKEEPING),
    "with post-hoc history": (Group.ARRIVAL, Group.HISTORY),
    "all that was observed": _SEEN,
    "and engine exports": (*_SEEN, Group.EXPORTS),
    "and perfect predictions": (*_SEEN, Group.PREDICTIONS),
    "predictions alone": (Group.ARRIVAL, Group.PREDICTIONS),
}
"""What each looks at."""

RULES = {"the rule predicted_output": False, "the same with true outputs": True}
"""Nothing is trained for these: whether the outputs are the true ones, or predicted."""


@dataclass(frozen=True)
class Trained:
    """An arm after its training.

    Attributes:
        arm: Name.
        repeat: Which of its trainings.
        weights: What it has learned.
        decisions: How many it has played.
    """

    arm: str
    repeat: int
    weights: FloatArray
    decisions: int


def play(scenario: Scenario, groups: Sequence[Group], weights: FloatArray, seed: int) -> Episode:
    """Play an episode with a linear policy."""
    drawn = draw_episode(scenario.workload, scenario.arrivals, np.random.default_rng(seed))
    cluster = Cluster(scenario.cluster, deployment(groups), drawn)
    policy = LinearPolicy(cluster.fleet, groups, weights)
    if Group.PREDICTIONS in groups:
        policy.foresight = Foresight(cluster)
    return measured(cluster, policy, seed)


def play_rule(scenario: Scenario, seed: int, *, knows: bool) -> Episode:
    """Play an episode with ``predicted_output``.

    Args:
        scenario: What it runs on.
        seed: Of the episode.
        knows: Whether it is told the true outputs.
    """
    drawn = draw_episode(scenario.workload, scenario.arrivals, np.random.default_rng(seed))
    predictor = TrueOutputs(drawn) if knows else learned("all")
    policy = PredictedOutput(site(scenario.cluster), predictor)
    return measured(Cluster(scenario.cluster, policy.deployment, drawn), policy, seed)


def train(loads: Sequence[Scenario], arm: str, repeat: int, budget: int) -> Trained:
    """Search for an arm's weights on training episodes, new ones for each iteration.

    Args:
        loads: The scenario at each rate.
        arm: Name of the arm.
        repeat: Seed of the search and of its episodes.
        budget: Decisions that may be played.

    Raises:
        ConfigurationError: They are not enough for one round.
    """
    groups = ARMS[arm]
    decisions = 0
    first = _start(loads[0], groups)
    each = len(play(loads[0], groups, first, FIRST_TRAINING_SEED).normalised)
    iterations = budget // (POPULATION * each * len(loads))
    if not iterations:
        raise ConfigurationError(
            f"budget={budget:,} is less than one round: {POPULATION} samples play {each:,} "
            f"conversations at {len(loads)} rates"
        )

    def worth(weights: FloatArray, iteration: int) -> float:
        nonlocal decisions
        episode = FIRST_TRAINING_SEED + 1_000 * repeat + iteration
        decisions += each * len(loads)
        return float(np.mean([_worth(play(load, groups, weights, episode)) for load in loads]))

    weights = maximise(worth, first, iterations, repeat)
    return Trained(arm, repeat, weights, decisions)


def _start(load: Scenario, groups: Sequence[Group]) -> FloatArray:
    """Return weights that go round robin, wherever the rest is 0."""
    drawn = draw_episode(load.workload, load.arrivals, np.random.default_rng(0))
    cluster = Cluster(load.cluster, deployment(groups), drawn)
    policy = LinearPolicy(cluster.fleet, groups, np.zeros(0))
    if Group.PREDICTIONS in groups:
        policy.foresight = Foresight(cluster)
    cluster.advance()
    weights = np.zeros(policy.numbers(cluster.observe()).shape[1])
    weights[:3] = 0.0, 0.0, -1.0  # Group.ARRIVAL comes first, and earlier choices are its third
    return weights


def _worth(episode: Episode) -> float:
    """Return SLO attainment in percent, and among equals what is faster."""
    worst = [np.nanmax(latencies) for latencies in episode.normalised]
    return episode.metrics["slo_attainment_pct"] - float(np.log(worst).mean())
