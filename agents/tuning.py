"""Tunes a rule's parameters on training episodes, with the budget that a learner gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from omegaconf import DictConfig
from pydantic import Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from conserve_gym.agents import campaign, search
from conserve_gym.agents.evaluation import play
from conserve_gym.agents.policies import resolve
from conserve_gym.agents.provenance import provenance, write_json
from conserve_gym.agents.seeds import FIRST_TRAINING_SEED
from conserve_gym.baselines.baseline import Baseline, Value
from conserve_gym.baselines.registry import BASELINES
from conserve_gym.envs.configuration import (
    ConfigurationError,
    Scenario,
    at_rates,
    of_split,
    validated_part,
)
from conserve_gym.envs.fields import STRICT, Positive
from conserve_gym.ledger import Placed

TUNED = "tuned.json"


@dataclass(frozen=True, config=STRICT)
class TuningSpec:
    """What is tuned, and how long.

    Attributes:
        policy: Name of a baseline that has parameters.
        budget: Decisions to play in all.
        trials: Settings to try, the default one among them.
        rates: Conversations a second; a setting's worth is its mean over them.
        seed: Of the search.
        output: Folder to write to.
    """

    policy: str
    budget: PositiveInt
    trials: PositiveInt
    rates: Annotated[list[Positive], Field(min_length=1)]
    seed: NonNegativeInt
    output: Path


class Tuned(NamedTuple):
    """What a search has found.

    Attributes:
        parameters: The best setting.
        attainment_pct: Its SLO attainment on the training episodes.
        default_pct: That of the default setting on the same.
        episodes: How many each setting played at each rate.
        path: File that names the setting for evaluations.
    """

    parameters: dict[str, Value]
    attainment_pct: float
    default_pct: float
    episodes: int
    path: Path


def tune(config: DictConfig, console: Console) -> Tuned:
    """Search for the setting with the highest SLO attainment.

    A folder that a search was stopped in goes on.

    Raises:
        ConfigurationError: A key or value is not right, the workload is no training split, or the
            folder holds another search.
    """
    spec = validated_part(TuningSpec, config)
    baseline = _tunable(spec.policy)
    loads = at_rates(of_split(config, "train"), spec.rates)
    campaign.claim(spec.output, {str(k): str(v) for k, v in config.items() if k != "output"})
    study = search.open_study(spec.output, spec.policy)
    # One that goes on must not draw again what was drawn before.
    study.sampler = search.optuna().samplers.TPESampler(seed=spec.seed + len(study.trials))
    default = {name: parameter.default for name, parameter in baseline.parameters.items()}
    if not any(trial.params == default for trial in search.complete(study)):
        study.enqueue_trial(default)
    episodes = _episodes(spec, loads)
    columns = (TextColumn("tuning"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("tuning", total=spec.trials)
        while (done := len(search.complete(study))) < spec.trials:
            progress.update(task, completed=done)
            trial = study.ask(search.distributions(baseline.parameters))
            study.tell(trial, _attainment_pct(spec.policy, trial.params, loads, episodes))
    search.write_trials(spec.output, study, list(default), "slo_attainment_pct")
    with_default = next(trial for trial in search.complete(study) if trial.params == default)
    best = dict(study.best_params)
    found = Tuned(best, study.best_value, with_default.value, episodes, spec.output / TUNED)
    _write(found, spec, loads[0])
    return found


def _tunable(name: str) -> Baseline:
    able = [known for known, baseline in BASELINES.items() if baseline.parameters]
    if name not in able:
        raise ConfigurationError(
            f"policy={name!r} has no parameters to tune; these have: {', '.join(able)}"
        )
    return BASELINES[name]


def _episodes(spec: TuningSpec, loads: Sequence[Scenario]) -> int:
    """Return how many episodes each setting may play at each rate."""
    policy = resolve(spec.policy, loads[0].cluster)
    ledger = play(loads[0], policy, FIRST_TRAINING_SEED).ledger
    decisions = sum(isinstance(event, Placed) for event in ledger)
    episodes = spec.budget // (spec.trials * decisions * len(loads))
    if not episodes:
        raise ConfigurationError(
            f"budget={spec.budget:,} is less than trials={spec.trials} with an episode of "
            f"{decisions:,} decisions at each of {len(loads)} rates"
        )
    return episodes


def _attainment_pct(
    name: str, setting: Mapping[str, Value], loads: Sequence[Scenario], episodes: int
) -> float:
    """Return the mean SLO attainment; every setting meets the same episodes."""
    attained = [
        play(load, resolve({name: setting}, load.cluster), FIRST_TRAINING_SEED + i).metrics[
            "slo_attainment_pct"
        ]
        for load in loads
        for i in range(episodes)
    ]
    return float(np.mean(attained))


def _write(found: Tuned, spec: TuningSpec, load: Scenario) -> None:
    values = {
        "policy": {spec.policy: found.parameters},
        "training_slo_attainment_pct": found.attainment_pct,
        "default_slo_attainment_pct": found.default_pct,
        "workload": load.workload.name,
        "rates": spec.rates,
        "settings_tried": spec.trials,
        "episodes_of_each_at_each_rate": found.episodes,
        **provenance(load.cluster),
    }
    write_json(found.path, values)
