"""The environments: Gymnasium's rules, seeds, rewards, masks and documentation."""

from __future__ import annotations

import copy
import doctest
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as check_env_for_sb3

import conserve_gym.envs  # noqa: F401 - registers the environments
from conserve_gym.envs import placement_env
from conserve_gym.envs.configuration import ConfigurationError, Scenario, load_scenario
from conserve_gym.ledger import Placed
from conserve_gym.observation import FIELDS, FIELDS_OF
from conserve_gym.registration import ENVIRONMENTS

IDS = tuple(ENVIRONMENTS)
SMALL = ("workload.conversations=12", "arrivals.rate=2.0")

ALLOWED_WARNINGS = (
    # One row an engine is the point of the observation; FlattenObservation makes one vector of it.
    "Your observation engines has an unconventional shape",
)


def rollout(env: gymnasium.Env, seed: int, actions: np.random.Generator) -> list[tuple]:
    observation, info = env.reset(seed=seed)
    steps = [(observation, 0.0, info)]
    terminated = False
    while not terminated:
        mask = env.unwrapped.action_masks()
        action = np.int64(actions.choice(np.flatnonzero(mask)))
        observation, reward, terminated, truncated, info = env.step(action)
        assert not truncated
        steps.append((observation, reward, info))
    return steps


@pytest.mark.parametrize("cluster", ["a40_1p3d", "a40_4mixed"])
@pytest.mark.parametrize("identifier", IDS)
def test_checkers_pass_without_other_warnings(identifier: str, cluster: str) -> None:
    env = gymnasium.make(identifier, scenario=[*SMALL, f"cluster={cluster}"], render_mode="ansi")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env.unwrapped)
        check_env_for_sb3(env.unwrapped)
    unexpected = [
        str(warning.message)
        for warning in caught
        if not any(allowed in str(warning.message) for allowed in ALLOWED_WARNINGS)
    ]
    assert not unexpected


@pytest.mark.parametrize("identifier", IDS)
def test_same_seed_same_ledger_and_observations(identifier: str) -> None:
    env = gymnasium.make(identifier, scenario=SMALL)
    first = rollout(env, 3, np.random.default_rng(0))
    digest = env.unwrapped.cluster.ledger.digest()
    second = rollout(env, 3, np.random.default_rng(0))
    assert env.unwrapped.cluster.ledger.digest() == digest
    for (a, reward_a, _), (b, reward_b, _) in zip(first, second, strict=True):
        assert reward_a == reward_b
        assert all(a[group].tobytes() == b[group].tobytes() for group in a)
    rollout(env, 4, np.random.default_rng(0))
    assert env.unwrapped.cluster.ledger.digest() != digest


def test_reset_without_seed_goes_on_with_the_stream() -> None:
    env = gymnasium.make(IDS[0], scenario=SMALL).unwrapped
    env.reset(seed=1)
    first = env.cluster.conversations
    env.reset()
    second = env.cluster.conversations
    env.reset(seed=1)
    assert env.cluster.conversations == first
    env.reset()
    assert env.cluster.conversations == second != first


@pytest.mark.parametrize("identifier", IDS)
def test_choices_never_shift_what_another_policy_would_see(identifier: str) -> None:
    env = gymnasium.make(identifier, scenario=SMALL).unwrapped
    rollout(env, 5, np.random.default_rng(0))
    first = env.cluster.conversations
    rollout(env, 5, np.random.default_rng(1))
    assert env.cluster.conversations == first


def test_reward_is_the_weighted_sum_of_the_terms_and_ends_complete() -> None:
    env = gymnasium.make(IDS[0], scenario=[*SMALL, "reward=energy"])
    steps = rollout(env, 0, np.random.default_rng(0))
    weights = env.unwrapped.scenario.reward
    for _, reward, info in steps[1:]:
        expected = sum(getattr(weights, term) * v for term, v in info["reward_terms"].items())
        assert reward == pytest.approx(expected)
        assert info["dt"] > 0.0 or len(steps) < 2
    metrics = steps[-1][2]["metrics"]
    attained = sum(info["reward_terms"]["attained"] for _, _, info in steps[1:])
    assert attained == pytest.approx(metrics["slo_attainment_pct"] / 100 * 12)
    joules = -sum(info["reward_terms"]["energy"] for _, _, info in steps[1:])
    assert joules == pytest.approx(metrics["energy_kj"])
    assert sum(info["dt"] for _, _, info in steps) + steps[0][2]["sim_time"] == pytest.approx(
        steps[-1][2]["sim_time"]
    )


