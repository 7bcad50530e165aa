"""Evolution strategies: the weights of a linear scorer, searched for by playing whole episodes.

CMA-ES (Hansen, arXiv 1604.00772; the ``cmaes`` package) proposes weights and is told what they are
worth: an episode's return for each of its conversations, over the same few episodes for all samples
of a generation and new ones for the next. Nothing has to find out which decision was to blame for a
conversation that missed its SLO.
"""

from __future__ import annotations

import csv
import os
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from cmaes import CMA
from omegaconf import DictConfig, OmegaConf
from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from conserve_gym.agents import run_folder
from conserve_gym.agents.campaign import processes
from conserve_gym.agents.networks.linear_model import Float32Array, LinearModel, widened
from conserve_gym.agents.runtime.linear import Linear
from conserve_gym.agents.seeds import training_seed
from conserve_gym.agents.training_spec import TrainingSpec
from conserve_gym.envs.configuration import ConfigurationError, validated
from conserve_gym.envs.fields import STRICT, Positive
from conserve_gym.envs.placement_env import ENVIRONMENTS, PlacementEnv
from conserve_gym.envs.randomised import scenarios
from conserve_gym.envs.reward import weighted
from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.estimates import COLUMNS
from conserve_gym.observation import GROUPS

FloatArray = npt.NDArray[np.float64]
PROGRESS = "progress.csv"
ENDS = (np.min, np.max)
_COLUMN = {column.name: i for i, column in enumerate(COLUMNS)}


@dataclass(frozen=True, config=STRICT)
class EvolutionSettings:
    """How weights are searched for.

    Attributes:
        population_size: Samples in a generation.
        episodes: Episodes that each of them plays; with a knob from latency to energy its
            settings are spread over them, both ends among them.
        sigma: First standard deviation of every weight.
        start: First mean of the weights, by column; it is 0 where none is given.
        without: Columns whose weights stay 0, to learn what they are worth.
        workers: Processes; None takes one a core.

    Raises:
        ValueError: There is no such column.
    """

    population_size: Annotated[int, Field(ge=4)]
    episodes: PositiveInt
    sigma: Positive
    start: dict[str, float]
    without: list[str]
    workers: PositiveInt | None

    def __post_init__(self) -> None:
        """Check the names."""
        for key, names in (("start", self.start), ("without", self.without)):
            for name in names:
                if name not in _COLUMN:
                    raise ValueError(f"{key}: {name!r} is none of {', '.join(_COLUMN)}")


class Played(NamedTuple):
    """An episode that some weights have played.

    Attributes:
        worth: Its return, for each conversation.
        attainment_pct: SLO attainment.
        decisions: How many there were.
        observed: Smallest and largest scaled value of each field, engines as one, (2, fields).
    """

    worth: float
    attainment_pct: float
    decisions: int
    observed: Float32Array


class Search:
    """CMA-ES on the weights that do not stay 0.

    Args:
        start: First mean of all weights, as ``Linear`` takes them.
        settings: How it searches.
        seed: Of its samples.
    """

    def __init__(self, start: FloatArray, settings: EvolutionSettings, seed: int) -> None:
        """Begin at the start."""
        free = np.array([column.name not in settings.without for column in COLUMNS])
        self._free = np.broadcast_to(free, start.shape)
        self._population_size = settings.population_size
        self._cma = CMA(
            start[self._free], settings.sigma, seed=seed, population_size=self._population_size
        )

    @property
    def mean(self) -> FloatArray:
        """All weights, where the search stands."""
        return self._all(self._cma.mean)

    def ask(self) -> list[FloatArray]:
        """Return the samples of a generation, all weights of each."""
        return [self._all(self._cma.ask()) for _ in range(self._population_size)]

    def tell(self, told: FloatArray) -> None:
        """Take in what each was worth: a value to be minimised, and its weights."""
        free = self._free.ravel()
        self._cma.tell([(row[1:][free], row[0]) for row in told])

    def _all(self, free: FloatArray) -> FloatArray:
        weights = np.zeros(self._free.shape)
        weights[self._free] = free
        return weights


