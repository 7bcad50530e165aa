"""Projects a policy onto thresholds that routers already have, and measures what that costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass
from rich.console import Console
from rich.progress import track
from rich.table import Table

from conserve_gym.agents.evaluation import play
from conserve_gym.agents.explanation.projection import (
    Agreement,
    Loss,
    agreements,
    decisions,
    losses,
    project,
    rows,
)
from conserve_gym.agents.explanation.report import flat
from conserve_gym.agents.policies import resolve
from conserve_gym.agents.provenance import provenance, write_json
from conserve_gym.agents.seeds import FIRST_TRAINING_SEED, evaluation_seeds
from conserve_gym.agents.statistics import Estimate
from conserve_gym.baselines.registry import make_baseline
from conserve_gym.envs.configuration import of_split, scenario, validated_part
from conserve_gym.envs.fields import STRICT
from conserve_gym.envs.serving.profile import site
from conserve_gym.files import whole


@dataclass(frozen=True, config=STRICT)
class ProjectionSpec:
    """What is projected, and on what.

    Attributes:
        policy: Any policy, with parameters if it shall have some.
        seeds: Unseen episodes: a count or a list.
        training_episodes: What the thresholds are fitted to.
        output: Folder to write to.
    """

    policy: str | dict[str, dict[str, Any]]
    seeds: int | list[int]
    training_episodes: PositiveInt
    output: Path


def run(config: DictConfig, console: Console) -> list[Path]:
    """Project a policy, and write tables, rules and snippets.

    Raises:
        ConfigurationError: A key or value is not right, or there is no such policy.
    """
    spec = validated_part(ProjectionSpec, config)
    seeds = evaluation_seeds(spec.seeds)
    training = scenario(of_split(config, "train"))
    unseen = scenario(of_split(config, "test"))
    policy = resolve(spec.policy, unseen.cluster)
    known = site(unseen.cluster)
    fleet, deployment = unseen.cluster.fleet(policy.deployment), policy.deployment
    spec.output.mkdir(parents=True, exist_ok=True)

    def shown(what: Any, says: str) -> Any:
        return track(what, says, console=console, transient=True)

    first = range(FIRST_TRAINING_SEED, FIRST_TRAINING_SEED + spec.training_episodes)
    fitted = [
        decided
        for seed in shown(first, "playing to be fitted")
        for decided in decisions(play(training, policy, seed).ledger, fleet, deployment)
    ]
    settings = project(rows(fitted, known))
    episodes = [play(unseen, policy, seed) for seed in shown(seeds, "playing")]
    decided = [list(decisions(episode.ledger, fleet, deployment)) for episode in episodes]
    agree = agreements(settings, fitted, decided, known)
    rules = [setting.policy(known) for setting in settings]
    answers = [one.disaggregates for one in fitted if one.observation.turn == 0]
    usual = 2 * sum(answers) > len(answers)
    always = make_baseline("conserve" if usual else "colocate", known)
    always.name = "always disaggregate" if usual else "always colocate"
    lost = losses(unseen, policy, episodes, [*rules, always])

    tables = {"agreement": _agreement_rows(agree), "losses": _loss_rows(lost)}
    written = []
    for name, table in tables.items():
        written.append(spec.output / f"{name}.csv")
        with whole(written[-1]) as partial:
            pd.DataFrame(table).to_csv(partial, index=False)
    stamp = {"imitates": spec.policy, **provenance(unseen.cluster)}
    for setting in settings:
        written.append(spec.output / setting.knobs.file)
        with whole(written[-1]) as partial:
            partial.write_text(setting.text, encoding="utf-8")
        written.append(spec.output / f"{setting.knobs.rule}.json")
        write_json(written[-1], {"policy": setting.asked, **stamp})
    written.append(spec.output / "projection.json")
    write_json(written[-1], {"config": OmegaConf.to_container(config, resolve=True), **stamp})
    console.print(_agreement_table(agree, policy.name))
    console.print(_loss_table(lost))
    return written


def _agreement_rows(agree: list[Agreement]) -> list[Mapping[str, Any]]:
    return [
        {
            "rule": one.rule,
            "turns": one.turns,
            **flat("agrees_pct", one.agrees),
            **flat("majority_pct", one.majority),
            **flat("gain", one.gain),
        }
        for one in agree
    ]


def _loss_rows(lost: list[Loss]) -> list[Mapping[str, Any]]:
    return [
        {
            "policy": one.name,
            **flat("slo_attainment_pct", one.attainment_pct),
            **flat("attainment_less_policy", one.attainment_less),
            **flat("reward", one.reward),
            **flat("reward_less_policy", one.reward_less),
        }
        for one in lost
    ]


def _agreement_table(agree: list[Agreement], name: str) -> Table:
    table = Table(title=f"decides as {name} does, % of unseen turns (95 % interval)")
    for heading in ("rule", "turns", "agrees", "always the majority", "gain"):
        table.add_column(heading)
    for one in agree:
        table.add_row(one.rule, one.turns, *map(_said, (one.agrees, one.majority, one.gain)))
    return table


def _loss_table(lost: list[Loss]) -> Table:
    table = Table(title="in its place, on the same unseen episodes (95 % interval)")
    for heading in ("policy", "SLO attainment, %", "less the policy's", "reward", "less"):
        table.add_column(heading)
    for one in lost:
        table.add_row(one.name, *(_said(value) for value in one[1:]))
    return table


def _said(value: Estimate) -> str:
    return f"{value.mean:.2f} ({value.low:.2f} to {value.high:.2f})"
