"""The user's clock: one whole run, as any evaluation plays it."""

from __future__ import annotations

import math

import pytest
from settings import arriving, drawn, tiny

from conserve_gym.agents.evaluation import measured
from conserve_gym.agents.reproduction import user_clock
from conserve_gym.agents.reproduction.arms import ARMS, Run
from conserve_gym.envs.configuration import load_scenario
from conserve_gym.envs.serving.cluster import Cluster

CLUSTER = tiny().cluster
OWN = [name for name, arm in ARMS.items() if arm.own_run]
LATER = sum(len(played) - 1 for played in drawn().turns)


def evaluated(name: str, cluster: str = "a40_1p3d") -> dict[str, float]:
    """Return what an evaluation says of an arm."""
    policy = ARMS[name].policy()
    spec = load_scenario([f"cluster={cluster}"]).cluster
    metrics = measured(Cluster(spec, policy.deployment, arriving(drawn())), policy, 42).metrics
    return {key: value for key, value in metrics.items() if not key.startswith("artifact_")}


def played(name: str, share: float) -> dict[str, float]:
    return user_clock.play(CLUSTER, ARMS[name], drawn(), share)


@pytest.mark.parametrize("name", [one for one in OWN if ARMS[one].run is not Run.FREE_PREFILL])
def test_an_arm_is_what_an_evaluation_makes_of_it(name: str) -> None:
    assert played(name, 0.0) == evaluated(name)


@pytest.mark.parametrize("name", [one for one in OWN if ARMS[one].overcounts is None])
def test_arms_without_misrouting_do_not_misroute(name: str) -> None:
    assert played(name, 1.0) == played(name, 0.0)


def test_the_prefiller_that_decodes_too_is_the_packaged_cluster() -> None:
    assert played("conserve_oracle_4", 0.0) == evaluated("conserve_oracle_4", "a40_1m3d")
    assert evaluated("conserve_oracle_4") != evaluated("conserve_oracle_4", "a40_1m3d")


def test_misrouted_turns_cost_moves_and_time() -> None:
    without, found = played("ampd_played", 0.0), played("ampd_played", 1.0)
    assert without["kv_moves_per_conversation"] == 1.0
    # Every later turn pulls its history to the prefill engine, and its new KV goes home.
    assert found["kv_moves_per_conversation"] == 1.0 + 2.0 * LATER / 12
    assert found["ttfet_p95"] > without["ttfet_p95"]
    assert all(math.isfinite(value) for value in found.values())
