"""A cell comes out the same to the last digit, and tells what it was made from."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from conserve_gym.agents.benchmark import cells
from conserve_gym.agents.benchmark.cells import (
    asked_of,
    episode,
    failure,
    key_of,
    packed,
    scenario_of,
    score,
    unpacked,
)
from conserve_gym.agents.evaluation import Episode
from conserve_gym.envs.configuration import Scenario, compose_scenario
from conserve_gym.ledger import TurnArrived


def settings(*overrides: str) -> str:
    composed = compose_scenario(["workload.conversations=12", "arrivals.rate=2.0", *overrides])
    return json.dumps(OmegaConf.to_container(composed, resolve=True), sort_keys=True)


SETTINGS = settings()


def test_all_but_the_timing_is_the_same_to_the_last_digit() -> None:
    first, again = (score(SETTINGS, "random", "", 500_000) for _ in range(2))
    assert set(first) == {"metrics", "timing", "made_from", "normalised"}
    assert set(first["timing"]) == {"seconds", "decision_us_mean", "decision_us_p99"}
    assert 0.0 < first["timing"]["decision_us_mean"] < 1e6
    for part in ("metrics", "made_from", "normalised"):
        assert first[part] == again[part]
    stored = json.loads(json.dumps(first))
    assert stored["metrics"] == again["metrics"]
    assert {"slo_attainment_pct", "engine_0_prefill_kj", "preemptions"} <= set(first["metrics"])
    assert {"git_revision", "config_sha256", "python", "numpy"} <= set(first["made_from"])


def test_the_digest_is_of_scenario_and_policy() -> None:
    scored = [
        score(*one, 1)["made_from"]["config_sha256"]
        for one in (
            (SETTINGS, "conserve_offload", ""),
            (SETTINGS, {"conserve_offload": {"tokens": 2048}}, ""),
            (SETTINGS, "conserve_offload", "another file"),
            (settings("arrivals.rate=2.5"), "conserve_offload", ""),
        )
    ]
    assert len(set(scored)) == 4


def test_one_seed_draws_one_episode_for_everybody() -> None:
    scenario = scenario_of(SETTINGS)
    arrived = [
        [
            (event.time, event.conversation, event.input_tokens)
            for event in episode(scenario, policy, 3).ledger
            if isinstance(event, TurnArrived) and event.turn == 0
        ]
        for policy in ("colocate", "full_disagg", "random")
    ]
    assert arrived[0] == arrived[1] == arrived[2]


def test_a_policy_that_fails_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(scenario: Scenario, asked: Any, seed: int) -> Episode:
        raise ZeroDivisionError("no engine\nis free")

    monkeypatch.setattr(cells, "episode", failing)
    assert failure(score(SETTINGS, "random", "", 0)) == "ZeroDivisionError: no engine is free"


def test_keys_and_latencies_come_back() -> None:
    for asked in ("runs/quick", {"conserve_offload": {"tokens": 512}}):
        assert asked_of(key_of(asked)) == asked
    latencies = np.array([[1.0, np.nan, 2.5], [3.25, 1.5, 7.0]])
    assert np.array_equal(unpacked(packed(latencies)), latencies, equal_nan=True)
