"""Searches for training's hyper-parameters, judged on validation episodes.

Every training is a run in a folder of its own. Several processes may work on one sweep: who holds a
trial's lock trains it, and a trial that nobody holds was left by a process that has ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import BaseFileLock, FileLock, Timeout
from omegaconf import DictConfig, OmegaConf
from pydantic import NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass as validated_dataclass
from rich.console import Console

from conserve_gym.agents import campaign, search, sweep_picture
from conserve_gym.agents.provenance import provenance, write_json
from conserve_gym.agents.training import train, training_spec
from conserve_gym.agents.validation import attained_pct
from conserve_gym.baselines.baseline import Parameter, Value
from conserve_gym.envs.configuration import (
    ConfigurationError,
    of_split,
    validated,
    validated_part,
)
from conserve_gym.envs.fields import STRICT
from conserve_gym.envs.randomised import scenarios
from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.errors import ConServeGymError

BEST = "best.json"
ATTAINED = "validation_slo_attainment_pct"
_OWN = ("sweep", "trials", "repeats", "validation_episodes", "output")


@validated_dataclass(frozen=True, config=STRICT)
class SweepSpec:
    """How a sweep goes.

    Attributes:
        trials: Settings to train with, the configured one among them.
        repeats: Trainings of each.
        validation_episodes: Episodes that each training is judged on.
        seed: Of each setting's first training, and of the search.
        output: Folder to write to.
    """

    trials: PositiveInt
    repeats: PositiveInt
    validation_episodes: PositiveInt
    seed: NonNegativeInt
    output: Path


@validated_dataclass(frozen=True, config=STRICT)
class Range:
    """What a hyper-parameter is drawn from.

    Attributes:
        low: Smallest value.
        high: Largest value.
        logarithmic: Whether ratios matter rather than differences.
        choices: What there is to choose from, instead.

    Raises:
        ValueError: It is neither a range nor choices.
    """

    low: float | None = None
    high: float | None = None
    logarithmic: bool = False
    choices: tuple[Value, ...] = ()

    def __post_init__(self) -> None:
        """Check the values against each other."""
        if self.choices:
            if self.low is not None or self.high is not None or self.logarithmic:
                raise ValueError("choices have no low, high or logarithmic")
        elif self.low is None or self.high is None:
            raise ValueError("low and high, or choices, are needed")
        elif not self.low < self.high or (self.logarithmic and self.low <= 0):
            raise ValueError(f"low={self.low:g} to high={self.high:g} is no range")


class Swept(NamedTuple):
    """What a sweep has found.

    Attributes:
        parameters: The best setting, by key of the configuration.
        attained_pct: Its mean SLO attainment on the validation episodes.
        configured_pct: That of the configured setting; None while another process trains it.
        left: Trials that other processes are still training.
        written: Files.
    """

    parameters: dict[str, Value]
    attained_pct: float
    configured_pct: float | None
    left: int
    written: list[Path]


def sweep(config: DictConfig, console: Console) -> Swept:
    """Train with as many settings as asked for, and return the best.

    Raises:
        ConfigurationError: A key or value is not right, the workload is no training split, the
            folder holds another sweep, or no trial is complete.
    """
    spec = validated_part(SweepSpec, config)
    base = _training(config)
    parameters = _parameters(config, base)
    training_spec(base)
    cluster = validated(ClusterSpec, base.cluster, "cluster")
    scenarios(base)
    spec.output.mkdir(parents=True, exist_ok=True)
    with _choosing(spec.output):
        shown = ("trials", "output", "progress_bar", "run")
        settings = {str(k): str(v) for k, v in config.items() if k not in shown}
        campaign.claim(spec.output, settings)
        study = search.open_study(spec.output, "sweep")
        if not study.trials:
            study.enqueue_trial({name: one.default for name, one in parameters.items()})
    while mine := _next(study, parameters, spec):
        try:
            _play(study, mine, base, spec, console)
        finally:
            mine.lock.release()
    done = search.complete(study)
    if not done:
        raise ConfigurationError(f"output={spec.output}: no trial is complete yet")
    configured = next((trial.value for trial in done if trial.number == 0), None)
    stamp = {
        "parameters": study.best_params,
        ATTAINED: study.best_value,
        "configured": {ATTAINED: configured},
        "runs": [str(_run(spec, study.best_trial.number, i)) for i in range(spec.repeats)],
        "trials": len(done),
        "validation_episodes": spec.validation_episodes,
        "settings": settings,
        **provenance(cluster),
    }
    write_json(spec.output / BEST, stamp)
    written = [
        search.write_trials(spec.output, study, list(parameters), ATTAINED),
        sweep_picture.write(spec.output, done, parameters),
        spec.output / BEST,
    ]
    left = len(study.trials) - len(done)
    return Swept(study.best_params, study.best_value, configured, left, written)


def _training(config: DictConfig) -> DictConfig:
    """Return the configuration of a training on the train split, without the sweep's own keys."""
    keys = [str(key) for key in config if key not in _OWN]
    base = of_split(OmegaConf.masked_copy(config, keys), "train")
    OmegaConf.resolve(base)
    base.progress_bar = False
    return base


