"""Writes a training run's policy in the form that the runtime loads."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from omegaconf import OmegaConf
from safetensors.numpy import save as save_tensors

from conserve_gym.agents.evaluation import play
from conserve_gym.agents.learned import LearnedPolicy
from conserve_gym.agents.networks.exported import exported, scores
from conserve_gym.agents.provenance import provenance
from conserve_gym.agents.runtime.artifact import (
    GOLDEN,
    HEADER,
    SCHEMA,
    WEIGHTS,
    header_checksum,
)
from conserve_gym.agents.runtime.scheduler import FALLBACK_RULE, SEEN_MARGIN, Scheduler
from conserve_gym.agents.seeds import FIRST_TRAINING_SEED
from conserve_gym.envs.configuration import ConfigurationError, Scenario, nominal_scenario
from conserve_gym.estimates import READS
from conserve_gym.files import whole
from conserve_gym.observation import FIELDS, Observation, field_table, split
from conserve_gym.placement import Placement

GOLDEN_OBSERVATIONS = 64


class _Recorder:
    """Passes decisions through and keeps what the policy saw."""

    def __init__(self, policy: LearnedPolicy) -> None:
        self.name = policy.name
        self.deployment = policy.deployment
        self.reset = policy.reset
        self.seen: list[Observation] = []
        self._policy = policy

    def decide(self, observation: Observation) -> Placement:
        self.seen.append(observation)
        return self._policy.decide(observation)


def export(run: Path, target: Path, preference: float | None = None) -> Scheduler:
    """Write the run's policy to ``target`` and return it as loaded by the runtime.

    It appears whole or not at all, and replaces an earlier export.

    Args:
        run: Folder of the run.
        target: Folder to write, or a zip file if its name ends so.
        preference: Default of the exported policy, from 0 to 1; None is 0 where it has one.

    Raises:
        ConfigurationError: The run holds no trained model, or ``target`` is something else.
        PreferenceError: The preference is not from 0 to 1, or the run was trained for one weight.
    """
    policy = LearnedPolicy(run, preference)
    if not policy.complete:
        raise ConfigurationError(f"{run} is not complete; start its training again to go on")
    if policy.deployment.sees_future:
        raise ConfigurationError(
            f"{run}: no router can run deployment={policy.deployment.to_json()}"
        )
    _check_replaceable(target)
    built = nominal_scenario(policy.config)
    network, tensors = exported(policy.model)
    weights = save_tensors(tensors)
    golden = json.dumps(_golden(policy, built)).encode()
    low, high = _seen(policy)
    header: dict[str, Any] = {
        "schema": SCHEMA,
        "name": run.name,
        "observation": {
            "fields": field_table(),
            "order": "cluster, conversation, then every engine in turn",
            "fleet": policy.fleet.to_json(),
            "serves": "this fleet alone" if policy.network == "mlp" else "any fleet",
            "seen_low": low.tolist(),
            "seen_high": high.tolist(),
        },
        "deployment": policy.deployment.to_json(),
        "actions": {
            "kind": policy.actions.kind,
            "meanings": list(policy.actions.meanings),
            "offload_above": [
                None if math.isinf(tokens) else tokens for tokens in built.offload_above
            ],
            "mask": "actions whose decoder has no room for the known footprint are left out",
        },
        "preference": None
        if policy.preference is None
        else {
            "default": policy.preference,
            "meaning": "how much energy counts, from 0 to 1; the network sees it before the "
            "observation",
        },
        "network": network,
        "fallback": {
            "rule": FALLBACK_RULE,
            "when": "engines that the policy does not serve, a value that is not a number, or a "
            f"field outside seen_low - {SEEN_MARGIN} to seen_high + {SEEN_MARGIN}",
        },
        "training": {
            "steps": policy.model.num_timesteps,
            "config": OmegaConf.to_container(policy.config, resolve=True),
            "run": json.loads((run / "run.json").read_text(encoding="utf-8")),
            "export": provenance(built.cluster),
        },
    }
    header["sha256"] = {
        HEADER: header_checksum(header),
        WEIGHTS: hashlib.sha256(weights).hexdigest(),
        GOLDEN: hashlib.sha256(golden).hexdigest(),
    }
    text = json.dumps(header, indent=1).encode() + b"\n"
    _write(target, {HEADER: text, WEIGHTS: weights, GOLDEN: golden})
    return Scheduler.load(target)


def _check_replaceable(target: Path) -> None:
    """Check that nothing but an exported policy would be replaced.

    Raises:
        ConfigurationError: Something else stands there.
    """
    names: set[str] = set()
    if target.is_dir():
        names = {path.name for path in target.iterdir()}
    elif zipfile.is_zipfile(target):
        with zipfile.ZipFile(target) as archive:
            names = set(archive.namelist())
    if target.exists() and names != {HEADER, WEIGHTS, GOLDEN}:
        raise ConfigurationError(f"output={target} exists and is not an exported policy")


def _write(target: Path, contents: dict[str, bytes]) -> None:
    """Write the files of an exported policy, whole or not at all."""
    if target.suffix == ".zip":
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole(target) as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, content in contents.items():
                    # The time of the export would make two of the same policy differ.
                    archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
            Scheduler.load(file)  # an artefact that does not load must not replace one that does
        return
    partial = target.with_name(target.name + ".partial")
    replaced = target.with_name(target.name + ".replaced")
    for leftover in (partial, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for name, content in contents.items():
            (partial / name).write_bytes(content)
        Scheduler.load(partial)
        if target.exists():
            os.replace(target, replaced)
        os.replace(partial, target)
    finally:
        for leftover in (partial, replaced):
            shutil.rmtree(leftover, ignore_errors=True)


def _golden(policy: LearnedPolicy, built: Scenario) -> dict[str, Any]:
    """Return observations spread over an episode that the policy has played, and their scores."""
    recorder = _Recorder(policy)
    play(built, recorder, FIRST_TRAINING_SEED)
    indices = np.linspace(0, len(recorder.seen) - 1, GOLDEN_OBSERVATIONS).astype(int)
    chosen = [recorder.seen[index] for index in indices]
    preferences = [policy.preference] * len(chosen)
    if policy.preference is not None:
        preferences = np.linspace(0.0, 1.0, len(chosen)).tolist()
    shown = np.stack(list(map(policy.shown, chosen, preferences)))
    golden = {
        "observations": [policy.scaler(observation.raw).tolist() for observation in chosen],
        "scores": scores(policy.model, shown, len(policy.actions.meanings)).tolist(),
    }
    if policy.preference is not None:
        golden["preferences"] = preferences
    if policy.network != "mlp":
        tables = (policy.actions.table(observation) for observation in chosen)
        golden["placements"] = [table.tolist() for table in tables]
    return golden


def _seen(policy: LearnedPolicy) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the smallest and the largest value of each field that training saw.

    To a scorer all engines are one: their fields stand there once. A field that the network does
    not look at may have any value.
    """
    if policy.network == "linear":
        looked_at = [f"{field.group}.{field.name}" in READS for field in FIELDS]
        low, high = policy.model.observed
        return np.where(looked_at, low, 0.0), np.where(looked_at, high, 1.0)
    seen = policy.observation
    low, high = policy.model.observed_low[seen], policy.model.observed_high[seen]
    if policy.network == "mlp":
        return low, high
    lowest, highest = split(low), split(high)
    lowest["engines"] = lowest["engines"].min(axis=0)
    highest["engines"] = highest["engines"].max(axis=0)
    return np.concatenate(list(lowest.values())), np.concatenate(list(highest.values()))
