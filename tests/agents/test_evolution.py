"""Evolution strategies on a linear scorer: what is searched for, resumed and refused.

That such a run is evaluated, exported and decided with like any other is in ``test_training.py``
and ``test_runtime.py``.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from conserve_gym.agents import evolution, run_folder
from conserve_gym.agents.learned import LearnedPolicy
from conserve_gym.agents.networks.linear_model import LinearModel
from conserve_gym.agents.run_folder import latest_checkpoint
from conserve_gym.agents.training import train
from conserve_gym.envs.configuration import ConfigurationError
from conserve_gym.estimates import COLUMNS, TABLE_COLUMNS
from tests.agents.conftest import compose_evolution

START = {
    "kv": -3.0,
    "stall": -2.0,
    "apart_prefill": 2.5,
    "apart_decode": -2.0,
    "leaves_home": -3.0,
    "away_later": -3.0,
    "hold": -2.0,
}


def model_of(run: Path) -> LinearModel:
    return LinearModel.load(run / run_folder.MODEL)


@pytest.fixture(scope="module")
def evolved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(compose_evolution(f"run={tmp_path_factory.mktemp('evolution') / 'run'}"))


def test_a_run_counts_decisions_and_writes_each_generation_down(evolved: Path) -> None:
    with (evolved / evolution.PROGRESS).open() as file:
        rows = list(csv.DictReader(file))
    # The mean and four samples play eight conversations each.
    assert [int(row["decisions"]) for row in rows] == [40, 80]
    model = model_of(evolved)
    assert model.num_timesteps == 80
    assert model.told.shape == (2, 4, 1 + len(COLUMNS))
    assert (model.observed[0] <= model.observed[1]).all()


def test_what_is_told_is_what_the_samples_are_worth(evolved: Path) -> None:
    with (evolved / evolution.PROGRESS).open() as file:
        rows = list(csv.DictReader(file))
    best = -model_of(evolved).told[:, :, 0].min(axis=1)
    assert best == pytest.approx([float(row["return_of_best"]) for row in rows], abs=1e-5)


def test_a_killed_run_goes_on_to_the_same_weights(evolved: Path, tmp_path: Path) -> None:
    killed = tmp_path / "run"
    shutil.copytree(evolved, killed)
    (killed / run_folder.MODEL).unlink()
    (killed / "checkpoints" / "80.zip").unlink()
    assert latest_checkpoint(killed) == killed / "checkpoints" / "40.zip"
    train(compose_evolution(f"run={killed}"))
    assert np.array_equal(model_of(killed).network.weights, model_of(evolved).network.weights)
    assert np.array_equal(model_of(killed).told, model_of(evolved).told)


def test_the_first_samples_lie_around_the_start(evolved: Path) -> None:
    expected = [START.get(column.name, 0.0) for column in COLUMNS]
    first = model_of(evolved).told[0, :, 1:]
    assert np.abs(first - expected).max() < 5 * 0.5
    assert np.abs(first.mean(axis=0) - expected).mean() < 0.5


def test_weights_that_are_left_out_stay_zero(tmp_path: Path) -> None:
    run = train(compose_evolution(f"run={tmp_path / 'run'}", "agent.without=[kv,stall]"))
    out = [column.name in ("kv", "stall") for column in COLUMNS]
    told = model_of(run).told[:, :, 1:]
    assert not told[:, :, out].any()
    assert np.delete(told, np.flatnonzero(out), axis=2).all()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("+agent.start.hope=1", "start: 'hope' is none of tbt, kv"),
        ("agent.without=[hope]", "without: 'hope' is none of tbt, kv"),
        ("agent.population_size=2", "agent.population_size"),
        ("agent.network=scorer", "agent.algorithm=evolution does not train agent.network=scorer"),
        ("+agent.n_envs=2", "agent.n_envs=2"),
        ("+agent.momentum=1", "agent.momentum"),
        ("preference=true", "agent.episodes=1: preference=true spreads its settings"),
    ],
)
def test_what_makes_no_sense_is_refused(override: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=says):
        train(compose_evolution(f"run={tmp_path / 'run'}", override))
    assert not (tmp_path / "run").exists()


def test_a_knob_doubles_the_weights_and_moves_the_scores(tmp_path: Path) -> None:
    knob = ("preference=true", "reward=energy", "agent.episodes=2", "agent.without=[kv]")
    network = model_of(train(compose_evolution(f"run={tmp_path / 'run'}", *knob))).network
    assert network.weights.shape == (2, len(COLUMNS))
    kv = [column.name for column in COLUMNS].index("kv")
    assert np.flatnonzero((network.weights == 0.0).all(axis=0)).tolist() == [kv]
    policies = [LearnedPolicy(tmp_path / "run", preference) for preference in (0.0, 0.5, 1.0)]
    assert [policy.preference for policy in policies] == [0.0, 0.5, 1.0]
    placements = np.eye(TABLE_COLUMNS, dtype=np.float32)[-len(COLUMNS) :]
    first, middle, last = (
        network.scores(np.array([preference], dtype=np.float32), placements)
        for preference in (0.0, 0.5, 1.0)
    )
    assert np.array_equal(first, network.weights[0])
    np.testing.assert_allclose(last, network.weights.sum(axis=0), rtol=1e-6)
    np.testing.assert_allclose(middle, (first + last) / 2, rtol=1e-5)


def test_a_run_begins_with_the_weights_of_another(evolved: Path, tmp_path: Path) -> None:
    again = train(
        compose_evolution(
            f"run={tmp_path / 'run'}",
            f"agent.warm_start={evolved}",
            "agent.sigma=1e-6",
            "total_timesteps=40",
        )
    )
    first = model_of(again).told[0, :, 1:]
    np.testing.assert_allclose(first, np.tile(model_of(evolved).network.weights, (4, 1)), atol=1e-4)
    with pytest.raises(ConfigurationError, match="holds no trained model"):
        train(compose_evolution(f"run={tmp_path / 'other'}", f"agent.warm_start={tmp_path}"))
