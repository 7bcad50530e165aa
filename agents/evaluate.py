"""Plays policies on the same seeds, shows how they did, and writes it down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console
from rich.progress import track

from conserve_gym.agents import report
from conserve_gym.agents.evaluation import play
from conserve_gym.agents.policies import resolve
from conserve_gym.agents.provenance import provenance, write_json
from conserve_gym.agents.seeds import evaluation_seeds
from conserve_gym.envs.configuration import ConfigurationError, output_folder
from conserve_gym.envs.randomised import of_seeds, scenarios
from conserve_gym.envs.serving.timeline import Timeline
from conserve_gym.metrics import CLOCKS
from conserve_gym.policy import Policy

_SHOWN = ("policies=", "seeds=", "output=", "clock=", "timeline=", "workload.path=")


def run(config: DictConfig, overrides: Sequence[str], console: Console) -> dict[str, float]:
    """Evaluate, and return each policy's SLO attainment in percent.

    Args:
        config: As ``conf/evaluate.yaml`` has it.
        overrides: What of it was set on the command line.
        console: Where the table goes.

    Raises:
        ConfigurationError: A key or value is not right.
    """
    if not isinstance(config.timeline, bool):
        raise ConfigurationError(f"timeline={config.timeline!r} must be true or false")
    if config.clock not in CLOCKS:
        raise ConfigurationError(f"clock={config.clock!r} is none of {', '.join(CLOCKS)}")
    seeds = evaluation_seeds(config.seeds)
    played = dict(zip(seeds, of_seeds(scenarios(config), seeds), strict=True))
    first = played[seeds[0]]
    names = _policy_names(config.policies)
    policies = [resolve(name, first.cluster) for name in names]
    _name_apart(policies, names)
    folder = output_folder(config.output)
    cells = [(*each, seed) for each in zip(names, policies, strict=True) for seed in seeds]
    episodes, timelines = [], []
    for name, policy, seed in track(cells, "playing", console=console, transient=True):
        built, called = played[seed], policy.name
        if built is not first:  # it may have another cluster
            policy = resolve(name, built.cluster)
            policy.name = called
        drawn = config.timeline and seed == seeds[0]
        timeline = Timeline(built.cluster.deployed(policy.deployment)) if drawn else None
        episodes.append(play(built, policy, seed, timeline))
        if timeline is not None:
            timelines += report.write_timeline(folder, episodes[-1], timeline)
    summary = report.summarise(episodes)
    setting = report.Setting.of(list(played.values()))
    written = report.write(folder, summary, episodes, setting)
    settings = OmegaConf.to_container(config, resolve=True)
    stamp = provenance(first.cluster)
    write_json(folder / "evaluation.json", {"config": settings, **stamp})
    console.print(report.table(summary, episodes, setting, config.clock, _telling(overrides)))
    for path in (*written, folder / "evaluation.json", *timelines):
        console.print(str(path), soft_wrap=True)
    return {name: of["slo_attainment_pct"].mean for name, of in summary.items()}


def _telling(overrides: Sequence[str]) -> list[str]:
    """Leave out what the table shows anyway."""
    return [override for override in overrides if not override.startswith(_SHOWN)]


def _policy_names(value: object) -> list[Any]:
    given = OmegaConf.to_container(value) if isinstance(value, ListConfig) else value
    names = given if isinstance(given, list) else [given]
    if not names or any(names.count(name) > 1 for name in names):
        raise ConfigurationError(f"policies={names} must name at least one, and none twice")
    return names


def _name_apart(policies: list[Policy], names: list[Any]) -> None:
    """Call policies by what the user wrote where two would have one name."""
    called = [policy.name for policy in policies]
    for policy, name in zip(policies, names, strict=True):
        if called.count(policy.name) > 1:
            policy.name = str(name)
