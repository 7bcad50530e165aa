"""Training runs: what they leave behind, determinism, resuming, and refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import hydra
import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm

from conserve_gym.agents import callbacks, run_folder
from conserve_gym.agents.evaluation import play
from conserve_gym.agents.export import export
from conserve_gym.agents.learned import LearnedPolicy
from conserve_gym.agents.run_folder import latest_checkpoint
from conserve_gym.agents.seeds import FIRST_TRAINING_SEED
from conserve_gym.agents.training import train, training_spec
from conserve_gym.envs.configuration import ConfigurationError, load_scenario, validated
from conserve_gym.envs.placement_env import ConversationPlacementEnv
from conserve_gym.envs.randomised import RandomiseSpec
from conserve_gym.ledger import Placed
from conserve_gym.observation import Scaler, field_table

TinyConfig = Callable[..., DictConfig]


def test_a_run_leaves_model_config_seeds_and_revision(trained: Path) -> None:
    assert (trained / "model.zip").is_file()
    assert not list(trained.rglob("*.partial"))
    config = OmegaConf.load(trained / "config.yaml")
    assert config.seed == 0
    assert config.cluster.name == "a40_1p3d"
    (part,) = json.loads((trained / "run.json").read_text())
    assert {"command", "git_revision", "python", "packages", "episode_seed"} <= part.keys()
    evolved = trained.name == "joint_linear"
    assert list(trained.glob("progress.csv" if evolved else "tensorboard*/events*"))
    assert len(list((trained / "checkpoints").glob("*.zip"))) <= run_folder.KEPT_CHECKPOINTS
    model = LearnedPolicy(trained).model
    low, high = model.observed if evolved else (model.observed_low, model.observed_high)
    assert (low <= high).all()


def test_training_twice_gives_the_same_weights(tiny_config: TinyConfig, tmp_path: Path) -> None:
    models = []
    for name in ("a", "b"):
        train(tiny_config(f"run={tmp_path / name}"))
        models.append(PPO.load(tmp_path / name / "model.zip", device="cpu"))
    for one, other in zip(*(model.policy.parameters() for model in models), strict=True):
        assert one.equal(other)


def test_another_seed_gives_other_weights(
    tiny_config: TinyConfig, trained: Path, tmp_path: Path
) -> None:
    if trained.name != "conversation":
        pytest.skip("one kind of action is enough")
    train(tiny_config(f"run={tmp_path / 'c'}", "seed=1"))
    mine = PPO.load(tmp_path / "c" / "model.zip", device="cpu").policy.parameters()
    theirs = PPO.load(trained / "model.zip", device="cpu").policy.parameters()
    assert not all(one.equal(other) for one, other in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_a_stopped_run_goes_on_from_its_checkpoint(
    tiny_config: TinyConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    algorithm: type[BaseAlgorithm],
) -> None:
    folder = tmp_path / "run"
    agent = f"agent={algorithm.__name__.lower()}"
    config = tiny_config(agent, f"run={folder}", "total_timesteps=640")

    class StoppedError(Exception):
        pass

    log = callbacks.LogEpisodes._on_step

    def stop_at_400(self: callbacks.LogEpisodes) -> bool:
        if self.num_timesteps >= 400:
            raise StoppedError
        return log(self)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.LogEpisodes, "_on_step", stop_at_400)
        with pytest.raises(StoppedError):
            train(config)
    assert not (folder / "model.zip").exists()
    checkpoint = latest_checkpoint(folder)
    assert checkpoint is not None
    assert 400 - int(checkpoint.stem) <= config.checkpoint_every
    range_before = algorithm.load(checkpoint, device="cpu").observed_high

    steps: list[int] = []

    def watch(self: callbacks.LogEpisodes) -> bool:
        steps.append(self.num_timesteps)
        return log(self)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.LogEpisodes, "_on_step", watch)
        train(config)
    assert steps[0] == int(checkpoint.stem) + config.agent.n_envs
    first, second = json.loads((folder / "run.json").read_text())
    assert (first["steps_done"], second["steps_done"]) == (0, int(checkpoint.stem))
    assert first["episode_seed"] != second["episode_seed"]
    model = algorithm.load(folder / "model.zip", device="cpu")
    assert model.num_timesteps == 640
    assert (np.asarray(model.observed_high) >= range_before).all()


def test_a_run_with_other_settings_is_refused(
    tiny_config: TinyConfig, trained: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    (copy / "model.zip").unlink()
    with pytest.raises(ConfigurationError, match=r"other settings.*seed"):
        train(tiny_config(f"run={copy}", "seed=7"))
    with pytest.raises(ConfigurationError, match=r"other settings.*seed"):
        train(tiny_config(f"run={trained}", "seed=7"))


def test_a_complete_run_is_left_alone(tiny_config: TinyConfig, tmp_path: Path) -> None:
    config = tiny_config(f"run={tmp_path / 'run'}")
    train(config)
    before = (tmp_path / "run" / "model.zip").read_bytes()
    train(config)
    assert (tmp_path / "run" / "model.zip").read_bytes() == before


def test_training_never_plays_an_episode_of_the_evaluation(
    tiny_config: TinyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    reset = ConversationPlacementEnv.reset

    def watch(self: ConversationPlacementEnv, *, seed=None, options=None):
        if seed is not None:
            seeds.append(seed)
        return reset(self, seed=seed, options=options)

    monkeypatch.setattr(ConversationPlacementEnv, "reset", watch)
    train(tiny_config(f"run={tmp_path / 'run'}"))
    assert len(seeds) >= 2
    assert min(seeds) >= FIRST_TRAINING_SEED


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("environment=walls", "environment='walls'"),
        ("agent.algorithm=sarsa", "agent.algorithm='sarsa'"),
        ("agent.network=attention", "agent.network='attention'"),
        ("discount.kind=none", "discount.kind='none'"),
        ("+agent.learning_rat=1", "learning_rat"),
        ("discount.horizon_s=0", "discount.horizon_s=0"),
        ("discount.gamma=5", "discount.gamma=5"),
        ("agent.n_envs=0", "agent.n_envs=0"),
        ("agent.n_steps=-1", "agent.n_steps=-1"),
        ("agent.batch_size=0", "batch_size"),
        ("agent.learning_rate=fast", "fast"),
        ("agent.policy_kwargs.net_arch=[wide]", "wide"),
        ("total_timesteps=many", "total_timesteps='many'"),
        ("checkpoint_every=100", "checkpoint_every=100"),
        ("seed=-1", "seed=-1"),
        ("environment=joint", "agent=maskable_ppo"),
        ("agent.n_steps=null", "agent.algorithm=ppo takes n_envs and n_steps"),
        ("agent.algorithm=dqn", "agent.algorithm=dqn takes n_envs and train_freq"),
    ],
)
def test_wrong_settings_name_key_and_value(
    tiny_config: TinyConfig, tmp_path: Path, override: str, says: str
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(ConfigurationError, match=says):
        train(tiny_config(f"run={folder}", override))
    assert not folder.exists(), "nothing half-made is left behind"


def test_a_truncated_or_foreign_model_is_one_clear_error(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    whole = (copy / "model.zip").read_bytes()
    (copy / "model.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigurationError, match=r"model\.zip: not a whole model"):
        LearnedPolicy(copy)
    (copy / "model.zip").write_bytes(whole)
    monkeypatch.setattr(
        run_folder, "field_table", lambda: [{**field_table()[0], "high": 3.0}, *field_table()[1:]]
    )
    with pytest.raises(ConfigurationError, match="another observation table"):
        LearnedPolicy(copy)
    with pytest.raises(ConfigurationError, match="no trained model"):
        LearnedPolicy(tmp_path)


@pytest.mark.parametrize("agent", [("agent=ppo",), ("agent=dqn", "agent.network=scorer")])
def test_a_policy_that_decides_every_turn_is_trained_and_played(
    tiny_config: TinyConfig, tmp_path: Path, agent: tuple[str, ...]
) -> None:
    run = train(tiny_config(*agent, f"run={tmp_path / 'run'}", "environment=turn"))
    policy = LearnedPolicy(run)
    assert policy.deployment.decides_every_turn
    small = load_scenario(["workload.conversations=6"])
    ledger = play(small, policy, 0).ledger
    placed = [event.turn for event in ledger if isinstance(event, Placed)]
    assert sorted(set(placed)) == [0, 1, 2, 3, 4]


FLEET = (
    "environment=joint",
    "agent=maskable_ppo",
    "agent.network=scorer",
    "randomise=fleet",
    "randomise.cluster.engines=[2,5]",
    "~randomise.workloads.claude_code",
    "~randomise.workloads.chat",
    "randomise.conversations=8",
)


def test_a_policy_trained_on_drawn_clusters_is_played_and_exported_for_others(
    tiny_config: TinyConfig, tmp_path: Path
) -> None:
    run = train(tiny_config(*FLEET, f"run={tmp_path / 'run'}"))
    policy = LearnedPolicy(run)
    assert policy.fleet.roles == load_scenario().cluster.fleet(policy.deployment).roles
    scheduler = export(run, tmp_path / "policy")
    assert scheduler.artifact is not None
    # Capacities and speeds are known beforehand and never 0: a smaller cluster has no engine of 0.
    low = dict(zip(Scaler(1).names, scheduler.artifact.seen_low.tolist(), strict=True))
    for name in ("kv_capacity", "prefill_speed", "decode_speed"):
        assert low[f"engines[0].{name}"] > 0.0
    assert np.isfinite(scheduler.artifact.seen_high).all()
    capped = load_scenario(["cluster=a40_1p3d_200w"]).cluster.fleet(policy.deployment)
    assert capped == policy.fleet and capped.costs != policy.fleet.costs
    policy.move_to(capped)
    assert policy.fleet.costs == capped.costs
    for cluster in ("a40_1p7d", "a40_4mixed"):
        large = load_scenario([f"cluster={cluster}", "workload.conversations=12"])
        policy.move_to(large.cluster.fleet(policy.deployment))
        for one in (policy, scheduler):
            assert play(large, one, 0).metrics["span_s"] > 0.0
        assert scheduler.fallbacks < scheduler.decisions, "some fleets are as those of training"


def test_a_perceptron_is_not_trained_on_drawn_clusters(
    tiny_config: TinyConfig, tmp_path: Path
) -> None:
    config = tiny_config(*FLEET, "agent.network=mlp", f"run={tmp_path / 'run'}")
    with pytest.raises(ConfigurationError, match=r"agent\.network=scorer"):
        train(config)


@pytest.mark.parametrize("experiment", ["paper_cluster", "paper_cluster_turns", "fleet"])
def test_an_experiment_on_drawn_scenarios_is_a_whole_configuration(experiment: str) -> None:
    with hydra.initialize_config_module("conserve_gym.conf", version_base="1.3"):
        config = hydra.compose("train", [f"experiment={experiment}"])
    spec = training_spec(config)
    assert (spec.environment, spec.agent.network) == ("joint", "linear")
    drawn = validated(RandomiseSpec, config.randomise, "randomise")
    assert (drawn.cluster is not None) == (experiment == "fleet")
