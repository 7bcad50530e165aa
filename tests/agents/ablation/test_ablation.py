"""What the arms of the ablation look at, how they learn, and what the table says."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import hydra
import numpy as np
import pytest
from omegaconf import DictConfig
from rich.console import Console

from conserve_gym.agents.ablation import arms
from conserve_gym.agents.ablation.arms import ARMS, play, play_rule, train
from conserve_gym.agents.ablation.cross_entropy import maximise
from conserve_gym.agents.ablation.features import Group
from conserve_gym.agents.ablation.foresight import Foresight, TrueOutputs
from conserve_gym.agents.ablation.linear import LinearPolicy, deployment
from conserve_gym.agents.ablation.study import run
from conserve_gym.envs.configuration import ConfigurationError, Scenario, load_scenario
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.workloads.workload import draw_episode
from conserve_gym.ledger import Placed
from conserve_gym.placement import Placement

SMALL = ("workload.conversations=20", "arrivals.rate=4")


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario(SMALL)


def begun(scenario: Scenario, groups: tuple[Group, ...] = (Group.ARRIVAL,)) -> Cluster:
    drawn = draw_episode(scenario.workload, scenario.arrivals, np.random.default_rng(0))
    return Cluster(scenario.cluster, deployment(groups), drawn)


def test_foresight_knows_what_is_left_and_nothing_is_left_at_the_end(scenario: Scenario) -> None:
    cluster = begun(scenario)
    foresight = Foresight(cluster)
    pinned: dict[int, int] = {}
    while cluster.advance():
        seen = cluster.observe()
        predicted = foresight.predict(seen.conversation)
        turns = cluster.conversations[seen.conversation].turns
        assert predicted.output == sum(turn.output_tokens for turn in turns)
        assert predicted.appended == sum(turn.new_tokens for turn in turns[1:])
        assert predicted.peak == cluster.conversations[seen.conversation].peak_tokens
        for engine in range(4):
            here = [c for c, at in pinned.items() if at == engine]
            most = sum(t.output_tokens for c in here for t in cluster.conversations[c].turns)
            assert 0 <= predicted.remaining_output[engine] <= most
            assert predicted.peaks[engine] <= sum(
                cluster.conversations[c].peak_tokens for c in here
            )
        engine = seen.conversation % 4
        pinned[seen.conversation] = engine
        cluster.place(Placement(engine, engine))
    left = foresight.predict(0)
    assert not left.remaining_output.any()
    assert not left.remaining_appended.any()
    assert not left.peaks.any()


def test_predictions_alone_change_with_the_future(scenario: Scenario) -> None:
    """Of all groups it is the only one that tells apart conversations which look alike."""
    for group in Group:
        cluster = begun(scenario, (group,))
        policy = LinearPolicy(cluster.fleet, (group,), np.zeros(0))
        cluster.advance()
        if group is Group.PREDICTIONS:
            policy.foresight = Foresight(cluster)
        seen = cluster.observe()
        before = policy.numbers(seen)
        one = cluster.conversations[0]
        longer = one.turns[0]._replace(output_tokens=one.turns[0].output_tokens + 900)
        changed = [one._replace(turns=(longer, *one.turns[1:])), *cluster.conversations[1:]]
        cluster.conversations = changed
        same = np.array_equal(before, policy.numbers(seen))
        assert same == (group is not Group.PREDICTIONS)


def test_every_number_tells_placements_apart_somewhere() -> None:
    """A number that is the same for all placements could not matter, whatever its weight."""
    scenario = load_scenario(["workload.conversations=20", "arrivals.rate=0.5"])
    groups = tuple(Group)
    cluster = begun(scenario, groups)
    policy = LinearPolicy(cluster.fleet, groups, np.zeros(0))
    policy.foresight = Foresight(cluster)
    rng = np.random.default_rng(1)
    spread = []
    while cluster.advance():
        numbers = policy.numbers(cluster.observe())
        assert np.isfinite(numbers).all()
        assert (np.abs(numbers) <= 2.0).all()
        spread.append(np.ptp(numbers, axis=0))
        policy._chosen = rng.uniform(0.0, 0.1, 4)
        prefill_at, decode_at = rng.integers(4, size=2)
        cluster.place(Placement(int(prefill_at), int(decode_at)))
    assert (np.max(spread, axis=0) > 0.0).all()


def test_the_search_finds_the_top_of_a_hill() -> None:
    top = np.array([1.5, -2.0, 0.25])

    def worth(weights: np.ndarray, iteration: int) -> float:
        return -float(((weights - top) ** 2).sum())

    assert maximise(worth, np.zeros(3), 40, 0) == pytest.approx(top, abs=0.1)
    assert (maximise(worth, np.zeros(3), 3, 1) == maximise(worth, np.zeros(3), 3, 1)).all()


def test_training_keeps_to_its_budget_and_its_seed(scenario: Scenario) -> None:
    trained = train([scenario], "arrival alone", 0, 1000)
    assert trained.decisions == 960  # two rounds of 24 samples, 20 conversations each
    again = train([scenario], "arrival alone", 0, 1000)
    assert (trained.weights == again.weights).all()
    with pytest.raises(ConfigurationError, match="budget=479 is less than one round"):
        train([scenario], "arrival alone", 0, 479)


def test_an_untrained_policy_goes_round_robin(scenario: Scenario) -> None:
    for groups in ARMS.values():
        weights = arms._start(scenario, groups)
        ledger = play(scenario, groups, weights, 0).ledger
        placed = [event for event in ledger if type(event).__name__ == "Placed"]
        assert sorted(event.decode_at for event in placed[:4]) == [0, 1, 2, 3]


def configured(folder: Path, *overrides: str) -> DictConfig:
    small = ("workload.conversations=8", "rates=[3,4]", "budget=400", "repeats=2", "seeds=2")
    with hydra.initialize_config_module("conserve_gym.conf", version_base="1.3"):
        return hydra.compose("ablate", [*small, "workers=1", f"output={folder}", *overrides])


def test_the_table_has_every_arm_and_a_finished_study_plays_nothing(tmp_path: Path) -> None:
    chosen = "arms=[arrival alone,all that was observed,predictions alone]"
    console = Console(record=True, width=120, quiet=False, file=(tmp_path / "log").open("w"))
    table, stamp = run(configured(tmp_path, chosen), console)
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == (3 + 2) * 5
    mine = [row for row in rows if row["metric"] == "slo_attainment_pct"]
    assert [row["arm"] for row in mine if row["sees_future"] == "True"] == [
        "predictions alone",
        "the same with true outputs",
    ]
    for row in mine[:3]:
        assert float(row["mean"]) == pytest.approx(
            (float(row["at_3"]) + float(row["at_4"])) / 2, abs=1e-9
        )
        difference = float(row["mean"]) - float(mine[1]["mean"])
        assert float(row["less_mean"]) == pytest.approx(difference, abs=1e-9)
    assert mine[3]["compared_with"] == mine[4]["compared_with"] == "the rule predicted_output"
    shown = console.export_text()
    assert "predictions alone †" in shown
    assert "arrival alone †" not in shown
    assert stamp.is_file()
    before = (tmp_path / "cells.jsonl").read_bytes()
    run(configured(tmp_path, chosen), Console(quiet=True))
    assert (tmp_path / "cells.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("arms=[intuition]", "arms='intuition' is none of arrival alone"),
        ("arms=[arrival alone]", "must have 'all that was observed'"),
        ("rates=[]", "rates="),
        ("seeds=1", "seeds=1"),
        ("budget=0", "budget=0"),
    ],
)
def test_wrong_settings_are_one_clear_error(tmp_path: Path, override: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        run(configured(tmp_path, override), Console(quiet=True))


def test_true_outputs_are_those_of_the_turn_at_the_door(scenario: Scenario) -> None:
    cluster = begun(scenario)
    known = TrueOutputs(cluster.conversations)
    cluster.advance()
    seen = cluster.observe()
    for turn, played in enumerate(cluster.conversations[0].turns):
        assert known.expected_output(replace(seen, turn=turn)) == played.output_tokens
    told, guessed = (
        [one for one in play_rule(scenario, 0, knows=knows).ledger if isinstance(one, Placed)]
        for knows in (True, False)
    )
    assert told != guessed
