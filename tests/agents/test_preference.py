"""The knob from latency to energy: in training, in evaluation, in exports and at a router."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig

from conserve_gym.agents.algorithms import VIEWS
from conserve_gym.agents.evaluation import play
from conserve_gym.agents.export import export
from conserve_gym.agents.learned import LearnedPolicy
from conserve_gym.agents.policies import resolve
from conserve_gym.agents.preference import DrawnPreference
from conserve_gym.agents.runtime.artifact import Artifact, ArtifactError
from conserve_gym.agents.runtime.preference import PreferenceError
from conserve_gym.agents.runtime.scheduler import Scheduler
from conserve_gym.agents.training import train, training_spec
from conserve_gym.envs.configuration import ConfigurationError, load_scenario
from conserve_gym.envs.placement_env import ConversationPlacementEnv
from conserve_gym.envs.reward import TERMS, RewardWeights, weighted

TinyConfig = Callable[..., DictConfig]
SCENARIO = load_scenario(["reward=energy", "workload.conversations=6", "arrivals.rate=2"])
RUNS = {
    "mlp": (),
    "scorer": ("agent.network=scorer",),
    "joint": ("environment=joint", "agent=maskable_ppo", "agent.network=scorer"),
    "dqn": ("agent=dqn", "agent.network=scorer"),
}


@pytest.fixture(scope="module", params=RUNS)
def run(
    request: pytest.FixtureRequest,
    tiny_config: TinyConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Return the folder of a finished run that has the knob."""
    folder = tmp_path_factory.mktemp("runs") / str(request.param)
    return train(
        tiny_config("preference=true", "reward=energy", f"run={folder}", *RUNS[request.param])
    )


def wrapped(network: str) -> DrawnPreference:
    return DrawnPreference(VIEWS[network](ConversationPlacementEnv(SCENARIO)))


@pytest.mark.parametrize("network", VIEWS)
def test_each_episode_shows_one_preference_and_weighs_energy_by_it(network: str) -> None:
    env = wrapped(network)
    alone = VIEWS[network](ConversationPlacementEnv(SCENARIO))
    drawn = set()
    for seed in range(30):
        seen, _ = env.reset(seed=seed)
        expected, _ = alone.reset(seed=seed)
        preference = float(seen[0])
        drawn.add(round(preference, 3))
        terminated = False
        while not terminated:
            assert env.observation_space.contains(seen)
            np.testing.assert_array_equal(seen[1:], expected)
            assert float(seen[0]) == preference
            seen, reward, terminated, _, info = env.step(np.int64(1))
            expected, _, _, _, _ = alone.step(np.int64(1))
            weights = replace(SCENARIO.reward, energy=preference * SCENARIO.reward.energy)
            assert reward == pytest.approx(weighted(info["reward_terms"], weights), abs=1e-6)
    assert {0.0, 1.0} <= drawn and len(drawn) > 6