def _parameters(config: DictConfig, base: DictConfig) -> dict[str, Parameter]:
    """Return what is varied, by key of the configuration."""
    found = {}
    for key, node in _leaves(config.sweep):
        drawn = validated(Range, node, f"sweep.{key}")
        default = OmegaConf.select(base, key)
        if default is None:
            raise ConfigurationError(f"sweep.{key}: the training has no value of {key}")
        if drawn.choices:
            inside = default in drawn.choices
            found[key] = Parameter(default, choices=drawn.choices)
        else:
            assert drawn.low is not None and drawn.high is not None
            inside = drawn.low <= default <= drawn.high
            found[key] = Parameter(default, drawn.low, drawn.high, drawn.logarithmic)
        if not inside:
            raise ConfigurationError(f"{key}={default} is outside of what sweep.{key} tries")
    if not found:
        raise ConfigurationError("sweep: nothing is varied")
    return found


def _leaves(node: DictConfig, above: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Yield every range in a tree of keys."""
    for name, value in node.items():
        key = str(name)
        if not isinstance(value, DictConfig):
            raise ConfigurationError(f"sweep.{above}{key}={value} has neither low nor choices")
        if "low" in value or "high" in value or "choices" in value:
            yield f"{above}{key}", value
        else:
            yield from _leaves(value, f"{above}{key}.")


@dataclass(frozen=True)
class _Mine:
    """A trial that this process holds."""

    number: int
    parameters: Mapping[str, Value]
    lock: BaseFileLock


@contextmanager
def _choosing(folder: Path) -> Iterator[None]:
    """Let one process at a time choose what it does next."""
    with FileLock(folder / ".lock"):
        yield


def _next(study: Any, parameters: Mapping[str, Parameter], spec: SweepSpec) -> _Mine | None:
    """Return a trial that was left unfinished, or a new one; None when there are enough."""
    states = search.optuna().trial.TrialState
    with _choosing(spec.output):
        for trial in study.get_trials(states=[states.RUNNING]):
            try:
                lock = _lock(spec, trial.number)
            except Timeout:
                continue  # another process is at it
            if trial.params.keys() == parameters.keys():
                return _Mine(trial.number, trial.params, lock)
            study.tell(trial.number, state=states.FAIL)  # left before it was drawn
            lock.release()
        begun = [t for t in study.trials if t.state in (states.RUNNING, states.COMPLETE)]
        if len(begun) >= spec.trials:
            return None
        # By number, so that a sweep that goes on draws what one that was not stopped does.
        study.sampler = search.optuna().samplers.TPESampler(
            seed=spec.seed + len(study.trials), constant_liar=True
        )
        trial = study.ask(search.distributions(parameters))
        return _Mine(trial.number, trial.params, _lock(spec, trial.number))


def _lock(spec: SweepSpec, number: int) -> BaseFileLock:
    folder = spec.output / "trials"
    folder.mkdir(exist_ok=True)
    lock = FileLock(folder / f".{number:03d}.lock", timeout=0)
    lock.acquire()
    return lock


def _run(spec: SweepSpec, number: int, repeat: int) -> Path:
    return spec.output / "trials" / f"{number:03d}_seed_{spec.seed + repeat}"


def _play(study: Any, mine: _Mine, base: DictConfig, spec: SweepSpec, console: Console) -> None:
    """Train with a trial's setting, and tell the study what it attains."""
    attained = []
    for repeat in range(spec.repeats):
        config = base.copy()
        for key, value in mine.parameters.items():
            OmegaConf.update(config, key, value)
        config.seed = spec.seed + repeat
        config.run = str(_run(spec, mine.number, repeat))
        try:
            attained.append(attained_pct(train(config), spec.validation_episodes))
        except ValueError as error:
            if isinstance(error, ConServeGymError) or "nan" not in str(error):
                raise
            # Torch refuses a policy that has diverged: nobody could use it.
            console.print(f"trial {mine.number}: diverged ({' '.join(str(error).split())[:80]})")
            attained.append(0.0)
    setting = " ".join(f"{key}={_shown(value)}" for key, value in mine.parameters.items())
    console.print(f"trial {mine.number}: {np.mean(attained):.2f} %  {setting}", soft_wrap=True)
    study.tell(mine.number, float(np.mean(attained)))


def _shown(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
