"""Hardware that was not measured is marked wherever results appear."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gymnasium
import pytest
from omegaconf import DictConfig, OmegaConf
from pydantic import TypeAdapter
from rich.console import Console

import conserve_gym.envs  # noqa: F401 - registers the environments
from conserve_gym.agents import report
from conserve_gym.agents.evaluation import Episode, play
from conserve_gym.agents.export import export
from conserve_gym.agents.runtime.artifact import HEADER
from conserve_gym.agents.training import train
from conserve_gym.baselines.registry import make_baseline
from conserve_gym.envs.calibration import derive
from conserve_gym.envs.configuration import Scenario, load_scenario, validated
from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.envs.serving.profile import site
from conserve_gym.registration import ENVIRONMENTS

CONF = Path(__file__).parents[2] / "conf"
CAVEATS = (
    "derived hardware: h100_b",
    "cap by a rule measured on an A40 at 300 to 200 W: h100_b at 500 W",
)


@pytest.fixture(scope="module")
def measured() -> Scenario:
    """Return a scenario on a tier all of which is said to be measured."""
    scenario = load_scenario(["cluster=h100_1p3d", "workload.conversations=4"])
    tier = scenario.cluster.hardware["h100"]
    tier = replace(tier, provenance=replace(tier.provenance, carried=()))
    return replace(scenario, cluster=replace(scenario.cluster, hardware={"h100": tier}))


@pytest.fixture(scope="module")
def derived(measured: Scenario) -> Scenario:
    """Return the scenario on a GPU that nobody has measured, its decoders capped."""
    gpu = validated(derive.Gpu, OmegaConf.load(CONF / "gpu" / "h100.yaml"))
    model = validated(derive.Model, OmegaConf.load(CONF / "model" / "qwen3_8b.yaml"))
    prefiller, decoders = (replace(one, hardware="h100_b") for one in measured.cluster.engines)
    cluster = replace(
        measured.cluster,
        hardware={"h100_b": derive.hardware(replace(gpu, name="H100 B"), model)},
        engines=(prefiller, replace(decoders, cap_w=500.0)),
        standalone="h100_b",
    )
    return replace(measured, cluster=cluster)


def played(scenario: Scenario) -> list[Episode]:
    return [
        play(scenario, make_baseline(name, site(scenario.cluster)), 0)
        for name in ("colocate", "conserve")
    ]


def printed(scenario: Scenario, episodes: list[Episode]) -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(
        report.table(report.summarise(episodes), episodes, report.Setting.of([scenario]), "user")
    )
    assert isinstance(console.file, io.StringIO)
    return " ".join(console.file.getvalue().split())


def test_an_evaluation_on_derived_hardware_says_so(derived: Scenario, tmp_path: Path) -> None:
    episodes = played(derived)
    summary = report.summarise(episodes)
    assert f"Caveats: {'; '.join(CAVEATS)}." in printed(derived, episodes)
    report.write(tmp_path, summary, episodes, report.Setting.of([derived]))
    for name in ("results.csv", "summary.csv"):
        with (tmp_path / name).open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert {row["caveats"] for row in rows} == {"; ".join(CAVEATS)}
    title = report.figure(summary, episodes, report.Setting.of([derived])).get_suptitle()
    assert title.splitlines()[1:] == list(CAVEATS)


def test_an_evaluation_on_measured_hardware_has_no_caveats(
    measured: Scenario, tmp_path: Path
) -> None:
    episodes = played(measured)
    summary = report.summarise(episodes)
    assert "Caveats" not in printed(measured, episodes)
    setting = report.Setting.of([measured])
    report.write(tmp_path, summary, episodes, setting)
    with (tmp_path / "summary.csv").open(newline="") as file:
        assert {row["caveats"] for row in csv.DictReader(file)} == {""}
    assert (
        len(
            report.figure(summary, episodes, report.Setting.of([measured]))
            .get_suptitle()
            .splitlines()
        )
        == 1
    )


def test_energy_by_engine_and_phase_is_in_the_results_alone(
    measured: Scenario, tmp_path: Path
) -> None:
    episodes = played(measured)
    report.write(tmp_path, report.summarise(episodes), episodes, report.Setting.of([measured]))
    named = {}
    for name in ("results.csv", "summary.csv"):
        with (tmp_path / name).open(newline="") as file:
            named[name] = {row["metric"] for row in csv.DictReader(file)}
    assert named["results.csv"] - named["summary.csv"] == {
        f"engine_{i}_{phase}_kj"
        for i in range(4)
        for phase in ("prefill", "mixed", "decode", "idle")
    }


def test_an_evaluation_says_what_of_measured_hardware_was_carried_over() -> None:
    scenario = load_scenario(["cluster=h100_1p3d", "workload.conversations=4"])
    says = "Caveats: carried over, not measured there: mixed steps, overhead (h100)."
    assert says in printed(scenario, played(scenario))


@pytest.mark.parametrize("identifier", ENVIRONMENTS)
def test_an_environment_says_so_at_every_step(
    identifier: str, derived: Scenario, measured: Scenario
) -> None:
    env = gymnasium.make(identifier, scenario=derived)
    _, info = env.reset(seed=0)
    assert info["caveats"] == CAVEATS
    assert env.step(env.action_space.sample())[4]["caveats"] == CAVEATS
    assert gymnasium.make(identifier, scenario=measured).reset(seed=0)[1]["caveats"] == ()


def test_a_trained_and_an_exported_policy_say_so(
    tiny_config: Callable[..., DictConfig], derived: Scenario, tmp_path: Path
) -> None:
    config = tiny_config(f"run={tmp_path / 'run'}", "total_timesteps=128")
    cluster = TypeAdapter(ClusterSpec).dump_python(derived.cluster, mode="json")
    OmegaConf.update(config, "cluster", cluster, merge=False)
    run = train(config)
    assert [part["caveats"] for part in json.loads((run / "run.json").read_text())] == [
        list(CAVEATS)
    ]
    export(run, tmp_path / "policy")
    training = json.loads((tmp_path / "policy" / HEADER).read_text())["training"]
    assert training["run"][0]["caveats"] == training["export"]["caveats"] == list(CAVEATS)
