"""Episodes of an exported policy with everything that it saw and scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from conserve_gym.agents.evaluation import Episode, play
from conserve_gym.agents.policies import resolve, split_name
from conserve_gym.agents.runtime.scheduler import Decision, Scheduler
from conserve_gym.envs.configuration import ConfigurationError, Scenario
from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.observation import Observation
from conserve_gym.placement import Placement


@dataclass(frozen=True, eq=False)
class Step:
    """One decision and what it was taken on."""

    observation: Observation
    decision: Decision


@dataclass(frozen=True, eq=False)
class Recording:
    """One episode.

    Attributes:
        episode: What it reports.
        steps: Its decisions.
    """

    episode: Episode
    steps: tuple[Step, ...]


class _Recorder:
    """Passes decisions through and keeps them."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.name = scheduler.name
        self.deployment = scheduler.deployment
        self.reset = scheduler.reset
        self.steps: list[Step] = []
        self._scheduler = scheduler

    def decide(self, observation: Observation) -> Placement:
        self.steps.append(Step(observation, self._scheduler.decision(observation)))
        return self.steps[-1].decision.placement


def record(scenario: Scenario, scheduler: Scheduler, seed: int) -> Recording:
    """Play one episode and keep its decisions."""
    recorder = _Recorder(scheduler)
    episode = play(scenario, recorder, seed)
    return Recording(episode, tuple(recorder.steps))


def exported_policy(asked: str | Mapping[str, Any], cluster: ClusterSpec) -> Scheduler:
    """Return the policy that a name means, as the runtime loads it.

    Args:
        asked: An exported policy or a complete training run, which is exported, with a preference
            if it shall have one: see ``conserve_gym.agents.policies.resolve``.
        cluster: The cluster that it shall decide for.

    Raises:
        ConfigurationError: It is no network, or does not serve the cluster.
        ArtifactError: The exported policy cannot be used.
        PreferenceError: It cannot take the preference.
    """
    policy = resolve(asked, cluster)
    if isinstance(policy, Scheduler):
        return policy
    name, parameters = split_name(asked)
    if not Path(name).is_dir():
        raise ConfigurationError(f"policy={name!r} is neither a training run nor an exported one")
    from conserve_gym.agents.export import export  # torch, only where it is needed

    with TemporaryDirectory() as folder:
        # The artefact has no preference as its name; the user's is given to the scheduler.
        export(Path(name), Path(folder) / "policy")
        preference = parameters.get("preference")
        return Scheduler.load(Path(folder) / "policy", preference=preference)
