"""Sweeps: every training in a folder of its own, judged on unseen episodes, resumable, shared."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
from filelock import FileLock
from omegaconf import DictConfig
from rich.console import Console

from conserve_gym.agents import sweep as module
from conserve_gym.agents import sweep_picture, validation
from conserve_gym.agents.evaluation import Episode, play
from conserve_gym.agents.learned import LearnedPolicy
from conserve_gym.agents.policies import resolve
from conserve_gym.agents.seeds import FIRST_TEST_SEED, FIRST_TRAINING_SEED, FIRST_VALIDATION_SEED
from conserve_gym.agents.sweep import sweep
from conserve_gym.envs.configuration import (
    ConfigurationError,
    Scenario,
    load_scenario,
    validation_part,
)

CONSOLE = Console(quiet=True)


def configured(folder: Path, *overrides: str) -> DictConfig:
    given = ["experiment=quick", "trials=6", f"output={folder}", *overrides]
    with hydra.initialize_config_module("conserve_gym.conf", version_base="1.3"):
        return hydra.compose("sweep", given)


class Trainings:
    """Stands in for trainings: a setting's worth is known, and any of them may be stopped."""

    def __init__(self) -> None:
        self.asked: list[DictConfig] = []
        self.stop_at = -1

    def train(self, config: DictConfig) -> Path:
        if len(self.asked) == self.stop_at:
            self.stop_at = -1
            raise KeyboardInterrupt
        self.asked.append(config)
        folder = Path(config.run)
        folder.mkdir(parents=True, exist_ok=True)
        rate = float(config.agent.get("learning_rate", 1e-3))
        (folder / "worth").write_text(str(50.0 - abs(math.log(rate / 1e-3)) + config.seed))
        return folder

    def attained_pct(self, run: Path, episodes: int) -> float:
        return float((run / "worth").read_text())


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    fake = Trainings()
    monkeypatch.setattr(module, "train", fake.train)
    monkeypatch.setattr(module, "attained_pct", fake.attained_pct)
    monkeypatch.setattr(sweep_picture, "write", lambda folder, *_: folder / "sweep.png")
    return fake


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_configured_setting_is_first_and_every_training_has_a_folder(
    tmp_path: Path, trainings: Trainings
) -> None:
    found = sweep(configured(tmp_path, "repeats=2", "seed=3"), CONSOLE)
    table = rows(tmp_path)
    assert len(table) == 6
    assert float(table[0]["agent.learning_rate"]) == 3e-4
    assert float(table[0]["validation_slo_attainment_pct"]) == found.configured_pct
    assert found.configured_pct == pytest.approx(50.0 - math.log(1e-3 / 3e-4) + 3.5)
    assert found.attained_pct == max(float(row["validation_slo_attainment_pct"]) for row in table)
    folders = sorted(path.name for path in (tmp_path / "trials").glob("[0-9]*"))
    assert folders == [f"{trial:03d}_seed_{seed}" for trial in range(6) for seed in (3, 4)]
    for config in trainings.asked:
        number, _, seed = Path(config.run).name.partition("_seed_")
        assert config.seed == int(seed)
        row = table[int(number)]
        assert float(row["agent.learning_rate"]) == config.agent.learning_rate
        assert 10.0 <= config.discount.horizon_s <= 1000.0
        assert config.agent.n_steps in (64, 128, 256, 512)
        assert isinstance(config.agent.n_epochs, int)
        # A training's folder says what makes it this one, and nothing of the sweep.
        assert not {"sweep", "trials", "output"} & {str(key) for key in config}
        assert config.arrivals.rate_high == 2.0
    stamped: dict[str, Any] = json.loads((tmp_path / "best.json").read_text())
    assert stamped["parameters"] == found.parameters
    assert all((Path(run) / "worth").exists() for run in stamped["runs"])


