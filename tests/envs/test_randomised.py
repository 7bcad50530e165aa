"""Scenarios drawn at random: what is drawn, from what, and how environments play them."""

from __future__ import annotations

import copy
import time
from functools import cache

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conserve_gym import rules
from conserve_gym.actions import KINDS, actions_of
from conserve_gym.agents.evaluation import play
from conserve_gym.agents.policies import resolve
from conserve_gym.deployment import DEFAULT_DEPLOYMENT, Deployment
from conserve_gym.envs.capacity import Demand, capacity
from conserve_gym.envs.configuration import (
    ConfigurationError,
    Scenario,
    compose_scenario,
    load_scenario,
    scenario,
)
from conserve_gym.envs.placement_env import most
from conserve_gym.envs.randomised import RandomisedScenario, load_scenarios
from conserve_gym.envs.workloads.workload import draw_episode
from conserve_gym.fleet import Fleet
from conserve_gym.ledger import ConversationEnded, Metered
from conserve_gym.observation import Observation
from conserve_gym.placement import Placement
from conserve_gym.registration import ENVIRONMENTS

WORKLOADS = ("~randomise.workloads.claude_code", "~randomise.workloads.chat")  # slow to compose
SEEDS = st.integers(0, 2**32 - 1)


@cache
def fleets() -> RandomisedScenario:
    drawn = load_scenarios(["randomise=fleet", *WORKLOADS, "randomise.conversations=10"])
    assert isinstance(drawn, RandomisedScenario)
    return drawn


def drawn(seed: int) -> Scenario:
    return fleets().draw(np.random.default_rng(seed))


def what(one: Scenario) -> tuple[object, ...]:
    rng = np.random.default_rng(0)
    return one.cluster, one.arrivals, draw_episode(one.workload, one.arrivals, rng)


@given(seed=SEEDS)
@settings(max_examples=30, deadline=None)
def test_the_same_seed_draws_the_same_scenario(seed: int) -> None:
    assert what(drawn(seed)) == what(drawn(seed))
    assert what(drawn(seed)) != what(drawn(seed + 1))


