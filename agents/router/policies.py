"""Finds the policy that a router is asked for: a rule by name, a trained one, or a path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from conserve_gym.agents.policies import rule_of, split_name
from conserve_gym.agents.runtime.artifact import HEADER
from conserve_gym.agents.runtime.rule_scheduler import RuleScheduler
from conserve_gym.agents.runtime.scheduler import Scheduler
from conserve_gym.agents.trained import TRAINED, path_of
from conserve_gym.baselines.registry import BASELINES, make_baseline
from conserve_gym.deployment import Deployment
from conserve_gym.envs.configuration import ConfigurationError
from conserve_gym.errors import ConServeGymError
from conserve_gym.fleet import Fleet, Role
from conserve_gym.site import Site


def rule(field: str, asked: str | Mapping[str, Any], fleet: Fleet) -> RuleScheduler | None:
    """Return the rule that is asked for; None where it is no rule.

    Args:
        field: Where the configuration asks for it.
        asked: As evaluations name policies: a name, ``{name: {parameter: value}}``, or a path.
        fleet: The engines. Whatever they prefill, those set apart for it are known.

    Raises:
        ConfigurationError: A router cannot run it, or its parameters are not right.
    """
    name, parameters = split_name(asked)
    found = rule_of(name, parameters, _site(fleet))
    if found is None:
        return None
    if problem := unfit(found.deployment):
        raise ConfigurationError(
            f"{field}={name}: {problem}; of the rules a router runs {', '.join(_runnable(fleet))}"
        )
    return RuleScheduler(found)


def exported(field: str, asked: str | Mapping[str, Any]) -> Path:
    """Return where the exported policy is that is asked for.

    Raises:
        ConfigurationError: There is none.
    """
    name, parameters = split_name(asked)
    path = path_of(name)
    if parameters:
        raise ConfigurationError(f"{field}={name} is no rule, and takes no parameters")
    if path.is_file() or (path / HEADER).exists():
        return path
    says = "a folder without an exported policy (scripts/export.py writes one)"
    if not path.exists():
        says = f"neither a path nor one of {', '.join(sorted((*BASELINES, *TRAINED)))}"
    raise ConfigurationError(f"{field}={name} is {says}")


def scheduler(field: str, asked: str | Mapping[str, Any], fleet: Fleet) -> Scheduler:
    """Return what decides as it is asked for, ready to decide.

    Raises:
        ConfigurationError: There is no such policy, or a router cannot run it.
        ArtifactError: It is exported, and cannot be used.
    """
    return rule(field, asked, fleet) or Scheduler.load(exported(field, asked))


def unfit(deployment: Deployment) -> str:
    """Return why a router cannot run engines as a policy wants; empty where it can."""
    if deployment.sees_future:
        return "it knows the future, and a router does not"
    if deployment.decides_every_turn:
        return "it decides every turn, and a router every conversation once"
    if deployment.engine_exports:
        return "it asks engines for their queues, and a router does not"
    return ""


class _Unprofiled:
    """Wires of which nothing is known."""

    def transfer_s(self, source: int, target: int, tokens: int) -> float:
        """Refuse."""
        raise ConServeGymError("a router has no profile of its engines and wires")


def _site(fleet: Fleet) -> Site:
    """Return what a router knows of its cluster: who is set apart for prefill."""
    roles = (Role.PREFILL if a else r for a, r in zip(fleet.apart, fleet.roles, strict=True))
    return Site(replace(fleet, roles=tuple(roles)), (), _Unprofiled())


def _runnable(fleet: Fleet) -> list[str]:
    site = _site(fleet)
    return [n for n in sorted(BASELINES) if not unfit(make_baseline(n, site).deployment)]
