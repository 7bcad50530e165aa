"""Trains every arm of the ablation, judges it on unseen episodes, and reports."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from omegaconf import DictConfig
from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass as validated_dataclass
from rich.console import Console
from rich.table import Table

from conserve_gym.agents import campaign
from conserve_gym.agents.ablation import arms
from conserve_gym.agents.ablation.features import Group
from conserve_gym.agents.evaluation import Episode
from conserve_gym.agents.provenance import provenance, write_json
from conserve_gym.agents.seeds import FIRST_TEST_SEED, evaluation_seeds
from conserve_gym.agents.statistics import Estimate, estimate
from conserve_gym.envs.configuration import (
    ConfigurationError,
    Scenario,
    at_rates,
    of_split,
    validated_part,
)
from conserve_gym.envs.fields import STRICT, Positive
from conserve_gym.files import whole

Play = Callable[..., Episode]

METRICS = ("slo_attainment_pct", "goodput_per_s", "ttfet_p95", "tbt_p95", "tokens_per_joule")
COMPARED = "all that was observed"
"""The arm that the others are compared with: all that is honest and needs nobody's help."""


@validated_dataclass(frozen=True, config=STRICT)
class AblationSpec:
    """How the arms are trained and judged.

    Attributes:
        arms: Which ones.
        rates: Conversations a second; one set of weights for all of them.
        budget: Decisions that each training plays.
        repeats: Trainings of each arm.
        seeds: Evaluation episodes at each rate.
        workers: Processes; None takes one a core.
        output: Folder to write to.
    """

    arms: list[str]
    rates: Annotated[list[Positive], Field(min_length=1)]
    budget: PositiveInt
    repeats: PositiveInt
    seeds: Annotated[int, Field(ge=2)]
    workers: PositiveInt | None
    output: Path


@dataclass(frozen=True)
class Cell:
    """One training of one arm."""

    arm: str
    repeat: int


def run(config: DictConfig, console: Console) -> list[Path]:
    """Train, judge and write the table; a folder that was stopped in goes on.

    Raises:
        ConfigurationError: A key or value is not right, or the folder holds another study.
    """
    spec = validated_part(AblationSpec, config)
    _check(spec)
    training = at_rates(of_split(config, "train"), spec.rates)
    unseen = at_rates(of_split(config, "test"), spec.rates)
    shown = ("arms", "repeats", "output", "workers")
    settings = {str(k): str(v) for k, v in config.items() if k not in shown}
    campaign.claim(spec.output, settings)
    results = campaign.load(spec.output, Cell)
    cells = [Cell(arm, repeat) for repeat in range(spec.repeats) for arm in spec.arms]
    cells += [Cell(rule, 0) for rule in arms.RULES]
    judge = partial(_judge, training, unseen, budget=spec.budget, seeds=spec.seeds)
    jobs = {cell: partial(judge, cell) for cell in cells}
    campaign.play(jobs, spec.output, results, spec.workers, console)
    rows = _rows(spec, {cell: results[cell] for cell in cells})
    table = spec.output / "ablation.csv"
    with whole(table) as partial_path, partial_path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    stamp = spec.output / "ablation.json"
    write_json(stamp, {"settings": settings, **provenance(unseen[0].cluster)})
    console.print(_table(spec, rows, unseen[0]))
    return [table, stamp]


def _check(spec: AblationSpec) -> None:
    for arm in spec.arms:
        if arm not in arms.ARMS:
            raise ConfigurationError(f"arms={arm!r} is none of {', '.join(arms.ARMS)}")
    if COMPARED not in spec.arms:
        raise ConfigurationError(f"arms={spec.arms} must have {COMPARED!r} to compare with")


