"""Tuning: the default setting first, the same episodes for all, resumable, and used by name."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import DictConfig
from rich.console import Console

from conserve_gym.agents import tuning
from conserve_gym.agents.evaluation import play
from conserve_gym.agents.policies import resolve
from conserve_gym.agents.seeds import FIRST_TRAINING_SEED
from conserve_gym.agents.tuning import Tuned, tune
from conserve_gym.envs.configuration import ConfigurationError, load_scenario
from conserve_gym.envs.randomised import of_seeds, scenarios

CONSOLE = Console(quiet=True)
SETTINGS = (
    "policy=conserve_offload",
    "workload=miniswe_heavy_appends",
    "workload.conversations=40",
    "rates=[1,2]",
    "budget=800",
    "trials=5",
)


def configured(folder: Path, *overrides: str) -> DictConfig:
    with hydra.initialize_config_module("conserve_gym.conf", version_base="1.3"):
        return hydra.compose("tune", [*SETTINGS, f"output={folder}", *overrides])


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    return tune(configured(tmp_path_factory.mktemp("tuned")), CONSOLE)


def trials(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_default_setting_is_tried_first_and_never_beaten_by_a_worse_one(
    found: Tuned,
) -> None:
    rows = trials(found.path.parent)
    assert len(rows) == 5
    assert rows[0]["tokens"] == "512"
    assert float(rows[0]["slo_attainment_pct"]) == found.default_pct
    assert found.attainment_pct == max(float(row["slo_attainment_pct"]) for row in rows)
    assert found.attainment_pct >= found.default_pct
    assert len({row["tokens"] for row in rows}) == 5


def test_what_it_says_of_a_setting_is_what_training_episodes_give(found: Tuned) -> None:
    assert found.episodes == 2  # 800 decisions / 5 settings / 40 decisions / 2 rates
    attained = []
    for rate in (1, 2):
        scenario = load_scenario([*SETTINGS[1:3], f"arrivals.rate={rate}"])
        policy = resolve({"conserve_offload": found.parameters}, scenario.cluster)
        for seed in (FIRST_TRAINING_SEED, FIRST_TRAINING_SEED + 1):
            attained.append(play(scenario, policy, seed).metrics["slo_attainment_pct"])
    assert found.attainment_pct == pytest.approx(sum(attained) / 4, abs=1e-12)


def test_loads_may_be_drawn_as_for_a_learner(tmp_path: Path) -> None:
    drawn = ("rates=null", "randomise=traffic", "randomise.conversations=40")
    quick = ("~randomise.workloads.claude_code", "~randomise.workloads.chat")  # slow to compose
    config = configured(tmp_path, *drawn, *quick, "trials=2", "budget=240")
    found = tune(config, CONSOLE)
    assert found.episodes == 3  # 240 decisions / 2 settings / 40 decisions
    seeds = range(FIRST_TRAINING_SEED, FIRST_TRAINING_SEED + 3)
    attained = []
    for built, seed in zip(of_seeds(scenarios(config), seeds), seeds, strict=True):
        policy = resolve({"conserve_offload": found.parameters}, built.cluster)
        attained.append(play(built, policy, seed).metrics["slo_attainment_pct"])
    assert found.attainment_pct == pytest.approx(sum(attained) / 3, abs=1e-12)


@pytest.mark.parametrize("loads", [("rates=null",), ("randomise=traffic",)])
def test_loads_are_either_given_or_drawn(loads: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"rates=.*: loads are given by rates="):
        tune(configured(tmp_path, *loads), CONSOLE)


def test_the_file_names_the_rule_in_evaluations(found: Tuned) -> None:
    cluster = load_scenario().cluster
    policy = resolve(str(found.path), cluster)
    assert policy.name == f"conserve_offload(tokens={found.parameters['tokens']})"
    stamped: dict[str, Any] = json.loads(found.path.read_text())
    assert {"git_revision", "packages", "workload", "rates"} <= stamped.keys()


@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_stopped_search_goes_on_and_a_finished_one_plays_nothing(
    before: int, found: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = tuning._attainment_pct
    left = [before]

    def stops(*args: Any) -> float:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return played(*args)

    monkeypatch.setattr(tuning, "_attainment_pct", stops)
    with pytest.raises(KeyboardInterrupt):
        tune(configured(tmp_path), CONSOLE)
    left[0] = 5 - before
    gone_on = tune(configured(tmp_path), CONSOLE)
    tried = [row["tokens"] for row in trials(tmp_path)]
    assert len(set(tried)) == 5  # nothing is drawn twice
    assert "512" in tried
    assert left[0] == 0
    assert gone_on.default_pct == found.default_pct
    assert tune(configured(tmp_path), CONSOLE) == gone_on
    with pytest.raises(ConfigurationError, match="another seed; choose another folder"):
        tune(configured(tmp_path, "seed=1"), CONSOLE)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["policy=conserve"], "policy='conserve' has no parameters to tune; these have: "),
        (["budget=100"], "budget=100 is less than trials=5"),
        (["rates=[]"], "rates="),
        (["rates=[-1]"], "rates.0=-1"),
        (["workload=trace", "workload.path=x.csv", "workload.split=test"], "split=test"),
        (
            [
                "workload=mixture",
                "+workload@workload.parts.mine=trace",
                "workload.parts.mine.path=x.csv",
                "workload.parts.mine.split=validation",
            ],
            "workload.parts.mine.split=validation: here it must be train",
        ),
    ],
)
def test_wrong_settings_are_one_clear_error(
    tmp_path: Path, overrides: list[str], says: str
) -> None:
    folder = tmp_path / "tuned"
    with pytest.raises(ConfigurationError, match=says):
        tune(configured(folder, *overrides), CONSOLE)
    assert not (folder / tuning.TUNED).exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"policy": 3}', '{"a": 1}'])
def test_a_file_that_is_no_tuned_rule_is_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tuned.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match="policy"):
        resolve(str(path), load_scenario().cluster)
    with pytest.raises(ConfigurationError, match="No such file"):
        resolve(str(tmp_path / "none.json"), load_scenario().cluster)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (
            {"conserve_offload": {"token": 3}},
            "conserve_offload.token=3: its parameters are: tokens",
        ),
        ({"conserve_offload": {"tokens": "many"}}, "tokens='many' is no number"),
        ({"conserve_offload": {"tokens": 1.5}}, "tokens=1.5 is not a whole number"),
        ({"conserve_offload": {"tokens": -1}}, "tokens=-1 must not be negative"),
        (
            {"conserve_offload": {"tokens": float("nan")}},
            "tokens=nan must not be negative",
        ),
        (
            {"load_switch": {"hysteresis": 1.5}},
            "hysteresis=1.5 must .* at most 1",
        ),
        ({"conserve": {"tokens": 1}}, "conserve.tokens=1: its parameters are: none"),
        ({"nobody": {"tokens": 1}}, "'nobody' is no baseline"),
        ({"conserve": 3}, "is no name"),
        ({"a": {}, "b": {}}, "is no name"),
    ],
)
def test_wrong_parameters_are_one_clear_error(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        resolve(asked, load_scenario().cluster)
