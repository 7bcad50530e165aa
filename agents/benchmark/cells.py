"""What is played: one policy in one setting with one seed."""

from __future__ import annotations

import base64
import hashlib
import json
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from omegaconf import OmegaConf

from conserve_gym.actions import KINDS
from conserve_gym.agents.benchmark.spec import Asked
from conserve_gym.agents.evaluation import Episode, play
from conserve_gym.agents.look_ahead import play_look_ahead
from conserve_gym.agents.policies import resolve, split_name
from conserve_gym.agents.provenance import git_revision, packages
from conserve_gym.envs import configuration
from conserve_gym.envs.configuration import ConfigurationError, Scenario

Result = dict[str, Any]

LOOK_AHEAD = "look_ahead"
"""What is no policy but plays with the real future: ``{look_ahead: {base: conserve}}``, with
``actions`` (``conversation`` by default) as in ``play_look_ahead``."""


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        cluster: An option of that group.
        workload: Name in the benchmark's settings.
        rate: Conversations a second.
        policy: Key of the competitor.
        version: What its files hold, as a digest; empty for a rule of the registry.
        seed: Of the episode, which is the same for every policy.
    """

    cluster: str
    workload: str
    rate: float
    policy: str
    version: str
    seed: int


def episode(scenario: Scenario, asked: Asked, seed: int) -> Episode:
    """Play one episode of whoever is asked for.

    Args:
        scenario: What it runs on.
        asked: A policy as the user wrote it.
        seed: Of the workload and its arrivals.
    """
    name, parameters = split_name(asked)
    if name == LOOK_AHEAD:
        base, actions = bound_of(parameters)
        return play_look_ahead(scenario, resolve(base, scenario.cluster), seed, actions)
    return play(scenario, resolve(asked, scenario.cluster), seed)


def bound_of(parameters: Mapping[str, Any]) -> tuple[Asked, str]:
    """Return the base policy and the actions that a look-ahead tries.

    Raises:
        ConfigurationError: A parameter is not right.
    """
    unknown = parameters.keys() - {"base", "actions"}
    actions = parameters.get("actions", "conversation")
    if unknown or "base" not in parameters or actions not in KINDS:
        raise ConfigurationError(
            f"{LOOK_AHEAD}={dict(parameters)} needs base=POLICY and may have actions, one of "
            f"{', '.join(KINDS)}"
        )
    return parameters["base"], actions


def score(settings: str, asked: Asked, version: str, seed: int) -> Result:
    """Play a cell and return all that is kept of it.

    Args:
        settings: The scenario's whole configuration in JSON, its keys in order.
        asked: The policy.
        version: Of its files.
        seed: Of the episode.

    Returns:
        ``metrics`` (the same figures to the last digit wherever it is played again), ``timing``
        (which is not), ``made_from``, and ``normalised``: latencies of each conversation; or
        ``failed`` with the policy's error.
    """
    scenario = scenario_of(settings)
    began = time.perf_counter()
    try:
        played = episode(scenario, asked, seed)
    except Exception as error:
        return {"failed": " ".join(f"{type(error).__name__}: {error}".split())}
    seconds = time.perf_counter() - began
    timing = {"seconds": seconds}
    if played.decision_ns:
        microseconds = np.array(played.decision_ns) / 1e3
        timing["decision_us_mean"] = float(microseconds.mean())
        timing["decision_us_p99"] = float(np.percentile(microseconds, 99))
    return {
        "metrics": played.metrics | played.energy_kj,
        "timing": timing,
        "made_from": {
            "config_sha256": digest(settings, key_of(asked), version),
            "scenario_sha256": digest(settings),
            **made_by(),
        },
        "normalised": packed(np.array(played.normalised)),
    }


def key_of(asked: Asked) -> str:
    """Return a policy as one text."""
    return asked if isinstance(asked, str) else json.dumps(asked, sort_keys=True)


def asked_of(key: str) -> Asked:
    """Return the policy of a text of ``key_of``."""
    if key.startswith("{"):
        asked: dict[str, Any] = json.loads(key)
        return asked
    return key


@lru_cache(maxsize=64)
def scenario_of(settings: str) -> Scenario:
    """Return the scenario of a configuration in JSON."""
    return configuration.scenario(OmegaConf.create(json.loads(settings)))


@lru_cache(maxsize=1)
def made_by() -> dict[str, str | None]:
    """Return revision and versions of what plays."""
    versions = {name.replace("-", "_"): version for name, version in packages().items()}
    return {"git_revision": git_revision(), "python": platform.python_version(), **versions}


def digest(*parts: str) -> str:
    """Return the SHA-256 of texts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def packed(normalised: npt.NDArray[np.float64]) -> str:
    """Return latencies, shape (conversations, 3), as text: enough digits for a picture."""
    return base64.b64encode(normalised.astype("<f4").tobytes()).decode()


def unpacked(text: str) -> npt.NDArray[np.float32]:
    """Return the latencies of a text of ``packed``."""
    return np.frombuffer(base64.b64decode(text), dtype="<f4").reshape(-1, 3)


def failure(result: Mapping[str, Any]) -> str | None:
    """Return why a cell could not be played; None if it was."""
    failed: str | None = result.get("failed")
    return failed