@given(
    terms=st.lists(st.floats(-10.0, 10.0), min_size=len(TERMS), max_size=len(TERMS)),
    preference=st.floats(0.0, 1.0),
)
def test_a_preference_moves_the_weight_of_energy_and_no_other(
    terms: list[float], preference: float
) -> None:
    named = dict(zip(TERMS, terms, strict=True))
    weights = RewardWeights(1.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    without = weighted({**named, "energy": 0.0}, weights)
    assert weighted(named, weights.preferring(0.0)) == pytest.approx(without)
    assert weighted(named, weights.preferring(preference)) == pytest.approx(
        without + preference * 0.4 * named["energy"]
    )


def test_the_export_has_the_knob_and_gives_the_scores_of_training(
    run: Path, tmp_path: Path
) -> None:
    scheduler = export(run, tmp_path / "policy", 0.25)
    header = json.loads((tmp_path / "policy" / "policy.json").read_text())
    assert header["preference"]["default"] == 0.25 == scheduler.preference
    golden = json.loads((tmp_path / "policy" / "golden.json").read_text())
    assert golden["preferences"][0] == 0.0 and golden["preferences"][-1] == 1.0
    assert len(header["observation"]["seen_low"]) == len(header["observation"]["seen_high"])


def test_the_same_preference_plays_alike_in_training_s_framework_and_at_a_router(
    run: Path, tmp_path: Path
) -> None:
    export(run, tmp_path / "policy")
    scenario = load_scenario(["workload.conversations=16", "arrivals.rate=1"])
    observations = []
    scheduler = Scheduler.load(tmp_path / "policy", preference=1.0)

    class Keeps:
        name, deployment, reset = "keeps", scheduler.deployment, staticmethod(scheduler.reset)

        @staticmethod
        def decide(observation):
            observations.append(observation)
            return scheduler.decide(observation)

    play(scenario, Keeps, 0)
    scores = {}
    for preference in (0.0, 0.5, 1.0):
        scheduler.preference = preference
        decisions = [scheduler.decision(observation) for observation in observations]
        scores[preference] = [d.scores for d in decisions if not d.fallback]
        learned = LearnedPolicy(run, preference)
        for decision, observation in zip(decisions, observations, strict=True):
            best_two = np.sort(decision.scores)[-2:]
            if len(best_two) and best_two[1] - best_two[0] > 1e-4:
                assert learned.decide(observation) == decision.placement
    assert len(scores[0.0]) > 4
    assert not np.allclose(scores[0.0], scores[1.0], atol=1e-6), "the network looks at it"


def test_an_evaluation_asks_for_a_preference_by_name(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "policy")
    cluster = load_scenario().cluster
    for path in (run, tmp_path / "policy"):
        policy = resolve({str(path): {"preference": 0.5}}, cluster)
        assert policy.name == f"{run.name}(preference=0.5)"
        assert resolve(str(path), cluster).name == run.name
        for wrong in (2, -0.1, "much", True):
            with pytest.raises(PreferenceError, match="preference"):
                resolve({str(path): {"preference": wrong}}, cluster)
        with pytest.raises(ConfigurationError, match="takes no parameters but a preference"):
            resolve({str(path): {"weight": 0.5}}, cluster)


@settings(max_examples=30, deadline=None)
@given(preference=st.floats(allow_nan=True).filter(lambda p: not 0.0 <= p <= 1.0))
def test_a_preference_outside_of_0_to_1_is_refused_by_a_router(preference: float) -> None:
    with pytest.raises(PreferenceError, match="from 0 to 1"):
        Scheduler(None, preference=preference)


def test_a_policy_for_one_weight_has_no_knob(trained: Path, exported: Path, tmp_path: Path) -> None:
    scheduler = Scheduler.load(exported)
    assert scheduler.preference is None
    with pytest.raises(PreferenceError, match="one weight of energy"):
        scheduler.preference = 0.5
    with pytest.raises(PreferenceError, match="one weight of energy"):
        Scheduler.load(exported, preference=0.5)
    with pytest.raises(PreferenceError, match="one weight of energy"):
        LearnedPolicy(trained, 0.5)
    with pytest.raises(PreferenceError, match="one weight of energy"):
        export(trained, tmp_path / "policy", 0.5)


def test_a_router_without_a_policy_takes_the_knob_and_does_nothing_with_it(tmp_path: Path) -> None:
    scheduler = Scheduler.load(tmp_path, strict=False, preference=0.5)
    scheduler.preference = 1.0
    assert scheduler.preference is None


def test_a_header_without_the_knob_that_the_network_has_is_refused(
    run: Path, tmp_path: Path
) -> None:
    export(run, tmp_path / "policy")
    artifact = Artifact.load(tmp_path / "policy")
    assert artifact.preference == 0.0
    with pytest.raises((ArtifactError, ValueError), match=r"context|weight of shape"):
        replace(artifact, preference=None)._check_sizes(tmp_path)


def test_a_knob_needs_a_weight(tiny_config: TinyConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"reward\.energy, which is 0"):
        train(tiny_config("preference=true", f"run={tmp_path / 'run'}"))
    assert not (tmp_path / "run").exists()


def test_the_experiment_has_the_knob(tiny_config: TinyConfig) -> None:
    config = tiny_config("experiment=energy", "agent=maskable_ppo", "agent.network=scorer")
    assert training_spec(config).preference
    assert config.reward.energy > 0.0
