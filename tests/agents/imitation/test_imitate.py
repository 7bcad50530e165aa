"""Cloning runs: what they leave behind, resuming, refusals, and PPO that begins with one."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
from omegaconf import DictConfig

from conserve_gym.agents import campaign
from conserve_gym.agents.evaluation import play
from conserve_gym.agents.export import export
from conserve_gym.agents.imitation import imitate
from conserve_gym.agents.imitation.recording import Cell, Recorded, read
from conserve_gym.agents.learned import LearnedPolicy
from conserve_gym.agents.seeds import FIRST_TRAINING_SEED
from conserve_gym.agents.training import train
from conserve_gym.envs.configuration import ConfigurationError, nominal_scenario

TINY = (
    "progress_bar=false",
    "workload.conversations=8",
    "arrivals.rate=6",
    "seed=3",
)
CLONE = (
    *TINY,
    "agent=bc",
    "agent.dagger_rounds=1",
    "agent.validation_fraction=0.5",
    "agent.n_epochs=3",
    "total_timesteps=32",
    "agent.workers=1",
)


def composed(*overrides: str) -> DictConfig:
    with hydra.initialize_config_module("conserve_gym.conf", version_base="1.3"):
        return hydra.compose("train", list(overrides))


def play_here(
    jobs: dict[Cell, Callable[[], dict[str, Any]]],
    folder: Path,
    results: dict[Cell, dict[str, Any]],
    *_: object,
) -> None:
    """As ``campaign.play``, without processes, which take seconds to begin."""
    for cell in [cell for cell in jobs if cell not in results]:
        results[cell] = jobs[cell]()
        with (folder / campaign.RESULTS).open("a") as file:
            file.write(json.dumps({"cell": asdict(cell), "metrics": results[cell]}) + "\n")


def weights(run: Path) -> dict[str, np.ndarray]:
    policy = LearnedPolicy(run).model.policy
    return {name: weight.numpy() for name, weight in policy.state_dict().items()}


@pytest.fixture(scope="module")
def cloned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of two rounds, of two episodes each."""
    return train(composed(*CLONE, f"run={tmp_path_factory.mktemp('runs') / 'cloned'}"))


def test_a_run_is_one_like_any_other(cloned: Path, tmp_path: Path) -> None:
    policy = LearnedPolicy(cloned)
    assert policy.complete
    assert not policy.deployment.sees_future
    assert policy.model.num_timesteps == 32
    episode = play(nominal_scenario(policy.config), policy, 0)
    assert not episode.sees_future
    exported = export(cloned, tmp_path / "policy")
    again = play(nominal_scenario(policy.config), exported, 0)
    assert exported.decisions == 8
    if not exported.fallbacks:
        assert again.ledger.digest() == episode.ledger.digest()
    with (cloned / imitate.FITS).open() as file:
        assert [int(row["decisions"]) for row in csv.DictReader(file)] == [16, 32]
    first, last = weights(cloned / imitate.ROUNDS / "0"), weights(cloned / imitate.ROUNDS / "1")
    assert not all((first[name] == last[name]).all() for name in first)
    assert all((last[name] == one).all() for name, one in weights(cloned).items())


def test_recordings_say_that_they_were_made_with_the_future(cloned: Path) -> None:
    files = sorted((cloned / imitate.RECORDINGS).glob("*.npz"))
    assert len(files) == 4
    played_by = []
    for path in files:
        with np.load(path) as arrays:
            note = json.loads(str(arrays["note"]))
            recorded = Recorded(*(arrays[name] for name in Recorded._fields))
        assert note["sees_future"] is True
        assert note["seed"] >= FIRST_TRAINING_SEED
        played_by.append(note["played_by"])
        assert recorded.shown.shape == (8, LearnedPolicy(cloned).scaler.size)
        assert recorded.values.shape == (8, 2)
    assert played_by == ["the look-ahead"] * 2 + ["0"] * 2


def test_a_stopped_run_goes_on_with_what_it_has_recorded(
    cloned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StoppedError(Exception):
        pass

    def stop(*_: object) -> None:
        raise StoppedError

    config = composed(*CLONE, f"run={tmp_path / 'run'}")
    monkeypatch.setattr(campaign, "play", play_here)
    with monkeypatch.context() as patch:
        patch.setattr(imitate, "fit", stop)
        with pytest.raises(StoppedError):
            train(config)
    recorded = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    assert len(recorded) == 2
    run = train(config)
    assert {path: path.stat().st_mtime_ns for path in recorded} == recorded
    theirs = weights(cloned)
    assert all((theirs[name] == one).all() for name, one in weights(run).items())


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("agent.base=nobody", "nobody"),
        ("agent.base=conserve_oracle", "agent.base=conserve_oracle runs"),
        ("agent.validation_fraction=1", r"agent\.validation_fraction=1"),
        ("total_timesteps=24", "total_timesteps=24 is 1 episodes of 8 decisions in each of 2"),
        ("agent.dagger_rounds=-1", r"agent\.dagger_rounds=-1"),
        ("+agent.n_steps=4", "agent.n_steps=4"),
        ("+agent.warm_start=runs/a", "agent.algorithm=bc does not take warm_start"),
        ("preference=true", "preference=true: agent=bc"),
        ("+agent.clip_range=1", "agent.clip_range=1"),
        ("agent.policy_kwargs.net_arch=[wide]", "wide"),
    ],
)
def test_wrong_settings_name_key_and_value(tmp_path: Path, override: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        train(composed(*CLONE, override, f"run={tmp_path / 'run'}"))
    assert not (tmp_path / "run").exists(), "nothing half-made is left behind"


def test_ppo_begins_with_the_weights_of_a_clone(cloned: Path, tmp_path: Path) -> None:
    ppo = (*TINY, "agent.n_envs=1", "agent.n_steps=16", "agent.batch_size=16", "total_timesteps=16")
    still = ("checkpoint_every=16", "agent.learning_rate=1e-12", f"agent.warm_start={cloned}")
    theirs = weights(cloned)
    run = train(composed(*ppo, *still, f"run={tmp_path / 'run'}"))
    for name, one in weights(run).items():
        np.testing.assert_allclose(one, theirs[name], atol=1e-9)
    with pytest.raises(ConfigurationError, match="another network"):
        train(composed(*ppo, *still, "agent.network=scorer", f"run={tmp_path / 'other'}"))
    with pytest.raises(ConfigurationError, match="holds no trained model"):
        train(composed(*ppo, *still, f"agent.warm_start={tmp_path}", f"run={tmp_path / 'other'}"))
    assert not (tmp_path / "other").exists()


def test_clusters_that_are_drawn_are_cloned_by_a_scorer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign, "play", play_here)
    drawn = (
        "randomise=fleet",
        "randomise.cluster.engines=[2,5]",
        "~randomise.workloads.claude_code",  # slow to compose, as is chat
        "~randomise.workloads.chat",
        "randomise.conversations=8",
        "randomise.mixed_share=0",
    )
    overrides = (*CLONE, *drawn, "environment=joint", "agent.network=scorer")
    run = train(composed(*overrides, f"run={tmp_path / 'run'}"))
    recorded = read(run / imitate.RECORDINGS, [*campaign.load(run / imitate.RECORDINGS, Cell)])
    able = {int((~np.isnan(one.values)).any(axis=0).sum()) for one in recorded}
    assert len(able) > 1, "fleets of more than one size were drawn"
    policy = LearnedPolicy(run)
    episode = play(nominal_scenario(policy.config), policy, 0)
    assert len(episode.normalised) == 8
