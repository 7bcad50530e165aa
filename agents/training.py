"""Training on a placement environment, resumable after a kill.

Starting a run again in its folder goes on from the last checkpoint.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Discrete
from omegaconf import DictConfig, OmegaConf
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from conserve_gym.agents import run_folder
from conserve_gym.agents.algorithms import ALGORITHMS, VIEWS
from conserve_gym.agents.callbacks import Checkpoint, LogEpisodes, ObservedRange
from conserve_gym.agents.evolution import evolve
from conserve_gym.agents.networks.placement_view import without_padding
from conserve_gym.agents.preference import DrawnPreference
from conserve_gym.agents.seeds import training_seed
from conserve_gym.agents.semi_markov import RecordTime
from conserve_gym.agents.training_spec import TrainingSpec
from conserve_gym.envs.configuration import ConfigurationError, Scenario, validated
from conserve_gym.envs.placement_env import ENVIRONMENTS
from conserve_gym.envs.randomised import RandomisedScenario, scenarios
from conserve_gym.envs.serving.cluster_spec import ClusterSpec


def train(config: DictConfig) -> Path:
    """Train until ``config.total_timesteps`` and return the run's folder.

    Raises:
        ConfigurationError: A key or value is not right, or the folder holds another run.
    """
    torch.set_num_threads(1)  # two threads are 3 to 19 times slower on small networks
    folder = Path(config.run)
    spec = training_spec(config)
    if spec.agent.algorithm == "bc":
        from conserve_gym.agents.imitation.imitate import imitate  # it plays with what is trained

        return imitate(config, spec)
    played = scenarios(config)
    settings = run_folder.settings(config)
    run_folder.check_same(folder, settings)
    if spec.agent.algorithm == "evolution":
        if not _is_complete(folder):
            evolve(config, spec, folder, settings)
        return folder
    envs = vector_env(played, spec)
    model = _create(spec, envs)
    if spec.agent.warm_start is not None:
        _begin_with(model, Path(spec.agent.warm_start))
    with run_folder.held(folder):
        if _is_complete(folder):
            return folder
        checkpoint = run_folder.latest_checkpoint(folder)
        if checkpoint:
            try:
                model = run_folder.load_model(type(model), checkpoint)
            except ConfigurationError as error:
                raise ConfigurationError(f"{error}; delete it to go on from an older one") from None
            model.set_env(envs)
            print(f"resuming {folder} at {model.num_timesteps:,} of {spec.total_timesteps:,} steps")
        model.tensorboard_log = str(folder)
        # The algorithm has seeded the environments with its own seed: these come from training's.
        episode_seed = training_seed(spec.seed, model.num_timesteps)
        model.set_random_seed(episode_seed)
        run_folder.claim(
            folder,
            settings,
            validated(ClusterSpec, config.cluster, "cluster"),
            steps_done=model.num_timesteps,
            episode_seed=episode_seed,
        )
        _learn(model, spec, folder, anew=not checkpoint, progress_bar=config.progress_bar)
    return folder


def _is_complete(folder: Path) -> bool:
    complete = (folder / run_folder.MODEL).exists()
    if complete:
        print(f"{folder} is complete already")
    return complete


def _learn(model: Any, spec: TrainingSpec, folder: Path, *, anew: bool, progress_bar: bool) -> None:
    envs = model.get_env()
    callbacks: list[BaseCallback] = [
        LogEpisodes(),
        ObservedRange(known(spec, envs)),
        Checkpoint(folder / "checkpoints", spec.checkpoint_every, spec.agent.rollout_steps),
    ]
    if spec.discount.kind == "per_second" and ALGORITHMS[spec.agent.algorithm].on_policy:
        callbacks.append(RecordTime())
    thresholds = gc.get_threshold()
    # Ledgers are many small tuples that live for an episode: with the default thresholds the
    # collector walks through them, and through all of torch, for a sixth of the time.
    gc.freeze()
    gc.set_threshold(200_000, 20, 20)
    try:
        model.learn(
            spec.total_timesteps - model.num_timesteps,
            callback=callbacks,
            reset_num_timesteps=anew,
            tb_log_name="tensorboard",
            progress_bar=progress_bar,
        )
    finally:  # another run may follow in this process
        gc.set_threshold(*thresholds)
        gc.unfreeze()
    run_folder.save_model(model, folder / run_folder.MODEL)


def training_spec(config: DictConfig) -> TrainingSpec:
    """Return what a configuration asks for, validated.

    Raises:
        ConfigurationError: A value is not right.
    """
    agent = cast(dict[str, Any], OmegaConf.to_container(config.agent, resolve=True))
    own = {
        key: agent.pop(key, None)
        for key in ("algorithm", "network", "n_envs", "n_steps", "train_freq", "warm_start")
    }
    keys = ("environment", "seed", "total_timesteps", "checkpoint_every", "discount", "preference")
    values = {key: config[key] for key in keys}
    spec = OmegaConf.create({**values, "agent": {**own, "settings": agent}})
    return validated(TrainingSpec, spec)


def vector_env(played: Scenario | RandomisedScenario, spec: TrainingSpec) -> VecEnv:
    """Return the environments of a training run.

    Raises:
        ConfigurationError: The network cannot play what is drawn, or nothing can be preferred.
    """
    draws_clusters = isinstance(played, RandomisedScenario) and played.draws_clusters
    if draws_clusters and spec.agent.network == "mlp":
        raise ConfigurationError(
            "agent.network=mlp belongs to one cluster: randomise.cluster needs agent.network=scorer"
        )
    nominal = played.nominal if isinstance(played, RandomisedScenario) else played
    if spec.preference and not nominal.reward.energy:
        raise ConfigurationError(
            "preference=true weighs reward.energy, which is 0: choose reward=energy"
        )
    environment, shown = ENVIRONMENTS[spec.environment], VIEWS[spec.agent.network]

    def make() -> gymnasium.Env[Any, Any]:
        env: gymnasium.Env[Any, Any] = shown(environment(played))
        return DrawnPreference(env) if spec.preference else env

    return make_vec_env(make, n_envs=spec.agent.n_envs or 1)


def known(spec: TrainingSpec, envs: VecEnv) -> Callable[[Any], Any]:
    """Return what leaves out of observations that a smaller cluster has fewer engines."""
    if spec.agent.network == "mlp":
        return np.asarray
    return partial(without_padding, n_placements=int(cast(Discrete, envs.action_space).n))


def _create(spec: TrainingSpec, envs: VecEnv) -> Any:
    algorithm = ALGORITHMS[spec.agent.algorithm]
    agent, settings = spec.agent, dict(spec.agent.settings)
    kept = "rollout_buffer" if algorithm.on_policy else "replay_buffer"
    settings["n_steps" if algorithm.on_policy else "train_freq"] = agent.n_steps or agent.train_freq
    if spec.discount.kind == "per_second":
        settings["gamma"] = float(np.exp(-1.0 / spec.discount.horizon_s))
        settings[f"{kept}_class"] = algorithm.buffer
        if not algorithm.on_policy:  # the others are told by Stable-Baselines3
            settings["replay_buffer_kwargs"] = {"gamma": settings["gamma"]}
    else:
        settings["gamma"] = spec.discount.gamma
    try:
        return algorithm.model(
            algorithm.policies[agent.network], envs, seed=spec.seed, device="cpu", **settings
        )
    # Stable-Baselines3 checks its arguments by assertions and by using them.
    except (TypeError, ValueError, AssertionError, AttributeError, ZeroDivisionError) as error:
        raise ConfigurationError(f"agent={agent.settings}: {error}") from None


def _begin_with(model: Any, run: Path) -> None:
    """Take the weights of another run's model, actor and critic."""
    from conserve_gym.agents.learned import LearnedPolicy  # it reads what is trained

    try:
        model.policy.load_state_dict(LearnedPolicy(run).model.policy.state_dict())
    except RuntimeError as error:
        raise ConfigurationError(f"agent.warm_start={run}: another network: {error}") from None