def test_a_last_turn_of_one_token_has_no_tbt_and_a_finite_reward(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(
        "conv_id,turn,gap_s,input_tokens,new_tokens,output_tokens\na,0,,100,100,5\na,1,0,110,5,1\n"
    )
    env = gymnasium.make(IDS[0], scenario=["workload=trace", f"workload.path={trace}"])
    steps = rollout(env, 0, np.random.default_rng(0))
    assert np.isfinite([reward for _, reward, _ in steps]).all()
    assert steps[-1][2]["reward_terms"]["tbt"] == 0.0
    assert steps[-1][2]["metrics"]["slo_attainment_pct"] == 100.0


def test_mask_leaves_out_full_decoders_and_an_action_against_it_is_carried_out() -> None:
    env = gymnasium.make(
        "conserve_gym/JointPlacement-v0",
        scenario=[
            "workload.conversations=8",
            "arrivals.rate=50",
            "cluster.engines.0.kv_capacity_tokens=65536",
            "cluster.engines.1.kv_capacity_tokens=65536",
        ],
    ).unwrapped
    env.reset(seed=0)
    at_first_decoder = np.int64(0)
    held = 0
    prompts = [conversation.turns[0].input_tokens for conversation in env.cluster.conversations]
    while held + prompts[0] <= 65536:
        assert env.action_masks().all()
        env.step(at_first_decoder)
        held += prompts.pop(0)
    mask = env.action_masks()
    assert not mask[:2].any() and mask[2:].all()
    _, _, terminated, _, _ = env.step(at_first_decoder)
    while not terminated:
        _, _, terminated, _, _ = env.step(np.int64(2))


@pytest.mark.parametrize("identifier", IDS)
def test_placements_are_those_that_the_actions_take(identifier: str) -> None:
    env = gymnasium.make(identifier, scenario=SMALL).unwrapped
    env.reset(seed=0)
    terminated, taken = False, 0
    while not terminated:
        action = np.int64(taken % env.action_space.n)
        row = env.placements()[action]
        _, _, terminated, _, _ = env.step(action)
        placed = [event for event in env.cluster.ledger if isinstance(event, Placed)][taken]
        assert row[:3].tolist() == [placed.prefill_at, placed.decode_at, 1.0]
        taken += 1


def test_joint_actions_offload_later_turns_where_the_scenario_says() -> None:
    env = gymnasium.make(
        "conserve_gym/JointPlacement-v0", scenario=[*SMALL, "candidates.offload_above=[null,16]"]
    ).unwrapped
    assert env.action_space.n == 3 * (1 + 2)
    transfers = {}
    for action in (1, 2):
        env.reset(seed=0)
        terminated = False
        while not terminated:
            _, _, terminated, _, info = env.step(np.int64(action))
        transfers[action] = info["metrics"]["kv_moves_per_conversation"]
    assert transfers[1] == 1.0 < transfers[2]


def test_the_documentation_has_every_observation_field() -> None:
    for identifier in IDS:
        env = gymnasium.make(identifier, scenario=SMALL).unwrapped
        rows = [line for line in (type(env).__doc__ or "").splitlines() if "| linear |" in line]
        rows += [line for line in (type(env).__doc__ or "").splitlines() if "| log |" in line]
        assert len(rows) == len(FIELDS)
        for heading in (
            "Description",
            "Action Space",
            "Observation Space",
            "Rewards",
            "Starting State",
            "Episode End",
            "Arguments",
            "Version History",
        ):
            assert f"## {heading}" in (type(env).__doc__ or "")
        for group, space in env.observation_space.items():
            assert space.shape[-1] == len(FIELDS_OF[group])


def test_environments_register_beside_an_imported_gymnasium() -> None:
    env = gymnasium.make("conserve_gym.envs:conserve_gym/ConversationPlacement-v0", scenario=SMALL)
    assert env.spec is not None and env.spec.id == "conserve_gym/ConversationPlacement-v0"


def play_on(env: gymnasium.Env, seed: int) -> tuple[list[bytes], str]:
    """Play to the end at random; returns all that came back, and the ledger's digest."""
    actions, seen, terminated = np.random.default_rng(seed), [], False
    while not terminated:
        action = np.int64(actions.choice(np.flatnonzero(env.unwrapped.action_masks())))
        observation, reward, terminated, _, info = env.step(action)
        groups = {group: values.tobytes() for group, values in observation.items()}
        seen.append(repr((groups, reward, terminated, info)).encode())
    return seen, env.unwrapped.cluster.ledger.digest()


@cache
def busy(cluster: str, every_turn: bool) -> Scenario:
    scenario = load_scenario([*SMALL, "arrivals.rate=6", f"cluster={cluster}"])
    deployment = replace(scenario.deployment, decides_every_turn=every_turn)
    return replace(scenario, deployment=deployment)


@settings(max_examples=30, deadline=None)
@given(
    identifier=st.sampled_from(IDS),
    cluster=st.sampled_from(["a40_1p3d", "a40_4mixed", "h100_prefill_a100_decode"]),
    every_turn=st.booleans(),
    seed=st.integers(0, 2**32),
    decisions=st.integers(0, 10),
)
def test_a_copy_in_mid_episode_has_the_same_future_and_leaves_the_original_alone(
    identifier: str, cluster: str, every_turn: bool, seed: int, decisions: int
) -> None:
    def begun() -> gymnasium.Env:
        env = gymnasium.make(identifier, scenario=busy(cluster, every_turn))
        env.reset(seed=seed)
        actions = np.random.default_rng(seed)
        for _ in range(decisions):
            env.step(np.int64(actions.choice(np.flatnonzero(env.unwrapped.action_masks()))))
        return env

    undisturbed = play_on(begun(), seed)
    env = begun()
    first, second = copy.deepcopy(env), copy.deepcopy(env)
    first.step(first.action_space.sample())
    play_on(first, seed + 1)
    first.reset()  # draws from the copy's own stream
    assert play_on(env, seed) == undisturbed
    assert play_on(second, seed) == undisturbed
    for one in (env, second):
        one.reset()
    assert env.unwrapped.cluster.conversations == second.unwrapped.cluster.conversations


@pytest.mark.parametrize("identifier", IDS)
def test_render_shows_every_engine(identifier: str) -> None:
    env = gymnasium.make(identifier, scenario=SMALL, render_mode="ansi")
    env.reset(seed=0)
    text = env.render()
    assert isinstance(text, str)
    assert text.count("KV [") == 4


@pytest.mark.parametrize("identifier", IDS)
def test_pictures_have_one_shape_and_show_what_happens(identifier: str) -> None:
    few = ("workload.conversations=4", "arrivals.rate=2.0")
    env = gymnasium.make(identifier, scenario=few, render_mode="rgb_array")
    env.reset(seed=0)
    frames = [env.render()]
    terminated = False
    while not terminated:
        _, _, terminated, _, _ = env.step(np.int64(1))
        frames.append(env.render())
    assert {frame.shape for frame in frames} == {frames[0].shape}
    assert {str(frame.dtype) for frame in frames} == {"uint8"}
    assert len({frame.tobytes() for frame in frames}) == len(frames)


def test_a_picture_changes_nothing_and_neither_does_a_copy() -> None:
    plain = gymnasium.make(IDS[0], scenario=SMALL).unwrapped
    drawn = gymnasium.make(IDS[0], scenario=SMALL, render_mode="rgb_array").unwrapped
    for env in (plain, drawn):
        env.reset(seed=0)
        env.step(np.int64(1))
    twin = copy.deepcopy(drawn)
    assert (twin.render() == drawn.render()).all()
    for _ in range(3):
        plain.step(np.int64(1))
        drawn.step(np.int64(1))
        drawn.render()
    assert not (twin.render() == drawn.render()).all()
    for _ in range(3):
        twin.step(np.int64(1))
    assert (twin.render() == drawn.render()).all()
    digests = {env.cluster.ledger.digest() for env in (plain, drawn, twin)}
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("scenario", "says"),
    [
        (["cluster=nowhere"], "nowhere"),
        (["workload.conversation=3"], "workload.conversation"),
        (["cluster.engines.0.role=oracle"], "cluster.engines.0.role"),
        (["cluster.engines.0.role=decode"], "cannot disaggregate"),
        (["reward.attained=much"], "reward.attained"),
        (["deployment.reservation=all"], "deployment"),
        (["candidates.offload_above=[null,-1]"], r"candidates.offload_above.1.*=-1"),
        (["candidates.offload_above=[8,8]"], "twice"),
        (["candidates.offload_above=[]"], r"candidates.offload_above=\[\]"),
        (["candidates.offload_above=512"], "candidates.offload_above=512"),
        (["candidates.offload_above=[.nan]"], "candidates.offload_above"),
    ],
)
def test_a_wrong_scenario_is_one_clear_error(scenario: list[str], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        gymnasium.make(IDS[0], scenario=scenario)


def test_a_wrong_action_and_a_finished_episode_are_errors() -> None:
    env = gymnasium.make(IDS[0], scenario=["workload.conversations=1"]).unwrapped
    env.reset(seed=0)
    with pytest.raises(ValueError, match="not in Discrete"):
        env.step(np.int64(2))
    env.step(np.int64(0))
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.int64(0))


def test_the_examples_in_the_documentation_run() -> None:
    failed, tried = doctest.testmod(placement_env)
    assert tried > 0
    assert failed == 0
