"""Behaviour cloning of the look-ahead, and DAgger, into a run folder like any other.

Round 0 is played by the look-ahead, and those after it by what was fitted to the rounds before
(DAgger: Ross, Gordon and Bagnell, 2011). After each, a policy is fitted to all that is recorded,
and kept as a run of its own in ``rounds/``; the last one is the run's model.
"""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from stable_baselines3.common.vec_env import VecEnv

from conserve_gym.agents import campaign, run_folder
from conserve_gym.agents.algorithms import ALGORITHMS
from conserve_gym.agents.imitation.cloning import Fit, fit
from conserve_gym.agents.imitation.imitation_spec import ImitationSpec
from conserve_gym.agents.imitation.recording import Cell, read, record
from conserve_gym.agents.policies import resolve
from conserve_gym.agents.seeds import training_seed
from conserve_gym.agents.training import known, vector_env
from conserve_gym.agents.training_spec import TrainingSpec
from conserve_gym.envs.configuration import ConfigurationError, validated
from conserve_gym.envs.placement_env import ENVIRONMENTS, PlacementEnv
from conserve_gym.envs.randomised import scenarios
from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.files import whole

RECORDINGS, ROUNDS, FITS = "recordings", "rounds", "fits.csv"


def imitate(config: DictConfig, spec: TrainingSpec) -> Path:
    """Record, fit and return the run's folder; a folder that was stopped in goes on.

    Raises:
        ConfigurationError: A key or value is not right, or the folder holds another run.
    """
    folder = Path(config.run)
    imitation = validated(ImitationSpec, OmegaConf.create(spec.agent.settings), "agent")
    played = scenarios(config)
    settings = run_folder.settings(config)
    run_folder.check_same(folder, settings)
    env = ENVIRONMENTS[spec.environment](played)
    _check_base(env, imitation.base)
    episodes = _episodes(env, spec, imitation)
    envs = vector_env(played, spec)
    _create(spec, imitation, envs)  # says what is wrong before anything is recorded
    cluster = validated(ClusterSpec, config.cluster, "cluster")
    with run_folder.held(folder):
        if (folder / run_folder.MODEL).exists():
            print(f"{folder} is complete already")
            return folder
        first = training_seed(spec.seed, 0)
        run_folder.claim(folder, settings, cluster, steps_done=0, episode_seed=first)
        recordings = folder / RECORDINGS
        campaign.claim(recordings, {})
        results = campaign.load(recordings, Cell)
        console = Console(quiet=not config.progress_bar)
        cells: list[Cell] = []
        fits: list[dict[str, Any]] = []
        learner: Path | None = None
        played_by = partial(record, played, spec.environment, spec.agent.network, imitation.base)
        for i in range(imitation.dagger_rounds + 1):
            numbers = range(i * episodes, (i + 1) * episodes)
            latest = [Cell(i, training_seed(spec.seed, number)) for number in numbers]
            jobs = {cell: partial(played_by, learner, cell, recordings) for cell in latest}
            campaign.play(jobs, recordings, results, imitation.workers, console)
            cells += latest
            model, fitted = _fitted(spec, imitation, envs, recordings, cells)
            model.num_timesteps = steps = sum(results[cell]["decisions"] for cell in cells)
            learner = folder / ROUNDS / str(i)
            learner.mkdir(parents=True, exist_ok=True)
            seed = latest[0].seed
            run_folder.claim(learner, settings, cluster, steps_done=steps, episode_seed=seed)
            run_folder.save_model(model, learner / run_folder.MODEL)
            fits.append({"round": i, "decisions": steps, **fitted._asdict()})
        _write(fits, folder / FITS)
        run_folder.save_model(model, folder / run_folder.MODEL)
    return folder


def _write(fits: list[dict[str, Any]], path: Path) -> None:
    with whole(path) as partial_path, partial_path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(fits[0]))
        writer.writeheader()
        writer.writerows(fits)


def _check_base(env: PlacementEnv, base: str) -> None:
    theirs = resolve(base, env.scenario.cluster).deployment
    if theirs != env.deployment:
        raise ConfigurationError(
            f"agent.base={base} runs deployment={theirs.to_json()}, and the environment "
            f"{env.deployment.to_json()}"
        )


def _episodes(env: PlacementEnv, spec: TrainingSpec, imitation: ImitationSpec) -> int:
    """Return how many episodes make a round, by the decisions that the first has."""
    env.reset(seed=training_seed(spec.seed, 0))
    played = env.cluster.conversations
    every_turn = env.deployment.decides_every_turn
    decisions = sum(len(one.turns) for one in played) if every_turn else len(played)
    rounds = imitation.dagger_rounds + 1
    episodes = spec.total_timesteps // (decisions * rounds)
    if episodes * imitation.validation_fraction < 1.0:
        raise ConfigurationError(
            f"total_timesteps={spec.total_timesteps:,} is {episodes} episodes of {decisions:,} "
            f"decisions in each of {rounds} rounds: too few to hold out "
            f"agent.validation_fraction={imitation.validation_fraction:g}"
        )
    return episodes


def _create(spec: TrainingSpec, imitation: ImitationSpec, envs: VecEnv) -> Any:
    algorithm = ALGORITHMS[spec.agent.algorithm]
    try:
        return algorithm.model(
            algorithm.policies[spec.agent.network],
            envs,
            seed=spec.seed,
            device="cpu",
            policy_kwargs=dict(imitation.policy_kwargs),
        )
    # Stable-Baselines3 checks its arguments by using them.
    except (TypeError, ValueError, AssertionError, AttributeError) as error:
        raise ConfigurationError(f"agent={spec.agent.settings}: {error}") from None


def _fitted(
    spec: TrainingSpec,
    imitation: ImitationSpec,
    envs: VecEnv,
    folder: Path,
    cells: list[Cell],
) -> tuple[Any, Fit]:
    """Return a new model that is fitted to recordings, and how that went."""
    share = imitation.validation_fraction
    held_out = [cell for i, cell in enumerate(cells) if int((i + 1) * share) > int(i * share)]
    unseen = read(folder, held_out)
    seen = read(folder, [cell for cell in cells if cell not in held_out])
    model = _create(spec, imitation, envs)
    fitted = fit(model, seen, unseen, imitation, spec.discount)
    shown = known(spec, envs)(np.concatenate([one.shown for one in seen]))
    model.observed_low, model.observed_high = np.fmin.reduce(shown), np.fmax.reduce(shown)
    return model, fitted