def evolve(
    config: DictConfig,
    spec: TrainingSpec,
    folder: Path,
    run_settings: dict[str, Any],
) -> None:
    """Search until enough decisions are played; a folder that began goes on.

    Args:
        config: Of the run.
        spec: What it asks for.
        folder: Where it is kept.
        run_settings: What makes it this run.

    Raises:
        ConfigurationError: A value is not right, or a checkpoint cannot be read.
    """
    settings = validated(EvolutionSettings, OmegaConf.create(spec.agent.settings), "agent")
    if spec.preference and settings.episodes < 2:
        raise ConfigurationError(
            f"agent.episodes={settings.episodes}: preference=true spreads its settings over them, "
            "and both ends are two"
        )
    start = _start(settings, spec)
    checkpoint = run_folder.latest_checkpoint(folder)
    if checkpoint:
        model = run_folder.load_model(LinearModel, checkpoint)
        print(f"resuming {folder} at {model.num_timesteps:,} of {spec.total_timesteps:,} steps")
    else:
        model = LinearModel.untrained(start.astype(np.float32), settings.population_size)
    search = Search(start, settings, spec.seed)
    for told in model.told:  # the same questions have the same answers
        search.ask()
        search.tell(told)
    text = OmegaConf.to_yaml(config)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} decisions"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        disable=not config.progress_bar,
    )
    pool = processes(settings.workers or os.cpu_count() or 1)
    with run_folder.held(folder), pool, progress:
        run_folder.claim(
            folder,
            run_settings,
            validated(ClusterSpec, config.cluster, "cluster"),
            steps_done=model.num_timesteps,
            episode_seed=training_seed(spec.seed, len(model.told)),
        )
        (folder / "checkpoints").mkdir(exist_ok=True)
        task = progress.add_task("generation 1", total=spec.total_timesteps)
        progress.update(task, completed=model.num_timesteps)
        while model.num_timesteps < spec.total_timesteps:
            first = training_seed(spec.seed, len(model.told))
            episodes = range(first, first + settings.episodes)
            # The mean is played beside them, to be looked at: the search is not told.
            asked = [search.mean, *search.ask()]
            preferences = np.linspace(0.0, 1.0, len(episodes)) if spec.preference else None
            jobs = [
                (text, weights, episode, None if preferences is None else preferences[i])
                for weights in asked
                for i, episode in enumerate(episodes)
            ]
            played = list(pool.map(_play, *zip(*jobs, strict=True)))
            model, row = _after(model, search, asked, played)
            _write(folder / PROGRESS, row)
            run_folder.save_checkpoint(model, folder / "checkpoints")
            progress.update(
                task,
                completed=model.num_timesteps,
                description=f"generation {len(model.told) + 1}: return {row['return_of_mean']}, "
                f"SLO attainment {row['slo_attainment_pct_of_mean']} %",
            )
        run_folder.save_model(model, folder / run_folder.MODEL)


def _start(settings: EvolutionSettings, spec: TrainingSpec) -> FloatArray:
    """Return the weights that the search begins with: the knob has no effect at first."""
    if spec.agent.warm_start is not None:
        start = _weights_of(Path(spec.agent.warm_start))
    else:
        start = np.zeros(len(COLUMNS))
        for name, weight in settings.start.items():
            start[_COLUMN[name]] = weight
    return np.stack([start, np.zeros(len(COLUMNS))]) if spec.preference else start


def _weights_of(run: Path) -> FloatArray:
    """Return the weights that another run has found, at a preference of 0 if it has a knob.

    Raises:
        ConfigurationError: It is no such run.
    """
    path = run / run_folder.MODEL
    if not path.exists():
        raise ConfigurationError(f"agent.warm_start={run} holds no trained model")
    weights = run_folder.load_model(LinearModel, path).network.at(0.0)
    return np.asarray(weights, dtype=np.float64)


def _after(
    model: LinearModel, search: Search, asked: list[FloatArray], played: list[Played]
) -> tuple[LinearModel, dict[str, float]]:
    """Tell the search what a generation is worth.

    Args:
        model: Where the search stands.
        search: The search.
        asked: The mean, and the samples.
        played: The episodes of each.

    Returns:
        Where it stands now, and a row of the run's progress.
    """
    worths = np.array([each.worth for each in played]).reshape(len(asked), -1).mean(axis=1)
    told = np.column_stack((-worths[1:], np.stack([each.ravel() for each in asked[1:]])))
    search.tell(told)
    observed = model.observed
    for each in played:
        observed = widened(observed, each.observed)
    decisions = model.num_timesteps + sum(each.decisions for each in played)
    by_mean = played[: len(played) // len(asked)]
    row = {
        "generation": len(model.told),
        "decisions": decisions,
        "return_of_mean": round(float(worths[0]), 5),
        "return_of_best": round(float(worths[1:].max()), 5),
        "slo_attainment_pct_of_mean": round(
            float(np.mean([each.attainment_pct for each in by_mean])), 3
        ),
    }
    weights = search.mean.astype(np.float32)
    return LinearModel(weights, decisions, observed, np.stack([*model.told, told])), row


def _play(text: str, weights: FloatArray, seed: int, preference: float | None) -> Played:
    """Play an episode of the environment that a configuration describes, at a preference."""
    env = _environment(text)
    at_preference = Linear(weights.astype(np.float32)).at(preference or 0.0)
    observation, info = env.reset(seed=seed)
    total, seen, done = 0.0, [observation], False
    while not done:
        scores = env.placements()[:, -len(COLUMNS) :] @ at_preference
        action = np.where(env.action_masks(), scores, -np.inf).argmax()
        observation, reward, done, _, info = env.step(action)
        if preference is not None:
            rewards = env.scenario.reward.preferring(preference)
            reward = weighted(info["reward_terms"], rewards)
        total += reward
        seen.append(observation)
    worth = total / len(env.cluster.conversations)
    observed = _ends(seen[:-1], len(env.fleet.roles))
    return Played(worth, info["metrics"]["slo_attainment_pct"], len(seen) - 1, observed)


@cache
def _environment(text: str) -> PlacementEnv:
    config = OmegaConf.create(text)
    assert isinstance(config, DictConfig)
    return ENVIRONMENTS[config.environment](scenarios(config))


def _ends(seen: list[dict[str, Float32Array]], engines: int) -> Float32Array:
    """Return the smallest and the largest value of each field, engines as one, (2, fields)."""
    *others, rows = (np.stack([one[group] for one in seen]) for group in GROUPS)
    rows = rows[:, :engines]  # where clusters are drawn, rows of zeros follow
    groups = (*others, rows.reshape(-1, rows.shape[-1]))
    return np.stack([np.concatenate([end(group, axis=0) for group in groups]) for end in ENDS])


def _write(path: Path, row: dict[str, float]) -> None:
    """Append a generation to the run's progress."""
    begins = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if begins:
            writer.writeheader()
        writer.writerow(row)
