"""BurstGPT: requests alone, and sessions in order of time."""

from __future__ import annotations

from pathlib import Path

import pytest

from conserve_gym.envs.workloads.conversation import Recording, Turn, WorkloadError
from conserve_gym.envs.workloads.readers import burstgpt
from conserve_gym.envs.workloads.readers.source import Source

V1 = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
V2 = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type"
SESSIONS = [
    "100,a,10,GPT-4,50,20,70,Conversation log",
    "105.0,b,3,ChatGPT,30,5,35,API log",
    "200,a,5,GPT-4,60,10,70,Conversation log",  # shorter than the 77 held: cut or rewritten
    "112,a,,GPT-4,75,2,77,Conversation log",
    "107,b,1,ChatGPT,60,1,61,API log",
]
SAMPLE = (
    Path(__file__).resolve().parents[4].parent / "shared/traces/format_samples/burstgpt_v2_head.csv"
)


def read(
    tmp_path: Path, rows: list[str], head: str = V2, on_error: str = "stop", **options: bool
) -> list[Recording]:
    path = tmp_path / "burst.csv"
    path.write_text("\n".join([head, *rows]))
    return list(burstgpt.read(Source(path, "skip" if on_error == "skip" else "stop"), **options))


def test_requests_of_version_1_are_conversations_of_one_turn(tmp_path: Path) -> None:
    rows = ["5,ChatGPT,472,18,490,Conversation log", "45,GPT-4,1087,230,1317,API log"]
    assert read(tmp_path, rows, V1) == [
        Recording("line 2", "line 2", 0.0, (Turn(472, 472, 18, 0.0, "user", 0.0),)),
        Recording("line 3", "line 3", 40.0, (Turn(1087, 1087, 230, 0.0, "unknown", 0.0),)),
    ]


def test_sessions_of_version_2_are_conversations_in_order_of_time(tmp_path: Path) -> None:
    first, second = read(tmp_path, SESSIONS)
    assert (first.identifier, first.arrival_s) == ("a", 0.0)
    assert repr(first.turns) == repr(
        (
            Turn(50, 50, 20, 0.0, "user", 0.0),
            Turn(75, 5, 2, 2.0, "user", 12.0),
            Turn(60, 60, 10, float("nan"), "user", 100.0),
        )
    )
    assert second == Recording(
        "b",
        "b",
        5.0,
        # The second request came before the first was served.
        (Turn(30, 30, 5, 0.0, "unknown", 0.0), Turn(60, 25, 1, 0.0, "unknown", 2.0)),
    )


def test_requests_may_count_what_they_append(tmp_path: Path) -> None:
    _, second = read(tmp_path, SESSIONS, input_is_incremental=True)
    assert [turn[:3] for turn in second.turns] == [(30, 30, 5), (95, 60, 1)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("99,c,1,m,1,1,2,API log", "Timestamp='99': before the first request"),
        ("-5,c,1,m,1,1,2,API log", "Timestamp='-5': must be finite and at least 0"),
        ("300,c,long,m,1,1,2,API log", "Elapsed time='long': not a number"),
        ("300,c,1,m,0,0,0,API log", r"Request tokens='0': must be 1 to 2\^53"),
        ("300,c,1,m,1,0,1,API log", "Response tokens='0': must be at least 1"),
        ("300,c,1,m,1,1,3,API log", "Total tokens='3': not the sum of both, 2"),
    ],
)
def test_a_row_that_cannot_be_is_named(tmp_path: Path, row: str, message: str) -> None:
    rows = [*SESSIONS, row, "400,c,1,m,1,1,2,API log"]
    with pytest.raises(WorkloadError, match=rf"burst\.csv, line 7: {message}"):
        read(tmp_path, rows)
    assert [one.identifier for one in read(tmp_path, rows, on_error="skip")] == ["a", "b"]


def test_tokens_are_those_of_the_files_own_totals() -> None:
    if not SAMPLE.is_file():
        pytest.skip(f"the sample is not there: {SAMPLE}")
    recordings = list(burstgpt.read(Source(SAMPLE)))
    totals = [int(line.split(",")[6]) for line in SAMPLE.read_text().splitlines()[1:]]
    assert [sum(one.turns[0][0:3:2]) for one in recordings] == totals
    assert [one.arrival_s for one in recordings] == [0.0, 51.0, 82.0, 144.0]


def test_files_are_told_by_their_head() -> None:
    assert burstgpt.looks_like([V1])
    assert burstgpt.looks_like([V2])
    assert not burstgpt.looks_like([])
    assert not burstgpt.looks_like(["Timestamp,Request tokens"])
