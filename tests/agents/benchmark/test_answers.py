"""The first lines answer with the right figures, and the tables rank by them."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_benchmark import rows, spec

from conserve_gym.agents.benchmark import leaderboard
from conserve_gym.agents.benchmark.answers import first_lines
from conserve_gym.agents.benchmark.competitors import Competitor
from conserve_gym.agents.benchmark.leaderboard import ALL
from conserve_gym.agents.benchmark.pictures import telling_load
from conserve_gym.agents.benchmark.playing import Played
from conserve_gym.agents.benchmark.spec import BenchmarkSpec
from conserve_gym.policy import Reads

ROWS = rows(
    {
        "stay": {1.0: [99, 98, 99, 97, 99], 2.0: [60, 62, 58, 61, 60]},
        "move": {1.0: [90, 91, 89, 90, 91], 2.0: [80, 83, 79, 80, 80]},
        "oracle": {1.0: [100] * 5, 2.0: [95] * 5},
    },
    future=["oracle"],
    moves=["move", "oracle"],
)


def made_up(
    asked: BenchmarkSpec, left_out: dict[str, str] | None = None, bound: str = "oracle"
) -> Played:
    names = {"stay": Reads.ARRIVAL, "move": Reads.EXPORTS, bound: Reads.FUTURE}
    who = [Competitor(name, name, name, reads, "") for name, reads in names.items()]
    who[0].left_out.update(left_out or {})
    return Played(asked, who, {}, {}, {})


def lines(asked: BenchmarkSpec) -> list[str]:
    found = made_up(asked, {"five": "it was trained for others"})
    return first_lines(found, ROWS, leaderboard.table(found, ROWS))


def test_when_disaggregation_pays_who_wins_and_what_is_left(tmp_path: Path) -> None:
    leads, pays, wins, left, out = lines(spec(tmp_path, clusters=("four",)))
    assert leads.startswith("move leads on four with 85.3 % mean SLO attainment")
    assert pays.startswith(
        "talk on four: disaggregation pays at 2 conversations/s and costs at 1 conversations/s."
    )
    assert "move (1.00 KV moves a conversation" in pays and "-8.2 at 1 (" in pays
    assert "+20.2 at 2 (" in pays and "p < 0.001" in pays
    assert "at 1 stay, 98.4 %, +8.2 to move (" in wins
    assert "at 2 move, 80.4 %, +20.2 to stay (" in wins
    assert "best_in_hindsight † +0.0 at 1, +0.0 at 2; look-ahead: bound not played" in left
    assert out == "stay is not applicable on five: it was trained for others"


def test_a_submission_is_told_its_rank(tmp_path: Path) -> None:
    told = lines(spec(tmp_path, clusters=("four",), submission="stay"))[0]
    assert told.startswith("stay ranks 2 of 2 on four with 79.3 % mean SLO attainment")
    told = lines(spec(tmp_path, clusters=("four",), submission="oracle"))[0]
    assert told == "oracle † on four has no rank: it sees the future"


def test_only_who_sees_no_future_is_ranked(tmp_path: Path) -> None:
    board = leaderboard.table(made_up(spec(tmp_path)), ROWS)
    whole = board[board["workload"] == ALL]
    assert list(whole["policy"]) == ["oracle", "best_in_hindsight", "move", "stay"]
    assert list(whole["rank"].dropna()) == [1, 2]
    assert whole["slo_attainment_pct"].iloc[2] == pytest.approx((90.2 + 80.4) / 2)
    (path, _) = leaderboard.write(tmp_path, board, ["first"])
    text = path.read_text("utf-8")
    assert text.startswith("- first\n")
    assert "| oracle † |" in text and "| best_in_hindsight † |" in text


def test_a_bound_that_was_played_has_its_gap_told(tmp_path: Path) -> None:
    asked = spec(tmp_path, clusters=("four",))
    found = made_up(asked)
    found.competitors[2].asked = {"look_ahead": {"base": "move"}}
    left = first_lines(found, ROWS, leaderboard.table(found, ROWS))[3]
    assert "oracle † +1.6 at 1, +14.6 at 2" in left
    assert "not played" not in left


def test_one_policy_and_one_seed_say_less(tmp_path: Path) -> None:
    found = made_up(spec(tmp_path, clusters=("four",)))
    lonely = rows({"stay": {1.0: [50]}})
    told = first_lines(found, lonely, leaderboard.table(found, lonely))
    assert any("no policy that moves any KV was played" in line for line in told)


def test_the_load_that_tells_most() -> None:
    assert telling_load(ROWS) == 2.0