@pytest.mark.parametrize("before", [0, 4])
def test_a_stopped_sweep_ends_as_one_that_was_not(
    before: int, tmp_path: Path, trainings: Trainings
) -> None:
    sweep(configured(tmp_path / "whole"), CONSOLE)
    trainings.asked.clear()
    trainings.stop_at = before
    with pytest.raises(KeyboardInterrupt):
        sweep(configured(tmp_path / "stopped"), CONSOLE)
    found = sweep(configured(tmp_path / "stopped"), CONSOLE)
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")
    assert len(trainings.asked) == 6
    assert sweep(configured(tmp_path / "stopped"), CONSOLE) == found
    assert len(trainings.asked) == 6
    sweep(configured(tmp_path / "stopped", "trials=8"), CONSOLE)
    assert [row["trial"] for row in rows(tmp_path / "stopped")] == [str(i) for i in range(8)]
    with pytest.raises(ConfigurationError, match="another seed; choose another folder"):
        sweep(configured(tmp_path / "stopped", "seed=1"), CONSOLE)


def test_what_another_process_trains_is_left_to_it(tmp_path: Path, trainings: Trainings) -> None:
    trainings.stop_at = 0
    with pytest.raises(KeyboardInterrupt):
        sweep(configured(tmp_path), CONSOLE)
    with FileLock(tmp_path / "trials" / ".000.lock"):  # as the process that trains it would
        found = sweep(configured(tmp_path), CONSOLE)
    assert found.left == 1
    assert found.configured_pct is None
    assert [row["trial"] for row in rows(tmp_path)] == ["1", "2", "3", "4", "5"]
    found = sweep(configured(tmp_path), CONSOLE)
    assert found.left == 0
    assert [row["trial"] for row in rows(tmp_path)] == ["0", "1", "2", "3", "4", "5"]


def test_a_policy_that_diverged_is_worth_nothing_and_other_errors_stop(
    tmp_path: Path, trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverges(config: DictConfig) -> Path:
        if Path(config.run).name.startswith("001"):
            raise ValueError("Expected parameter logits, but found invalid values: tensor([nan])")
        return trainings.train(config)

    monkeypatch.setattr(module, "train", diverges)
    sweep(configured(tmp_path / "a", "trials=3"), CONSOLE)
    worth = [float(row["validation_slo_attainment_pct"]) for row in rows(tmp_path / "a")]
    assert worth[1] == 0.0
    assert min(worth[0], worth[2]) > 0.0

    def broken(config: DictConfig) -> Path:
        raise ValueError("a mistake")

    monkeypatch.setattr(module, "train", broken)
    with pytest.raises(ValueError, match="a mistake"):
        sweep(configured(tmp_path / "b"), CONSOLE)


@pytest.mark.parametrize("agent", ["ppo", "maskable_ppo", "dqn", "qrdqn", "evolution", "bc"])
def test_every_agent_has_something_to_sweep(
    agent: str, tmp_path: Path, trainings: Trainings
) -> None:
    environment = "joint" if agent == "maskable_ppo" else "conversation"
    sweep(configured(tmp_path, f"agent={agent}", f"environment={environment}", "trials=2"), CONSOLE)
    varied = set(rows(tmp_path)[0])
    assert ("agent.policy_kwargs.n_quantiles" in varied) == (agent == "qrdqn")
    assert ("agent.clip_range" in varied) == ("ppo" in agent)
    assert ("agent.sigma" in varied) == (agent == "evolution")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["agent.learning_rate=0.5"], "agent.learning_rate=0.5 is outside"),
        (["agent.n_steps=100"], "agent.n_steps=100 is outside"),
        (["sweep.agent.n_epochs.high=1"], "low=2 to high=1 is no range"),
        (["sweep.agent.n_epochs.low=0", "+sweep.agent.n_epochs.logarithmic=true"], "is no range"),
        (["+sweep.agent.n_steps.low=3"], "choices have no low"),
        (["+sweep.agent.n_epoch={low: 1, high: 2}"], "the training has no value of agent.n_epoch"),
        (["+sweep.agent.vf_coef=3"], "vf_coef=3 has neither low nor choices"),
        (["~sweep.agent", "~sweep.discount"], "nothing is varied"),
        (["trials=0"], "trials=0"),
        (["checkpoint_every=100"], "checkpoint_every=100"),
        (["workload=trace", "workload.path=x.csv", "workload.split=test"], "split=test"),
    ],
)
def test_wrong_settings_are_one_clear_error(
    tmp_path: Path, overrides: list[str], says: str
) -> None:
    with pytest.raises(ConfigurationError, match=says):
        sweep(configured(tmp_path / "out", *overrides), CONSOLE)
    assert not (tmp_path / "out").exists()


