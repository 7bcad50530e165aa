"""A distilled rule: it finds a known threshold, survives its file, and plays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conserve_gym.agents.evaluation import play
from conserve_gym.agents.explanation.distillation import agreement, distil, losses
from conserve_gym.agents.explanation.recording import record
from conserve_gym.agents.explanation.rule import (
    FEATURES,
    DistilledRule,
    Node,
    Split,
    features,
    placed_by_rule,
)
from conserve_gym.agents.policies import resolve
from conserve_gym.agents.runtime.scheduler import Decision
from conserve_gym.deployment import DEFAULT_DEPLOYMENT
from conserve_gym.envs.configuration import ConfigurationError, Scenario, load_scenario
from conserve_gym.observation import FloatArray, Observation
from conserve_gym.placement import Placement

NAMES = list(FEATURES)
LEAVES = st.sampled_from(["colocate", "disaggregate"])
THRESHOLDS = st.floats(-1e6, 1e6)
TREES = st.recursive(
    LEAVES,
    lambda node: st.builds(
        Split, feature=st.sampled_from(NAMES), threshold=THRESHOLDS, at_most=node, above=node
    ),
    max_leaves=8,
)
PROMPT = 12_000.0


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario(["workload.conversations=60", "arrivals.rate=1.5"])


class ByPrompt:
    """Stands for a policy that disaggregates long prompts."""

    name = "by_prompt"
    deployment = DEFAULT_DEPLOYMENT

    def reset(self, seed: int) -> None:
        pass

    def decision(self, observation: Observation) -> Decision:
        away = observation["prompt"] > PROMPT
        placement = placed_by_rule(observation, disaggregate=away)
        return Decision(placement, int(away), np.zeros(2, dtype=np.float32), "")

    def decide(self, observation: Observation) -> Placement:
        return self.decision(observation).placement


@settings(max_examples=30, deadline=None)
@given(TREES, st.lists(THRESHOLDS, min_size=len(NAMES), max_size=len(NAMES)))
def test_a_file_says_what_the_rule_says(
    tmp_path_factory: pytest.TempPathFactory, tree: Node, values: list[float]
) -> None:
    rule, row = DistilledRule("rule", DEFAULT_DEPLOYMENT, tree), np.array(values)
    path = tmp_path_factory.getbasetemp() / "rule.json"
    path.write_text(json.dumps(rule.to_json()))
    read = DistilledRule.load(path)
    assert read.tree == rule.tree
    by_file = by_hand(json.loads(path.read_text()), row)
    assert read.disaggregates(row) == rule.disaggregates(row) == by_file


def by_hand(values: dict[str, Any], row: FloatArray) -> bool:
    node = values["tree"]
    while isinstance(node, dict):
        beyond = row[NAMES.index(node["feature"])] > node["threshold"]
        node = node["above" if beyond else "at_most"]
    return bool(node == "disaggregate")


def test_a_known_threshold_is_found_and_costs_nothing(scenario: Scenario) -> None:
    policy: Any = ByPrompt()
    training = [record(scenario, policy, 1_000_000 + i) for i in range(4)]
    unseen = [record(scenario, policy, seed) for seed in range(2)]
    rule, majority = (distil(training, policy, depth) for depth in (2, 0))
    assert isinstance(rule.tree, Split)
    assert rule.tree.feature in ("conversation.prompt", "conversation.new")  # first turns: the same
    assert rule.tree.threshold == pytest.approx(PROMPT, rel=0.02)
    assert (rule.tree.at_most, rule.tree.above) == ("colocate", "disaggregate")
    ours, always = (agreement(unseen, one, 0) for one in (rule, majority))
    assert ours.balanced.mean > 97.0
    assert always.balanced.mean == 50.0
    of_policy, placed, of_rule, of_majority = losses(unseen, scenario, policy, rule, majority)
    assert placed.less_policy.mean == 0.0  # it is placed by the rule itself
    assert of_rule.attainment_pct.mean - of_policy.attainment_pct.mean == pytest.approx(
        of_rule.less_policy.mean
    )
    assert of_majority.name == f"always {majority.tree}"


def test_features_are_those_that_their_names_say(scenario: Scenario) -> None:
    recording = record(scenario, ByPrompt(), 0)  # type: ignore[arg-type]
    observation = recording.steps[40].observation
    row = dict(zip(NAMES, features(observation), strict=True))
    away = placed_by_rule(observation, disaggregate=True)
    assert away.disaggregates
    assert row["conversation.prompt"] == observation["prompt"] > 0.0
    assert row["cluster.live_conversations"] == observation["live_conversations"] > 0.0
    kv, waiting = (observation.engine_field(name) for name in ("kv_known", "prompt_in_flight"))
    assert row["decoder.kv_known"] == kv[away.decode_at] > 0.0
    assert row["prefiller.prompt_in_flight"] == waiting[away.prefill_at]
    assert row["mean.kv_known"] == pytest.approx(kv.mean())


def test_it_is_played_like_any_policy(scenario: Scenario, tmp_path: Path) -> None:
    always = DistilledRule("always", DEFAULT_DEPLOYMENT, "disaggregate")
    path = tmp_path / "rule.json"
    path.write_text(json.dumps(always.to_json()))
    found = resolve(str(path), scenario.cluster)
    assert found.name == "always"
    disaggregate = resolve("conserve", scenario.cluster)
    assert play(scenario, found, 0).metrics == play(scenario, disaggregate, 0).metrics


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ("sometimes", "tree"),
        (
            {"feature": "nothing", "threshold": 1.0, "at_most": "colocate", "above": "colocate"},
            "no",
        ),
        ({"feature": NAMES[0], "threshold": 1.0, "at_most": "colocate"}, "above"),
        (None, "tree"),
    ],
)
def test_a_file_that_is_no_rule_is_one_error(tree: Any, says: str, tmp_path: Path) -> None:
    path = tmp_path / "rule.json"
    values = {"name": "x", "deployment": DEFAULT_DEPLOYMENT.to_json(), "tree": tree}
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigurationError, match=says):
        DistilledRule.load(path)


def test_the_text_asks_what_the_tree_asks() -> None:
    tree = Split("decoder.kv_known", 0.625, "colocate", "disaggregate")
    text = DistilledRule("rule", DEFAULT_DEPLOYMENT, tree).text()
    assert text.splitlines()[:4] == [
        "if decoder.kv_known <= 0.625 share of capacity:",
        "    colocate",
        "else:",
        "    disaggregate",
    ]
    assert "at the engine that would decode it" in text
