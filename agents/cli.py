"""The commands: train, evaluate, export. Configuration is Hydra's; see ``--help`` of each."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
from omegaconf import DictConfig, ListConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.progress import track

from conserve_gym.errors import ConServeGymError

CONFIG = {"config_path": "pkg://conserve_gym.conf", "version_base": "1.3"}


def _command(run: Callable[[DictConfig], float | None]) -> Callable[[DictConfig], float | None]:
    """Turn errors that a user can mend into one line and exit code 2."""

    @functools.wraps(run)
    def wrapped(config: DictConfig) -> float | None:
        try:
            return run(config)
        except (ConServeGymError, OmegaConfBaseException) as error:
            sys.exit(f"error: {' '.join(str(error).split())}")

    return wrapped


@hydra.main(config_name="train", **CONFIG)
@_command
def train(config: DictConfig) -> None:
    """Train a policy into the folder ``run``."""
    from conserve_gym.agents import training

    folder = training.train(config)
    Console().print(f"trained: {folder / training.MODEL}", soft_wrap=True)


@hydra.main(config_name="evaluate", **CONFIG)
@_command
def evaluate(config: DictConfig) -> float:
    """Play policies on the same seeds; returns the last one's SLO attainment for sweepers."""
    from conserve_gym.agents import report
    from conserve_gym.agents.evaluation import play
    from conserve_gym.agents.policies import resolve
    from conserve_gym.agents.provenance import provenance, write_json
    from conserve_gym.envs.configuration import ConfigurationError, scenario

    if config.clock not in ("user", "artifact"):
        raise ConfigurationError(f"clock={config.clock!r} is none of user, artifact")
    built = scenario(config)
    names = [str(name) for name in _as_list(config.policies)]
    policies = [resolve(name, built.cluster) for name in names]
    _name_apart(policies, names)
    seeds = _seeds(config.seeds)
    cells = [(policy, seed) for policy in policies for seed in seeds]
    console = Console()
    episodes = [
        play(built, policy, seed)
        for policy, seed in track(cells, "playing", console=console, transient=True)
    ]
    summary = report.summarise(episodes)
    console.print(report.table(summary, episodes, built, config.clock))
    folder = Path(config.output)
    written = report.write(folder, summary, episodes)
    write_json(folder / "evaluation.json", {"seeds": seeds, "policies": names, **provenance()})
    for path in written:
        console.print(str(path), soft_wrap=True)
    return summary[policies[-1].name]["slo_attainment_pct"].mean


@hydra.main(config_name="export", **CONFIG)
@_command
def export(config: DictConfig) -> None:
    """Write the trained policy of ``run`` in the form that the runtime loads."""
    from conserve_gym.agents.export import export as write

    run = Path(config.run)
    target = Path(config.output) if config.output else run / "policy"
    scheduler = write(run, target)
    assert scheduler.artifact is not None
    size = sum(path.stat().st_size for path in target.iterdir())
    Console().print(
        f"exported: {target} ({size / 1024:.0f} KiB, {scheduler.artifact.action_kind} actions, "
        "golden vectors verified without torch)",
        soft_wrap=True,
    )


def _as_list(value: object) -> list[object]:
    return list(value) if isinstance(value, ListConfig) else [value]


def _seeds(value: object) -> list[int]:
    """Return seeds from a count or a list."""
    from conserve_gym.envs.configuration import ConfigurationError

    seeds = list(range(value)) if isinstance(value, int) else _as_list(value)
    if not seeds or not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
        raise ConfigurationError(f"seeds={value!r} must be a count above 0 or a list of seeds")
    return [seed for seed in seeds if isinstance(seed, int)]


def _name_apart(policies: list, names: list[str]) -> None:  # type: ignore[type-arg]
    """Call policies by what the user wrote where two would have one name."""
    called = [policy.name for policy in policies]
    for policy, name in zip(policies, names, strict=True):
        if called.count(policy.name) > 1:
            policy.name = name
