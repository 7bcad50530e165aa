"""Thresholds are fitted to policies that have some, and say what they do not reach."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path

import hydra
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from conserve_gym.agents.evaluation import play
from conserve_gym.agents.explanation.knobs import KNOBS
from conserve_gym.agents.explanation.project import run
from conserve_gym.agents.explanation.projection import (
    Rows,
    agreements,
    decisions,
    fit,
    losses,
    rows,
)
from conserve_gym.agents.policies import resolve
from conserve_gym.envs.configuration import Scenario, load_scenario
from conserve_gym.envs.serving.profile import site
from conserve_gym.ledger import TurnArrived

LLM_D, ISL, LOAD, ISL_OR_LOAD = KNOBS
LOADED = ("workload=claude_code", "workload.conversations=24", "arrivals.rate=1.0")


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario(list(LOADED))


def given_rows(
    first: list[bool], uncached: list[int], cached: list[int], answers: list[bool]
) -> Rows:
    tokens = np.array(uncached, dtype=np.float64)
    share = tokens / (tokens + np.where(first, 0, cached))
    load = tokens % 7
    return Rows(np.array(first), tokens, share, load, np.array(answers))


@settings(deadline=None)
@given(st.data(), st.integers(1, 40))
def test_a_fit_is_never_worse_than_one_answer(data: st.DataObject, count: int) -> None:
    def lists(of: st.SearchStrategy[int]) -> list[int]:
        return data.draw(st.lists(of, min_size=count, max_size=count))

    first = [bool(one) for one in lists(st.integers(0, 1))]
    answers = [bool(one) for one in lists(st.integers(0, 1))]
    table = given_rows(first, lists(st.integers(1, 30_000)), lists(st.integers(0, 9_000)), answers)
    values = fit(LLM_D, table).values
    tokens = int(values["tokens"])
    remote = (table.uncached >= tokens) if tokens else np.zeros(count, dtype=bool)

    def agrees(said: np.ndarray) -> float:
        sorts = [sort for sort in (table.first, ~table.first) if sort.any()]
        return float(np.mean([(said == table.disaggregates)[sort].mean() for sort in sorts]))

    assert agrees(remote) >= max(agrees(np.full(count, answer)) for answer in (False, True)) - 1e-4


def test_a_gap_is_parted_in_its_middle() -> None:
    table = given_rows([True] * 4, [100, 120, 9_000, 10_000], [0] * 4, [False, False, True, True])
    assert 500 < int(fit(LLM_D, table).values["tokens"]) < 3_000


def test_cold_prompts_are_beyond_lengths_and_shares() -> None:
    """Dynamo's share of a prompt that nobody has cached is 1, and no threshold lies above."""
    table = given_rows([True] * 4, [100, 120, 9_000, 10_000], [0] * 4, [False, False, True, True])
    setting = fit(ISL, table)
    below = (table.uncached < setting.values["tokens"]) & (table.share < setting.values["ratio"])
    assert not below.any()


@pytest.mark.parametrize(
    "asked",
    [
        {"llm_d": {"tokens": 700}},
        {"dynamo_isl": {"tokens": 3000, "ratio": 0.5}},
        {"dynamo_load": {"busy": 2.0}},
    ],
)
def test_a_routers_own_rule_is_found_again(scenario: Scenario, asked: dict[str, dict]) -> None:
    policy = resolve(asked, scenario.cluster)
    known, fleet = site(scenario.cluster), scenario.cluster.fleet(policy.deployment)
    played = [
        list(decisions(play(scenario, policy, seed).ledger, fleet, policy.deployment))
        for seed in (0, 1, 2)
    ]
    knobs = next(one for one in KNOBS if one.rule in asked)
    setting = fit(knobs, rows([*played[0], *played[1]], known))
    for found in agreements([setting], played[0], played[2:], known):
        assert found.agrees.mean > 97.0, setting.values


def test_a_pinned_policys_ledger_tells_of_every_turn(scenario: Scenario) -> None:
    policy = resolve({"conserve_offload": {"tokens": 900}}, scenario.cluster)
    ledger = play(scenario, policy, 0).ledger
    fleet = scenario.cluster.fleet(policy.deployment)
    decided = list(decisions(ledger, fleet, policy.deployment))
    arrived = [event for event in ledger if isinstance(event, TurnArrived)]
    assert len(decided) == len(arrived)
    new = {(event.conversation, event.turn): event.new_tokens for event in arrived}
    for observation, disaggregates in decided:
        turn = observation.conversation, observation.turn
        assert disaggregates == (observation.turn == 0 or new[turn] >= 900)
        assert observation["new"] == new[turn]


def test_a_policy_loses_nothing_to_itself(scenario: Scenario) -> None:
    policy = resolve("conserve", scenario.cluster)
    episodes = [play(scenario, policy, seed) for seed in (0, 1)]
    own, again = losses(scenario, policy, episodes, [resolve("conserve", scenario.cluster)])
    assert own == again
    assert again.attainment_less == again.reward_less == (0.0, 0.0, 0.0)


def test_everything_is_written(tmp_path: Path) -> None:
    overrides = ["policy=conserve", "seeds=2", "training_episodes=1", f"output={tmp_path}"]
    with hydra.initialize_config_module("conserve_gym.conf", version_base="1.3"):
        config = hydra.compose("project", [*overrides, "workload.conversations=12"])
    written = run(config, Console(quiet=True))
    assert all(path.stat().st_size for path in written)
    with (tmp_path / "losses.csv").open() as file:
        names = [row["policy"].partition("(")[0] for row in csv.DictReader(file)]
    assert names == ["conserve", *(knobs.rule for knobs in KNOBS), "always disaggregate"]
    plugins = yaml.safe_load((tmp_path / "llm_d.yaml").read_text())["plugins"]
    parameters = json.loads((tmp_path / "llm_d.json").read_text())["policy"]["llm_d"]
    assert plugins[0]["parameters"] == {"nonCachedTokens": parameters["tokens"]}
    command = shlex.split((tmp_path / "dynamo_isl_or_load.sh").read_text().replace("\\\n", ""))
    dynamo = json.loads(command[command.index("--router-conditional-disagg-config") + 1])
    assert dynamo["policy"] == "isl_or_load"
    assert 0.0 <= dynamo["eff_isl_ratio_threshold"] <= 1.0
    cluster = load_scenario().cluster
    assert resolve(str(tmp_path / "llm_d.json"), cluster).name.startswith("llm_d")