def _judge(
    training: Sequence[Scenario],
    unseen: Sequence[Scenario],
    cell: Cell,
    budget: int,
    seeds: int,
) -> dict[str, Any]:
    """Return each metric at each rate and seed, and what was learned for it."""
    if cell.arm in arms.RULES:
        play: Play = partial(arms.play_rule, knows=arms.RULES[cell.arm])
        learned: dict[str, Any] = {}
    else:
        trained = arms.train(training, cell.arm, cell.repeat, budget)
        play = partial(arms.play, groups=arms.ARMS[cell.arm], weights=trained.weights)
        learned = {"weights": trained.weights.tolist(), "decisions": trained.decisions}
    test_seeds = evaluation_seeds(seeds, FIRST_TEST_SEED)
    played = [[play(load, seed=seed).metrics for seed in test_seeds] for load in unseen]
    return learned | {
        metric: [[one[metric] for one in at_rate] for at_rate in played] for metric in METRICS
    }


def _rows(
    spec: AblationSpec, results: Mapping[Cell, Mapping[str, Any]]
) -> list[dict[str, str | float]]:
    """Return a row for each arm and metric: mean over the rates, and the difference, paired.

    Trainings differ more than episodes do: intervals of what was trained are over the trainings,
    each the mean of its episodes and rates. Those of one number meet the same episodes in every
    arm. Rules have intervals over episodes.
    """
    rows: list[dict[str, str | float]] = []
    for arm in (*spec.arms, *arms.RULES):
        compared_with = COMPARED if arm in spec.arms else next(iter(arms.RULES))
        averaged = (1, 2) if arm in spec.arms else (0, 1)
        for metric in METRICS:
            own, compared = (
                np.array([one[metric] for cell, one in results.items() if cell.arm == name])
                for name in (arm, compared_with)
            )
            values = own.mean(axis=averaged)
            less = values - compared.mean(axis=averaged)
            row: dict[str, str | float] = {
                "arm": arm,
                "sees_future": _sees_future(arm),
                "metric": metric,
                "compared_with": compared_with,
            }
            row |= _named("", estimate(values.tolist())) | _named("less_", estimate(less.tolist()))
            for i, rate in enumerate(spec.rates):
                row[f"at_{rate:g}"] = float(own[:, i].mean())
            rows.append(row)
    return rows


def _sees_future(arm: str) -> bool:
    if arm in arms.RULES:
        return arms.RULES[arm]
    return Group.PREDICTIONS in arms.ARMS[arm]


def _named(prefix: str, value: Estimate) -> dict[str, float]:
    return {f"{prefix}{part}": number for part, number in value._asdict().items()}


def _table(spec: AblationSpec, rows: Sequence[Mapping[str, Any]], load: Scenario) -> Table:
    rates = ", ".join(f"{rate:g}" for rate in spec.rates)
    table = Table(
        title=f"What observations are worth: {load.workload.name} on {load.cluster.name}, "
        f"{rates} conversations/s",
        caption="SLO attainment, %. The same linear policy, "
        f"{spec.budget:,} decisions of training each, {spec.repeats} trainings, {spec.seeds} "
        "unseen episodes at each rate; ± 95 % over the trainings, of rules over the episodes. "
        "† sees the future.",
    )
    table.add_column("what it looks at")
    for head in ("mean", f"less “{COMPARED}”", *(f"at {rate:g}/s" for rate in spec.rates)):
        table.add_column(head, justify="right")
    for row in rows:
        if row["metric"] != METRICS[0]:
            continue
        if row["arm"] in arms.RULES and row["arm"] == row["compared_with"]:
            table.add_section()
        mark = " †" if row["sees_future"] else ""
        same = row["arm"] == row["compared_with"]
        table.add_row(
            row["arm"] + mark,
            f"{row['mean']:.1f} ±{row['high'] - row['mean']:.1f}",
            "" if same else f"{row['less_mean']:+.1f} ±{row['less_high'] - row['less_mean']:.1f}",
            *(f"{row[f'at_{rate:g}']:.1f}" for rate in spec.rates),
        )
    return table
