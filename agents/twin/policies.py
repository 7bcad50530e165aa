"""The policies of a twin, as the exported files that router and simulator load."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from conserve_gym.agents.runtime.artifact import Artifact
from conserve_gym.agents.trained import path_of
from conserve_gym.agents.twin import length_policy, simulation
from conserve_gym.agents.twin.comparison import metrics
from conserve_gym.agents.twin.spec import Tuning
from conserve_gym.deployment import DEFAULT_DEPLOYMENT, Deployment
from conserve_gym.envs.configuration import ConfigurationError
from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.envs.workloads.conversation import Conversation

COLOCATE, CONSERVE, TUNED = "colocate", "conserve", "tuned"


def exported(
    name: str,
    cluster: ClusterSpec,
    tuning: Tuning,
    episodes: Sequence[Sequence[Conversation]],
    folder: Path,
) -> tuple[str, Path]:
    """Return a policy's name and its exported files, which are written where it has none.

    Args:
        name: What the user wrote.
        cluster: The simulated cluster.
        tuning: How ``tuned`` comes about.
        episodes: What it is tuned on.
        folder: Where files go.

    Raises:
        ConfigurationError: There is no such policy, or it does not serve these engines.
        ArtifactError: It cannot be used.
    """
    if name == COLOCATE:
        everywhere = Deployment(all_mixed=True)
        fleet = cluster.fleet(everywhere)
        path = folder / name
        return name, length_policy.write(path, fleet, math.inf, name=name, deployment=everywhere)
    fleet = cluster.fleet(DEFAULT_DEPLOYMENT)
    if name == CONSERVE:
        return name, length_policy.write(folder / name, fleet, 0.0, name=name)
    if name == TUNED:
        tokens, path = _tuned(cluster, tuning, episodes, folder)
        return f"{name} (from {tokens:g})", path
    path = path_of(name)
    if not path.exists():
        known = ", ".join((COLOCATE, CONSERVE, TUNED))
        raise ConfigurationError(f"policy {name!r} is neither {known} nor an exported policy")
    artifact = Artifact.load(path)
    if not artifact.serves(cluster.fleet(artifact.deployment)):
        raise ConfigurationError(f"policy {name!r} does not serve these engines")
    return artifact.name, path


def _tuned(
    cluster: ClusterSpec,
    tuning: Tuning,
    episodes: Sequence[Sequence[Conversation]],
    folder: Path,
) -> tuple[float, Path]:
    """Return the length that is best in the simulator, with its policy."""
    fleet = cluster.fleet(DEFAULT_DEPLOYMENT)
    found = []
    for tokens in tuning.disaggregate_from:
        path = folder / f"{TUNED}_{tokens:g}"
        length_policy.write(path, fleet, tokens, name=TUNED)
        played = (simulation.play(cluster, path, episode) for episode in episodes)
        values = [metrics(list(episode.ledger))[tuning.metric] for episode in played]
        found.append((sum(values) / len(values), tokens, path))
    _, tokens, path = min(found)
    return tokens, path
