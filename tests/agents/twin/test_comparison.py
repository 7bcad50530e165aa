"""Metrics, agreement and files of a twin, from ledgers that are made by hand."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from conserve_gym.agents.twin import comparison, picture
from conserve_gym.agents.twin.comparison import METRICS, Run, agreements, compared, metrics
from conserve_gym.agents.twin.reality import Played, counted
from conserve_gym.envs.workloads.conversation import Conversation, Turn
from conserve_gym.ledger import (
    ConversationEnded,
    Event,
    FirstToken,
    Placed,
    TurnArrived,
    TurnFinished,
)


def ledger(first_s: float, decode_at: int = 1) -> list[Event]:
    """One conversation of two turns, whose first tokens take so long; 10 ms between tokens."""
    return [
        TurnArrived(1.0, 0, 0, 100, 100),
        Placed(1.0, 0, 0, 0, decode_at, math.inf),
        FirstToken(1.0 + first_s, 0, 0, decode_at),
        TurnFinished(1.1 + first_s, 0, 0, decode_at, 100, 99, 11),
        TurnArrived(2.0 + first_s, 0, 1, 131, 20),
        FirstToken(2.0 + 2 * first_s, 0, 1, decode_at),
        TurnFinished(2.2 + 2 * first_s, 0, 1, decode_at, 131, 110, 21),
        ConversationEnded(2.2 + 2 * first_s, 0, 2),
    ]


def test_metrics_are_those_of_the_project() -> None:
    found = metrics(ledger(0.5))
    assert found.keys() == set(METRICS)
    assert found["ttft_s_p50"] == pytest.approx(0.5)
    assert found["tbt_s_p95"] == pytest.approx(0.01)
    assert found["ttfet_s_p50"] == pytest.approx(2.0)
    assert found["e2e_s_p50"] == pytest.approx(2.2)


def test_both_sides_of_an_episode() -> None:
    played = Played(ledger(0.5), [], 0.1, 2.0)
    run = compared("a", 3, played, ledger(1.0))
    assert run.ttfet_s.tolist() == [[pytest.approx(2.0)], [pytest.approx(3.0)]]
    assert run.same_placements == 1.0
    assert compared("a", 3, played, ledger(0.5, decode_at=2)).same_placements == 0.0


def test_lengths_are_those_that_engines_counted() -> None:
    turns = (Turn(90, 90, 11, 0.0), Turn(121, 20, 21, 0.4))
    ((_, found),) = counted(ledger(0.5), [Conversation(0.7, turns)])
    assert [turn[:4] for turn in found] == [(100, 100, 11, 0.0), (131, 20, 21, 0.4)]


def runs(real: dict[str, float], simulated: dict[str, float]) -> list[Run]:
    """Three episodes that differ a little."""
    return [
        Run(
            policy,
            seed,
            dict.fromkeys(METRICS, real[policy] * (1.0 + 0.01 * seed)),
            dict.fromkeys(METRICS, simulated[policy] * (1.0 + 0.01 * seed)),
            1.0,
            np.array([[1.0, 2.0], [1.1, 1.9]]),
            0.05,
            1.0,
        )
        for seed in range(3)
        for policy in real
    ]


REAL = {"a": 1.0, "b": 2.0, "c": 4.0}


def test_a_simulator_that_is_too_slow_agrees_on_the_order() -> None:
    found = agreements(runs(REAL, {"a": 1.1, "b": 2.2, "c": 4.4}))[0]
    assert found.error_pct == pytest.approx(10.0, rel=1e-6)
    assert found.rank == pytest.approx(1.0)
    assert (found.same_winner, found.real_winner, found.winner_certain) == (True, "a", True)
    assert (found.signs, found.pairs) == (3, 3)


def test_a_simulator_that_turns_the_order_round_is_found_out() -> None:
    found = agreements(runs(REAL, {"a": 4.0, "b": 2.0, "c": 1.0}))[0]
    assert found.rank == pytest.approx(-1.0)
    assert not found.same_winner
    assert (found.signs, found.pairs) == (0, 3)


def test_equal_policies_have_no_certain_winner() -> None:
    found = agreements(runs(dict.fromkeys(REAL, 1.0), dict.fromkeys(REAL, 1.0)))[0]
    assert not found.winner_certain
    assert found.pairs == 0


def test_files(tmp_path: Path) -> None:
    played = runs(REAL, REAL)
    found = agreements(played)
    written = comparison.write(tmp_path, played, found)
    with written[0].open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 9 * len(METRICS)
    with written[2].open(newline="") as file:
        assert {row["same_winner"] for row in csv.DictReader(file)} == {"True"}
    drawn = picture.write(tmp_path / "twin.png", played, found, "title")
    assert drawn.read_bytes().startswith(b"\x89PNG")
    assert "3 of 3 certain differences" in picture.verdict(played, found)