@given(seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_every_drawn_cluster_can_be_played_and_is_no_larger_than_announced(seed: int) -> None:
    one = drawn(seed)
    fleet = one.cluster.fleet(DEFAULT_DEPLOYMENT)
    assert fleet.roles in set(fleets().roles(DEFAULT_DEPLOYMENT))
    assert fleet.can_disaggregate
    for kind in KINDS:
        engines, actions = most(fleets(), kind, DEFAULT_DEPLOYMENT)
        assert len(fleet.roles) <= engines
        assert len(actions_of(kind, fleet).meanings) <= actions
    metrics = play(one, resolve("conserve", one.cluster), seed).metrics
    assert 0.0 <= metrics["slo_attainment_pct"] <= 100.0


def test_draws_vary_in_everything_that_is_drawn() -> None:
    many = [drawn(seed) for seed in range(200)]
    clusters = [one.cluster for one in many]
    assert {len(cluster.nodes) for cluster in clusters} == set(range(2, 9))
    assert {len(cluster.hardware) for cluster in clusters} == {1, 2}
    assert {len(set(cluster.nodes)) for cluster in clusters} >= {1, 2}
    assert {type(one.arrivals).__name__ for one in many} == {"Poisson", "Gamma", "OnOff"}
    shares = np.mean([any(e.cap_w for e in cluster.engines) for cluster in clusters])
    assert 0.2 < shares < 0.8
    names = {one.workload.name for one in many}
    assert names >= {"miniswe", "miniswe_tools"}
    assert any(name.startswith("mixture") for name in names)
    token_us = [cluster.hardware[cluster.standalone].prefill.token_us for cluster in clusters]
    assert len(set(token_us)) > 190, "constants are moved in each"
    of_lone = [cluster.hardware[cluster.standalone].prefill.token_us for cluster in clusters]
    largest = [max(t.prefill.token_us for t in c.hardware.values()) for c in clusters]
    assert np.mean([one == other for one, other in zip(of_lone, largest, strict=True)]) > 0.9


def test_constants_move_by_their_factors_and_no_further() -> None:
    alone = load_scenarios(["randomise=traffic", *WORKLOADS, "randomise.constants=[0.5,2]"])
    assert isinstance(alone, RandomisedScenario)
    measured = alone.nominal.cluster.hardware["a40_300w"]
    factors = [
        alone.draw(np.random.default_rng(seed)).cluster.hardware["a40_300w"].prefill.token_us
        / measured.prefill.token_us
        for seed in range(100)
    ]
    assert 0.5 <= min(factors) < 0.6 and 1.7 < max(factors) <= 2.0
    assert np.exp(np.mean(np.log(factors))) == pytest.approx(1.0, rel=0.15)


def test_what_is_not_drawn_is_the_nominal_scenario_s() -> None:
    some = load_scenarios(
        ["randomise=traffic", "~randomise.workloads", "+randomise.workloads={}", "reward=energy"]
    )
    assert isinstance(some, RandomisedScenario)
    one = some.draw(np.random.default_rng(0))
    nominal = some.nominal
    assert one.cluster is nominal.cluster
    assert one.reward is nominal.reward
    assert one.workload.name == nominal.workload.name == "miniswe"
    assert not some.draws_clusters


def test_drawing_takes_milliseconds() -> None:
    fleets()
    began = time.process_time()
    for seed in range(50):
        drawn(seed)
    assert (time.process_time() - began) / 50 < 0.02


@pytest.mark.parametrize("workload", ["miniswe", "miniswe_heavy_appends", "miniswe_10_turns"])
@pytest.mark.parametrize("cluster", ["a40_1p3d", "h100_1p3d"])
def test_a_load_of_one_is_near_what_a_cluster_serves(cluster: str, workload: str) -> None:
    one = load_scenario([f"cluster={cluster}", f"workload={workload}"])
    most_a_second = capacity(one.cluster, one.deployment, Demand.of(one.workload))
    one = load_scenario(
        [f"cluster={cluster}", f"workload={workload}", f"arrivals.rate={4 * most_a_second}"]
    )
    ledger = play(one, resolve("colocate", one.cluster), 0).ledger
    ended = [event.time for event in ledger if isinstance(event, ConversationEnded)]
    served = (204 - 51) / (ended[203] - ended[50])  # neither the first nor the last
    assert 0.6 < served / most_a_second < 1.6


def test_capacity_grows_with_engines_and_falls_with_work() -> None:
    demands = [
        Demand.of(load_scenario([f"workload={name}"]).workload)
        for name in ("miniswe", "miniswe_heavy_appends", "miniswe_tools", "miniswe_10_turns")
    ]
    sizes = [load_scenario([f"cluster={name}"]).cluster for name in ("a40_1p3d", "a40_1p7d")]
    for demand in demands:
        small, large = (capacity(spec, DEFAULT_DEPLOYMENT, demand) for spec in sizes)
        assert small < large < 3.0 * small
    lightest, *others = (capacity(sizes[0], DEFAULT_DEPLOYMENT, demand) for demand in demands)
    assert all(other < lightest for other in others)
    mixed = capacity(sizes[0], DEFAULT_DEPLOYMENT, Demand.mixed(demands[:2], [0.5, 0.5]))
    assert others[0] < mixed < lightest


@pytest.mark.parametrize("identifier", ENVIRONMENTS)
def test_an_environment_plays_a_drawn_scenario_an_episode_in_fixed_spaces(identifier: str) -> None:
    env = gymnasium.make(identifier, scenario=fleets()).unwrapped
    actions, sizes = np.random.default_rng(0), set()
    for episode in range(6):
        observation, info = env.reset(seed=None if episode else 7)
        sizes.add(len(env.fleet.roles))
        terminated = False
        while not terminated:
            assert env.observation_space.contains(observation)
            real = len(env.fleet.roles)
            assert (observation["engines"][:real].any(axis=1)).all()
            assert not observation["engines"][real:].any()
            mask = env.action_masks()
            assert mask.shape == (env.action_space.n,) == env.placements().shape[:1]
            assert not mask[len(env.actions.meanings) :].any()
            action = np.int64(actions.choice(np.flatnonzero(mask)))
            observation, _, terminated, _, info = env.step(action)
        assert info["metrics"]["span_s"] > 0.0
    assert len(sizes) > 2


class Disaggregates:
    name = "disaggregates"
    deployment = DEFAULT_DEPLOYMENT

    def reset(self, seed: int) -> None:
        pass

    def decide(self, observation: Observation) -> Placement:
        return rules.place(observation, disaggregate=True)


def test_an_environment_s_seed_plays_what_an_evaluation_of_the_draw_plays() -> None:
    env = gymnasium.make("conserve_gym/ConversationPlacement-v0", scenario=fleets()).unwrapped
    for seed in range(3):
        env.reset(seed=seed)
        terminated = False
        while not terminated:
            _, _, terminated, _, _ = env.step(np.int64(1))
        one = drawn(seed)
        episode = play(one, Disaggregates(), seed)
        here, there = (
            [event for event in ledger if not isinstance(event, Metered)]  # read at each step here
            for ledger in (env.cluster.ledger, episode.ledger)
        )
        assert here == there


def test_a_copy_goes_on_with_the_same_draws() -> None:
    env = gymnasium.make("conserve_gym/JointPlacement-v0", scenario=fleets()).unwrapped
    env.reset(seed=0)
    env.step(np.int64(0))
    twin = copy.deepcopy(env)
    for one in (env, twin):
        one.reset()
    assert env.cluster.conversations == twin.cluster.conversations
    assert env.scenario.cluster == twin.scenario.cluster


def test_an_action_that_the_cluster_does_not_have_is_refused() -> None:
    env = gymnasium.make("conserve_gym/JointPlacement-v0", scenario=fleets()).unwrapped
    env.reset(seed=0)
    while len(env.fleet.roles) == env.most_engines:
        env.reset()
    with pytest.raises(ValueError, match="none of this cluster's"):
        env.step(np.int64(env.action_space.n - 1))


def test_an_evaluation_refuses_to_draw() -> None:
    config = compose_scenario(["randomise=traffic"])
    with pytest.raises(ConfigurationError, match="randomise"):
        scenario(config)


def test_every_engine_mixed_is_announced_alike() -> None:
    announced = set(fleets().roles(Deployment(all_mixed=True)))
    assert all(Fleet(roles, (1,) * len(roles)).can_disaggregate for roles in announced)
    assert {len(set(roles)) for roles in announced} == {1}


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("randomise.load=[1.5,0.5]", r"randomise.load=.*rise"),
        ("randomise.load=[0,1]", "randomise.load.0"),
        ("randomise.arrivals.processes={poisson: 0, bursty: 0, on_off: 0}", "weight above 0"),
        ("randomise.arrivals.on_share=[0.5,1.0]", "below 1"),
        ("randomise.cluster.engines=[1,4]", "from 2 at least"),
        ("randomise.mixed_share=2", "randomise.mixed_share"),
        ("+randomise.sizes=3", "randomise.sizes"),
        ("+randomise.workloads.nowhere=1", "nowhere"),
    ],
)
def test_a_wrong_value_is_one_clear_error(override: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        load_scenarios(["randomise=fleet", *WORKLOADS, override])
