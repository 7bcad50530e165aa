"""Finds the policy that a name or a path means."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conserve_gym.agents.explanation.rule import TREE, DistilledRule
from conserve_gym.agents.runtime.artifact import HEADER
from conserve_gym.agents.runtime.scheduler import Scheduler
from conserve_gym.agents.submissions import names_a_class, submitted
from conserve_gym.agents.trained import TRAINED, path_of
from conserve_gym.baselines.registry import BASELINES, make_baseline
from conserve_gym.envs.configuration import ConfigurationError
from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.envs.serving.profile import site
from conserve_gym.fleet import Fleet
from conserve_gym.policy import Policy
from conserve_gym.site import Site


class OtherFleetError(ConfigurationError):
    """A policy that was made for other engines than the cluster's."""


def resolve(asked: str | Mapping[str, Any], cluster: ClusterSpec) -> Policy:
    """Return the policy of a name, a path or a class.

    Args:
        asked: What the user wrote: a name, a training run's folder, an exported policy, a distilled
            rule's ``rule.json``,
            ``path/to/file.py:Class`` or ``package.module:Class``, or a baseline's name with its
            parameters, such as ``{"conserve_offload": {"tokens": 2048}}`` or the path of a
            ``tuned.json``. Runs and exported policies that were trained for any take
            ``preference``, how much energy counts from 0 to 1.
        cluster: The cluster that it shall decide for.

    Raises:
        OtherFleetError: It was trained for other engines.
        ConfigurationError: There is none, or it is no policy.
        ArtifactError: The exported policy cannot be used.
        PreferenceError: It cannot take the preference.
    """
    name, parameters = split_name(asked)
    if (rule := rule_of(name, parameters, site(cluster))) is not None:
        return rule
    path = path_of(name)
    if parameters.keys() - ({"preference"} if path.exists() else set()):
        raise _no_parameters(name)
    preference = parameters.get("preference")
    if path.is_file() or (path / HEADER).exists():
        scheduler = Scheduler.load(path, preference=preference)
        assert scheduler.artifact is not None
        fleet = cluster.fleet(scheduler.deployment)
        if not scheduler.artifact.serves(fleet):
            raise _other_fleet(name, scheduler.artifact.fleet, fleet)
        return scheduler
    if path.is_dir():
        from conserve_gym.agents.learned import LearnedPolicy  # torch, only where it is needed

        learned = LearnedPolicy(path, preference)
        fleet = cluster.fleet(learned.deployment)
        if not learned.serves(fleet):
            raise _other_fleet(name, learned.fleet, fleet)
        learned.move_to(fleet)
        return learned
    raise ConfigurationError(
        f"policy {name!r} is neither a path, file.py:Class, package.module:Class, nor one of "
        f"{', '.join(sorted((*BASELINES, *TRAINED)))}"
    )


def rule_of(name: str, parameters: Mapping[str, Any], site: Site) -> Policy | None:
    """Return the policy of a name if it needs no weights; None if it may need some.

    Args:
        name: Of a baseline, a class, or a distilled rule's file.
        parameters: Of a baseline.
        site: The cluster that it shall decide for.

    Raises:
        ConfigurationError: It takes no such parameters, or is no policy.
    """
    if name in BASELINES:
        try:
            return make_baseline(name, site, parameters)
        except ValueError as error:
            raise ConfigurationError(f"policy {error}") from None
    of_a_class = names_a_class(name)
    if not of_a_class and Path(name).suffix != ".json":
        return None
    if parameters:
        raise _no_parameters(name)
    return submitted(name, site) if of_a_class else DistilledRule.load(Path(name))


def split_name(asked: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the name or path that the user wrote, and the parameters.

    Raises:
        ConfigurationError: It has another form, or is no tuned rule.
    """
    if isinstance(asked, str) and asked.endswith(".json"):
        asked = _named_in(Path(asked))
    if isinstance(asked, str):
        return asked, {}
    if isinstance(asked, Mapping) and len(asked) == 1:
        ((name, parameters),) = asked.items()
        if isinstance(name, str) and isinstance(parameters, Mapping):
            return name, {str(key): value for key, value in parameters.items()}
    raise ConfigurationError(f"policy {asked!r} is no name, nor {{name: {{parameter: value}}}}")


def _named_in(path: Path) -> Any:
    """Return what a tuning has found, or the path itself of a distilled rule."""
    try:
        values = json.loads(path.read_text("utf-8"))
        return str(path) if TREE in values else values["policy"]
    except OSError as error:
        raise ConfigurationError(f"policy {str(path)!r}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigurationError(f"policy {str(path)!r} is no tuned rule ({error!r})") from None


def _no_parameters(name: str) -> ConfigurationError:
    return ConfigurationError(
        f"policy {name!r} is no baseline, and takes no parameters but a preference"
    )


def _other_fleet(name: str, trained: Fleet, given: Fleet) -> OtherFleetError:
    return OtherFleetError(
        f"policy {name!r} was trained for engines {trained.to_json()}, and does not serve the "
        f"cluster's, {given.to_json()}"
    )
