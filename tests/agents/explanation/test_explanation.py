"""What an explanation says is checked against networks whose answer is known."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import hydra
import numpy as np
import pytest
from omegaconf import DictConfig
from rich.console import Console

from conserve_gym.agents.evaluation import play
from conserve_gym.agents.explanation.contributions import EXACT, explain
from conserve_gym.agents.explanation.counterfactual import Counterfactual
from conserve_gym.agents.explanation.distillation import distil, losses
from conserve_gym.agents.explanation.importance import importance
from conserve_gym.agents.explanation.recording import Recording, exported_policy, record
from conserve_gym.agents.explanation.shares import share_rows
from conserve_gym.agents.explanation.study import run
from conserve_gym.agents.policies import resolve
from conserve_gym.agents.runtime.artifact import Artifact
from conserve_gym.agents.runtime.linear import Linear
from conserve_gym.agents.runtime.scheduler import Scheduler
from conserve_gym.deployment import Deployment, Reservation
from conserve_gym.envs.configuration import ConfigurationError, Scenario, load_scenario
from conserve_gym.estimates import COLUMNS
from conserve_gym.observation import Scaler
from conserve_gym.placement import HOLD

SMALL = ("workload.conversations=16",)
NAMES = [column.name for column in COLUMNS]


def asked_of(scheduler: Scheduler, scenario: Scenario) -> Counterfactual:
    return Counterfactual(scheduler, scenario.cluster.fleet(scheduler.deployment))


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario(["workload.conversations=40", "arrivals.rate=1.75"])


def linear(
    kind: str = "joint", low: float = 0.0, may_hold: bool = False, **weights: float
) -> Scheduler:
    """Return a policy with known weights, which falls back where training saw no such value."""
    every_turn = kind == "turn"
    deployment = Deployment(
        all_mixed=True,
        reservation=Reservation.NONE,
        decides_every_turn=every_turn,
        may_hold=may_hold,
    )
    size = Scaler(1).size
    return Scheduler(
        Artifact(
            name="known",
            fleet=load_scenario().cluster.fleet(deployment),
            action_kind=kind,
            offload_above=(math.inf,),
            deployment=deployment,
            network=Linear(np.array([weights.get(name, 0.0) for name in NAMES], dtype=np.float32)),
            seen_low=np.full(size, low, dtype=np.float32),
            seen_high=np.ones(size, dtype=np.float32),
            preference=None,
            header={"sha256": {}},
        )
    )


def test_nothing_changed_is_the_decision_itself(exported: Path) -> None:
    scenario = load_scenario(SMALL)
    scheduler = Scheduler.load(exported)
    asked = asked_of(scheduler, scenario)
    recording = record(scenario, scheduler, 0)
    assert recording.episode.metrics.items() <= play(scenario, scheduler, 0).metrics.items()
    taken = [one for one in explain(recording, asked) if not one.step.decision.fallback]
    assert taken
    for one in taken:
        raw, scores = one.step.observation.raw, one.step.decision.scores
        # The runtime adds a linear network's sums up in another order.
        np.testing.assert_allclose(asked.scores(raw, one.table), scores, rtol=1e-5, atol=1e-5)
        again = asked.scores_of(one.step, raw, one.table)
        np.testing.assert_array_equal(again, asked.scores(raw, one.table))
        assert one.margin >= 0.0 or one.other < 0
        assert one.mask[one.step.decision.action]
        assert one.other != one.step.decision.action
        exact = [each.moved for each in one.contributions if each.method == EXACT]
        if exact and one.other >= 0:
            assert sum(exact) == pytest.approx(one.margin, abs=1e-4)


@pytest.mark.parametrize("kind", ["joint", "conversation", "turn"])
def test_what_a_network_does_not_read_moves_nothing(scenario: Scenario, kind: str) -> None:
    scheduler = linear(kind, turns=-1.0, away=-100.0)
    asked = asked_of(scheduler, scenario)
    recordings = [record(scenario, scheduler, seed) for seed in range(2)]
    moving = {
        each.name
        for one in explain(recordings[0], asked)
        for each in one.contributions
        if abs(each.moved) > 1e-3  # scores are float32
    }
    changing = {i.name for i in importance(recordings, asked, 2) if i.changed_pct.mean > 0.0}
    # Two that colocate differ in where; both placements of the other kinds decode at one engine.
    assert moving == ({"turns", "engines.turns_in_flight"} if kind == "joint" else {"away"})
    assert changing == moving - {"away"}  # the same in every decision


def test_importance_is_the_share_of_decisions_that_change(scenario: Scenario) -> None:
    scheduler = linear(kv=-1.0, away=-100.0)
    asked = asked_of(scheduler, scenario)
    recording = record(scenario, scheduler, 3)
    found = {(i.kind, i.name): i.changed_pct.mean for i in importance([recording], asked, 1)}
    order = np.random.default_rng(3).permutation(len(recording.steps))
    kv = np.stack([asked.table(step)[:, 3 + NAMES.index("kv")] for step in recording.steps])
    colocates = asked.table(recording.steps[0])[:, 0] == asked.table(recording.steps[0])[:, 1]
    first = np.where(colocates, -kv, -np.inf).argmax(axis=1)
    assert found["estimate", "kv"] == pytest.approx(100.0 * (first[order] != first).mean())
    assert found["estimate", "kv"] > 0.0
    assert found["estimate", "away"] == 0.0  # the same in every decision
    again, once_more = (importance([recording], asked, 2) for _ in range(2))
    assert str(again) == str(once_more)  # one episode has no interval: NaN


def test_decisions_of_the_fallback_rule_have_no_scores(scenario: Scenario) -> None:
    outside = linear(low=1.0, kv=-1.0)
    recording = record(scenario, outside, 0)
    asked = asked_of(outside, scenario)
    for one in explain(recording, asked):
        assert one.step.decision.fallback and one.other == -1 and not one.contributions
        assert math.isnan(one.margin)
    assert importance([recording], asked, 1) == []


def test_a_policy_that_holds_is_asked_about_holding_too(scenario: Scenario) -> None:
    scheduler = linear(may_hold=True, hold=1.0, wait=-1.0)
    asked = asked_of(scheduler, scenario)
    recording = record(scenario, scheduler, 0)
    held = [step for step in recording.steps if step.decision.placement == HOLD]
    assert 0 < len(held) < len(recording.steps)
    for step in recording.steps:
        again = asked.scores_of(step, step.observation.raw, asked.table(step))
        np.testing.assert_array_equal(again, step.decision.scores)
    rule = distil([recording], scheduler, 1)
    loss = losses([recording], scenario, scheduler, rule, rule)
    assert all(0.0 <= each.attainment_pct.mean <= 100.0 for each in loss)


def test_shares_show_who_herds(scenario: Scenario) -> None:
    herd = linear()  # all scores 0: always the first candidate
    recording = record(scenario, herd, 0)
    fleet = scenario.cluster.fleet(herd.deployment)
    for row in share_rows(recording.episode.ledger, fleet):
        assert row["entropy"] == 0.0
        assert sorted(row[f"engine_{i}_pct"] for i in range(4)) == [0.0, 0.0, 0.0, 100.0]
    even = play(scenario, resolve("colocate", scenario.cluster), 0)
    for row in share_rows(even.ledger, fleet):
        assert row["entropy"] > 0.9
        assert sum(row[f"engine_{i}_pct"] for i in range(4)) == pytest.approx(100.0)


def configured(policy: Path, output: Path, *overrides: str) -> DictConfig:
    settings = (f"policy={policy}", f"output={output}", "seeds=2", "repeats=1", *SMALL)
    with hydra.initialize_config_module("conserve_gym.conf", version_base="1.3"):
        return hydra.compose("explain", [*settings, "training_episodes=2", *overrides])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_whole_of_it(exported: Path, tmp_path: Path) -> None:
    written = run(configured(exported, tmp_path, "decisions=[0,5,999]"), Console(quiet=True))
    assert {path for path in tmp_path.iterdir()} == set(written)
    decisions = rows(tmp_path / "decisions.csv")
    assert len(decisions) == 32
    chosen = [row for row in rows(tmp_path / "candidates.csv") if row["chosen"] == "True"]
    assert len(chosen) == sum(not row["fallback"] for row in decisions)
    for row in rows(tmp_path / "importance.csv"):
        assert 0.0 <= float(row["changed_pct"]) <= 100.0
    report = (tmp_path / "report.md").read_text()
    assert "### Decision 5" in report and "### Decision 999" not in report
    assert [row["depth"] for row in rows(tmp_path / "agreement.csv")] == ["0", "1", "2", "3"]
    scenario = load_scenario(SMALL)
    rule = resolve(str(tmp_path / "rule.json"), scenario.cluster)
    attained = np.mean([play(scenario, rule, s).metrics["slo_attainment_pct"] for s in (0, 1)])
    assert float(rows(tmp_path / "losses.csv")[2]["slo_attainment_pct"]) == pytest.approx(attained)
    assert json.loads((tmp_path / "rule.json").read_text())["imitates"] == str(exported)


def test_a_run_is_explained_through_its_export(trained: Path, exported: Path) -> None:
    scenario = load_scenario(SMALL)

    def decided(recording: Recording) -> list[int]:
        return [step.decision.action for step in recording.steps]

    through = exported_policy(str(trained), scenario.cluster)
    assert through.name == trained.name
    itself = Scheduler.load(exported)
    assert decided(record(scenario, through, 0)) == decided(record(scenario, itself, 0))


def test_a_rule_of_the_field_is_no_network() -> None:
    with pytest.raises(ConfigurationError, match="conserve"):
        exported_policy("conserve", load_scenario().cluster)
