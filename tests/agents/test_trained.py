"""Policies that come trained."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from conserve_gym.agents import trained
from conserve_gym.agents.evaluation import play
from conserve_gym.agents.policies import resolve
from conserve_gym.agents.runtime.artifact import HEADER, Artifact
from conserve_gym.agents.runtime.scheduler import Scheduler
from conserve_gym.agents.trained import TRAINED
from conserve_gym.envs.configuration import load_scenario


def attainment(name: str, overrides: list[str]) -> float:
    scenario = load_scenario(overrides)
    policy = resolve(name, scenario.cluster)
    episodes = [play(scenario, policy, seed) for seed in (0, 1)]
    return float(np.mean([one.metrics["slo_attainment_pct"] for one in episodes]))


@pytest.mark.parametrize("name", TRAINED)
def test_each_loads_is_small_and_says_where_it_comes_from(name: str) -> None:
    path = TRAINED[name]
    assert path.stat().st_size < 300_000
    assert Artifact.load(path).name == name
    with zipfile.ZipFile(path) as archive:
        header = json.loads(archive.read(HEADER))
    assert header["training"]["config"]["seed"] == 0
    command = " ".join(header["training"]["run"][0]["command"])
    assert f"experiment={name}" in command.split()
    readme = (Path(trained.__file__).parent / "README.md").read_text(encoding="utf-8")
    assert f"`{name}`" in readme


@pytest.mark.parametrize("cluster", ["a40_1p3d", "a40_4mixed", "a40_1p7d"])
def test_it_decides_by_itself_on_fleets_of_other_sizes_and_roles(cluster: str) -> None:
    scenario = load_scenario([f"cluster={cluster}", "workload.conversations=40"])
    policy = resolve("paper_cluster", scenario.cluster)
    assert isinstance(policy, Scheduler)
    episode = play(scenario, policy, 0)
    assert len(episode.normalised) == 40
    assert episode.metrics["fallback_pct"] == 0.0


def test_the_one_for_fleets_decides_by_itself_on_other_tiers() -> None:
    scenario = load_scenario(["cluster=h100_1p3d", "workload.conversations=40"])
    episode = play(scenario, resolve("fleet", scenario.cluster), 0)
    assert episode.metrics["fallback_pct"] == 0.0


def test_a_knob_moves_the_one_for_energy_from_latency_to_energy() -> None:
    scenario = load_scenario(["cluster=h100_1p3d", "workload.conversations=100"])
    policy = resolve({"energy": {"preference": 0.0}}, scenario.cluster)
    assert isinstance(policy, Scheduler)
    latency, energy = [], []
    for preference in (0.0, 0.5, 1.0):
        policy.preference = preference
        metrics = play(scenario, policy, 0).metrics
        assert metrics["fallback_pct"] == 0.0
        latency.append(metrics["e2e_p50"])
        energy.append(metrics["energy_kj"])
    assert latency == sorted(latency)
    assert energy == sorted(energy, reverse=True)
    assert energy[2] < 0.95 * energy[0]


@pytest.mark.parametrize("name", ["paper_cluster", "paper_cluster_turns", "fleet"])
def test_under_overload_each_is_well_ahead_of_conserve(name: str) -> None:
    overload = ["arrivals.rate=2"]
    assert attainment(name, overload) > attainment("conserve", overload) + 10.0