def test_a_training_is_judged_on_episodes_that_nobody_else_plays(
    tmp_path: Path, tiny_config: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    from conserve_gym.agents.training import train

    folder = train(tiny_config(f"run={tmp_path / 'run'}"))
    played: list[Episode] = []

    def noted(*arguments: Any) -> Episode:
        played.append(play(*arguments))
        return played[-1]

    monkeypatch.setattr(validation, "play", noted)
    attained = validation.attained_pct(folder, 3)
    seeds = [episode.seed for episode in played]
    assert seeds == [FIRST_VALIDATION_SEED + i for i in range(3)]
    assert max(seeds) < FIRST_TEST_SEED < FIRST_TRAINING_SEED
    load = load_scenario(
        ["workload.conversations=16", "arrivals.rate=0.5", "arrivals.rate_high=2.0"]
    )
    policy = resolve(str(folder), load.cluster)
    again = [play(load, policy, seed).metrics["slo_attainment_pct"] for seed in seeds]
    assert attained == pytest.approx(sum(again) / 3)


def test_a_training_on_drawn_scenarios_is_judged_on_such(
    tmp_path: Path, tiny_config: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    from conserve_gym.agents.training import train

    drawn = ("environment=joint", "agent=maskable_ppo", "agent.network=scorer", "randomise=fleet")
    workloads = ("~randomise.workloads.claude_code", "~randomise.workloads.chat")  # slow to compose
    small = (*workloads, "randomise.conversations=8")
    folder = train(tiny_config(f"run={tmp_path / 'run'}", *drawn, *small))
    fleets = []

    def noted(load: Scenario, policy: LearnedPolicy, seed: int) -> Episode:
        fleets.append(load.cluster.fleet(policy.deployment))
        assert policy.fleet == fleets[-1]
        return play(load, policy, seed)

    monkeypatch.setattr(validation, "play", noted)
    assert 0.0 <= validation.attained_pct(folder, 4) <= 100.0
    assert len({fleet.roles for fleet in fleets}) > 1


def test_the_validation_split_is_taken_where_training_has_the_train_split() -> None:
    for given, expected in (("train", "validation"), ("null", None), ("test", "test")):
        with hydra.initialize_config_module("conserve_gym.conf", version_base="1.3"):
            config = hydra.compose(
                "train", ["workload=trace", "workload.path=x", f"workload.split={given}"]
            )
        assert validation_part(config).workload.split == expected
        assert config.workload.split == (None if given == "null" else given)


def test_a_real_sweep_of_two_trainings(tmp_path: Path) -> None:
    tiny = (
        "workload.conversations=16",
        "agent.n_envs=2",
        "agent.n_steps=64",
        "agent.batch_size=128",
    )
    fixed = ("agent.batch_size=128", "~sweep.agent.n_steps", "~sweep.agent.batch_size")
    length = ("trials=2", "validation_episodes=1", "total_timesteps=256")
    found = sweep(configured(tmp_path, *tiny, *fixed, *length), CONSOLE)
    for trial in range(2):
        assert (tmp_path / "trials" / f"{trial:03d}_seed_0" / "model.zip").is_file()
    best = max(float(row["validation_slo_attainment_pct"]) for row in rows(tmp_path))
    assert found.attained_pct == best
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
