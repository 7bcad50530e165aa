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
from conserve_gym.envs.randomised import RandomisedScenario, of_seeds, scenarios
from conserve_gym.ledger import Placed

TUNED = "tuned.json"


@dataclass(frozen=True, config=STRICT)
class TuningSpec:
    """What is tuned, and how long.

    Attributes:
        policy: Name of a baseline that has parameters.
        budget: Decisions to play in all.
        trials: Settings to try, the default one among them.
        rates: Conversations a second; a setting's worth is its mean over them. None where
            ``randomise`` draws what each episode plays.
        seed: Of the search.
        output: Folder to write to.
    """

    policy: str
    budget: PositiveInt
    trials: PositiveInt
    rates: Annotated[list[Positive], Field(min_length=1)] | None
    seed: NonNegativeInt
    output: Path


class Tuned(NamedTuple):
    """What a search has found.

    Attributes:
        parameters: The best setting.
        attainment_pct: Its SLO attainment on the training episodes.
        default_pct: That of the default setting on the same.
        episodes: How many each setting played at each rate, or of those that were drawn.
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
    loads = _loads(config, spec)
    campaign.claim(spec.output, {str(k): str(v) for k, v in config.items() if k != "output"})
    study = search.open_study(spec.output, spec.policy)
    # One that goes on must not draw again what was drawn before.
    study.sampler = search.optuna().samplers.TPESampler(seed=spec.seed + len(study.trials))
    default = {name: parameter.default for name, parameter in baseline.parameters.items()}
    if not any(trial.params == default for trial in search.complete(study)):
        study.enqueue_trial(default)
    episodes = _episodes(spec, loads)
    seeds = range(FIRST_TRAINING_SEED, FIRST_TRAINING_SEED + episodes)
    cells = [cell for load in loads for cell in zip(of_seeds(load, seeds), seeds, strict=True)]
    columns = (TextColumn("tuning"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("tuning", total=spec.trials)
        while (done := len(search.complete(study))) < spec.trials:
            progress.update(task, completed=done)
            trial = study.ask(search.distributions(baseline.parameters))
            study.tell(trial, _attainment_pct(spec.policy, trial.params, cells))
    search.write_trials(spec.output, study, list(default), "slo_attainment_pct")
    with_default = next(trial for trial in search.complete(study) if trial.params == default)
    best = dict(study.best_params)
    found = Tuned(best, study.best_value, with_default.value, episodes, spec.output / TUNED)
    _write(found, spec, _nominal(loads))
    return found


def _loads(config: DictConfig, spec: TuningSpec) -> list[Scenario | RandomisedScenario]:
    """Return what a setting plays: a scenario at each rate, or what draws them.

    Raises:
        ConfigurationError: Loads are given twice, or not at all.
    """
    config = of_split(config, "train")
    if (config.get("randomise") is None) is (spec.rates is None):
        raise ConfigurationError(
            f"rates={spec.rates}: loads are given by rates=[A,B], or drawn by randomise=traffic "
            "or fleet with rates=null"
        )
    return [scenarios(config)] if spec.rates is None else [*at_rates(config, spec.rates)]


def _nominal(loads: Sequence[Scenario | RandomisedScenario]) -> Scenario:
    return loads[0] if isinstance(loads[0], Scenario) else loads[0].nominal


def _tunable(name: str) -> Baseline:
    able = [known for known, baseline in BASELINES.items() if baseline.parameters]
    if name not in able:
        raise ConfigurationError(
            f"policy={name!r} has no parameters to tune; these have: {', '.join(able)}"
        )
    return BASELINES[name]


def _episodes(spec: TuningSpec, loads: Sequence[Scenario | RandomisedScenario]) -> int:
    """Return how many episodes each setting may play of each load."""
    (first,) = of_seeds(loads[0], [FIRST_TRAINING_SEED])
    ledger = play(first, resolve(spec.policy, first.cluster), FIRST_TRAINING_SEED).ledger
    decisions = sum(isinstance(event, Placed) for event in ledger)
    episodes = spec.budget // (spec.trials * decisions * len(loads))
    if not episodes:
        raise ConfigurationError(
            f"budget={spec.budget:,} is less than trials={spec.trials} with an episode of "
            f"{decisions:,} decisions of each of {len(loads)} loads"
        )
    return episodes


def _attainment_pct(
    name: str, setting: Mapping[str, Value], cells: Sequence[tuple[Scenario, int]]
) -> float:
    """Return the mean SLO attainment; every setting meets the same episodes."""
    attained = [
        play(built, resolve({name: setting}, built.cluster), seed).metrics["slo_attainment_pct"]
        for built, seed in cells
    ]
    return float(np.mean(attained))


def _write(found: Tuned, spec: TuningSpec, load: Scenario) -> None:
    values = {
        "policy": {spec.policy: found.parameters},
        "training_slo_attainment_pct": found.attainment_pct,
        "default_slo_attainment_pct": found.default_pct,
        "workload": load.workload.name if spec.rates else "drawn",
        "rates": spec.rates,
        "settings_tried": spec.trials,
        "episodes_of_each_load": found.episodes,
        **provenance(load.cluster),
    }
    write_json(found.path, values)
