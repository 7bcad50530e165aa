"""Jobs of one command line: folders of their own, one table of all, and one process a folder."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
import pytest
from filelock import FileLock
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from conserve_gym.agents import multirun
from conserve_gym.agents.run_folder import LOCK
from conserve_gym.envs.configuration import ConfigurationError


def job_folders(command: str, key: str, given: Sequence[str], jobs: Sequence[str]) -> list[Path]:
    """Return where Hydra would run jobs, each given what it sweeps."""
    with hydra.initialize_config_module("conserve_gym.conf", version_base="1.3"):
        instance = GlobalHydra.instance().hydra
        assert instance is not None
        config = instance.compose_config(
            command, [*given, "hydra.mode=MULTIRUN"], run_mode=RunMode.MULTIRUN
        )
        multirun.Jobs(key).on_multirun_start(config)
        fixed = [one for one in given if "," not in one or "'" in one]
        loaded = [
            instance.config_loader.load_sweep_config(config, [*job.split(), *fixed]) for job in jobs
        ]
        assert all(one.hydra.mode is RunMode.MULTIRUN for one in loaded)
        return [Path(one.hydra.sweep.dir) / one.hydra.sweep.subdir for one in loaded]


@pytest.mark.parametrize("name", ["study", "a b", "it's, 100 % = ours", "back\\slash"])
def test_jobs_have_folders_named_by_what_differs(tmp_path: Path, name: str) -> None:
    escaped = str(tmp_path / name).replace("'", "\\'")
    given = ["agent=ppo,dqn", "seed=0,1", "total_timesteps=5", f"run='{escaped}'"]
    jobs = ["agent=ppo seed=0", "agent=dqn seed=0", "agent=dqn seed=1"]
    assert job_folders("train", "run", given, jobs) == [
        tmp_path / name / "agent_ppo+seed_0",
        tmp_path / name / "agent_dqn+seed_0",
        tmp_path / name / "agent_dqn+seed_1",
    ]


def test_jobs_that_are_called_differently_share_the_commands_folder() -> None:
    """By default a run's folder is called by its algorithm, an evaluation's by the time."""
    folders = job_folders("train", "run", ["agent=ppo,dqn"], ["agent=ppo", "agent=dqn"])
    assert folders == [Path.cwd() / "runs" / "ppo" / f"agent_{name}" for name in ("ppo", "dqn")]
    rates = ["arrivals.rate=1", "arrivals.rate=2"]
    folders = job_folders("evaluate", "output", ["arrivals.rate=1,2"], rates)
    assert len({folder.parent for folder in folders}) == 1
    assert [folder.name for folder in folders] == ["arrivals.rate_1", "arrivals.rate_2"]


def test_a_folder_for_each_job_by_hand_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        job_folders("train", "run", ["run=a,b"], [])
    assert stopped.value.code == 2
    assert "error: run names the folder of all jobs" in capsys.readouterr().err


def ended(folder: Path) -> None:
    multirun.Jobs("run").on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": folder}}}))


def test_the_table_has_what_every_job_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in (("seed_0", '{"steps": 5, "%": 1.5}'), ("x/y", '{"steps": 6, "%": 2.25}')):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / multirun.JOB).write_text(text)
    ended(tmp_path)
    with (tmp_path / multirun.JOBS).open() as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"job": "seed_0", "steps": "5", "%": "1.5"},
        {"job": "x/y", "steps": "6", "%": "2.25"},
    ]
    assert "2.25" in capsys.readouterr().out
    (tmp_path / "x" / "y" / multirun.JOB).write_text('{"error": "no room"}')
    with pytest.raises(SystemExit) as stopped:
        ended(tmp_path)
    assert stopped.value.code == 2
    assert "no room" in capsys.readouterr().out


def test_two_processes_do_not_train_in_one_folder(
    tmp_path: Path, tiny_config: Callable[..., DictConfig]
) -> None:
    from conserve_gym.agents.training import train

    config = tiny_config(f"run={tmp_path}")
    with FileLock(tmp_path / LOCK), pytest.raises(ConfigurationError, match="another process"):
        train(config)
    assert {path.name for path in tmp_path.iterdir()} <= {LOCK}


def test_alone_a_command_is_no_job() -> None:
    assert not multirun.is_job()
    with hydra.initialize_config_module("conserve_gym.conf", version_base="1.3"):
        config: Any = hydra.compose("train", return_hydra_config=True)
    assert config.hydra.callbacks.jobs.key in config
