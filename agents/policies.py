"""Finds the policy that a name or a path means."""

from __future__ import annotations

from pathlib import Path

from conserve_gym.agents.runtime.artifact import HEADER
from conserve_gym.agents.runtime.scheduler import Scheduler
from conserve_gym.baselines.registry import BASELINES, make_baseline
from conserve_gym.envs.configuration import ConfigurationError
from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.fleet import Fleet
from conserve_gym.policy import Policy


def resolve(name: str, cluster: ClusterSpec) -> Policy:
    """Return the policy of a baseline's name, a training run's folder or an exported policy.

    Args:
        name: What the user wrote.
        cluster: The cluster that it shall decide for.

    Raises:
        ConfigurationError: There is none, or it was trained for other engines.
        ArtifactError: The exported policy cannot be used.
    """
    if name in BASELINES:
        return make_baseline(name)
    path = Path(name)
    if path.is_file() or (path / HEADER).exists():
        scheduler = Scheduler.load(path)
        assert scheduler.artifact is not None
        _check_fleet(name, scheduler.artifact.fleet, cluster.fleet(scheduler.deployment))
        return scheduler
    if path.is_dir():
        from conserve_gym.agents.learned import LearnedPolicy  # torch, only where it is needed

        learned = LearnedPolicy(path)
        _check_fleet(name, learned.fleet, cluster.fleet(learned.deployment))
        return learned
    raise ConfigurationError(
        f"policy {name!r} is neither a path nor one of {', '.join(sorted(BASELINES))}"
    )


def _check_fleet(name: str, trained: Fleet, given: Fleet) -> None:
    if trained != given:
        raise ConfigurationError(
            f"policy {name!r} was trained for engines {trained.to_json()}, "
            f"the cluster has {given.to_json()}"
        )
