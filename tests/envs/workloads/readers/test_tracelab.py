"""TraceLab's csv and JSON lines."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

from conserve_gym.envs.workloads.conversation import Recording, Turn, WorkloadError
from conserve_gym.envs.workloads.readers import tracelab
from conserve_gym.envs.workloads.readers.source import Source

SAMPLES = Path(__file__).resolve().parents[4].parent / "shared/traces/format_samples"
CSV = SAMPLES / "tracelab_replay_multi_session_large.csv"
JSONL = SAMPLES / "tracelab_round_trace_sample.jsonl"

needs_samples = pytest.mark.skipif(
    not SAMPLES.is_dir(), reason="needs shared/traces beside the checkout"
)

HEADER = "id,input_len,output_len,arrival_time,round_idx,tool_wait_after_ms,prefix_len"
ROWS = [
    "a,100,10,500,0,2000,0",
    "b,50,5,700,0,0,0",
    "a,20,30,500,1,250.5,110",  # appends
    "a,60,7,500,2,9,80",  # the cache had lost half of the prompt
]
A = (
    Turn(100, 100, 10, 0.0, "unknown"),
    Turn(130, 20, 30, 2.0, "tool"),
    Turn(140, 60, 7, 0.2505, "tool"),
)


def write(tmp_path: Path, rows: list[str], header: str = HEADER) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def read(path: Path, on_error: Any = "stop") -> list[Recording]:
    return list(tracelab.read(Source(path, on_error)))


def test_a_wait_after_a_round_is_the_gap_before_the_next(tmp_path: Path) -> None:
    a, b = read(write(tmp_path, ROWS))
    assert a == Recording("a", "a", 0.5, A)
    assert b == Recording("b", "b", 0.7, (Turn(50, 50, 5, 0.0, "unknown"),))


def test_sessions_may_be_called_session_id_and_have_no_arrival(tmp_path: Path) -> None:
    header = "session_id,input_len,output_len,round_idx,tool_wait_after_ms,prefix_len"
    rows = [",".join(cells[:3] + cells[4:]) for cells in (row.split(",") for row in ROWS)]
    a, _ = read(write(tmp_path, rows, header))
    assert a.turns == A
    assert math.isnan(a.arrival_s)


def test_a_prefix_counts_as_far_as_the_conversation_held_it(tmp_path: Path) -> None:
    rows = ["a,10,10,0,0,0,90", "a,10,10,0,1,0,190"]
    (one,) = read(write(tmp_path, rows))
    assert [turn.new_tokens for turn in one.turns] == [100, 90]


@needs_samples
def test_the_csv_sample_adds_up() -> None:
    recordings = read(CSV)
    with CSV.open(newline="") as file:
        rows = list(csv.DictReader(file))
    turns = [turn for one in recordings for turn in one.turns]
    assert len(recordings) == len({row["session_id"] for row in rows}) == 48
    assert len(turns) == len(rows) == 303
    for turn, row in zip(turns, rows, strict=True):  # sessions stand one after the other
        assert turn.input_tokens == int(row["prefix_len"]) + int(row["input_len"])
        assert turn.output_tokens == int(row["output_len"])
    assert sum(turn.new_tokens for turn in turns) == sum(int(row["input_len"]) for row in rows)
    waits = sum(int(row["tool_wait_after_ms"]) for row in rows)  # the last of a session are 0
    assert sum(turn.gap_s for turn in turns) == pytest.approx(waits / 1000)
    assert [one.arrival_s * 1000 for one in recordings] == pytest.approx(
        [int(row["arrival_time"]) for row in rows if row["round_idx"] == "0"]
    )


@needs_samples
def test_the_jsonl_sample_adds_up() -> None:
    claude, codex = read(JSONL)
    rows = [json.loads(line) for line in JSONL.read_text().splitlines()]
    for one, provider in ((claude, "claude"), (codex, "codex")):
        mine = [row for row in rows if row["provider"] == provider]
        assert [turn.input_tokens for turn in one.turns] == [
            row["input_tokens_total"] for row in mine
        ]
        assert [turn.output_tokens for turn in one.turns] == [row["output_tokens"] for row in mine]
        # The first prompt is all new; nothing was held of it in this conversation.
        assert [turn.new_tokens for turn in one.turns[1:]] == [
            row["newly_append_tokens"] for row in mine[1:]
        ]
        assert one.turns[0].new_tokens == one.turns[0].input_tokens
    # 05:40:50.938 (result of the slower of two tools) - 05:40:31.647 (last tool call)
    assert claude.turns[1][3:5] == (19.291, "tool")
    # 05:42:43.333 (user) - 05:42:23.420 (text)
    assert claude.turns[5][3:5] == (19.913, "user")
    assert codex.turns[1][3:5] == (1.176, "tool")
    assert codex.arrival_s == 0.0
    assert claude.arrival_s > 0.0


def a_round(index: int, **changes: Any) -> dict[str, Any]:
    tokens = 100 + 10 * index
    row: dict[str, Any] = {"session_id": "s", "round_index": index, "input_tokens_total": tokens}
    row |= {"prefix_tokens": tokens - 10, "newly_append_tokens": 10, "output_tokens": 1}
    return row | changes


def events(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"event_type": kind, "timestamp": f"2026-01-01T{time}Z"} for kind, time in pairs]


def gaps(tmp_path: Path, rows: list[dict[str, Any]]) -> list[tuple[float, str]]:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    (one,) = read(path)
    return [(turn.gap_s, turn.gap_kind) for turn in one.turns[1:]]


def test_gaps_run_from_what_was_sent_to_what_was_given(tmp_path: Path) -> None:
    ended = events(("user_message", "00:00:00"), ("text", "00:00:05"), ("tool_call", "00:00:04"))
    given = events(("tool_result", "00:00:06"), ("user_message", "00:00:09"))
    rows = [a_round(0, timing_events=ended), a_round(1, timing_events=given)]
    assert gaps(tmp_path, rows) == [(4.0, "mixed")]
    early = events(("tool_result", "00:00:03"))
    rows = [a_round(0, timing_events=ended), a_round(1, timing_events=early)]
    assert gaps(tmp_path, rows) == [(0.0, "tool")]


def test_without_events_a_gap_is_the_longest_tool_or_unknown(tmp_path: Path) -> None:
    tools = [{"tool_wall_latency_ms": wait} for wait in (300, None, 1200)]
    assert gaps(tmp_path, [a_round(0, tools=tools), a_round(1)]) == [(1.2, "tool")]
    ((gap_s, kind),) = gaps(tmp_path, [a_round(0), a_round(1)])
    assert math.isnan(gap_s)
    assert kind == "unknown"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("b,20,30,700,2,0,55", "line 4: round_idx='2': expected 1"),
        ("b,0,30,700,1,0,55", "line 4: input_len='0': must be 1 to"),
        ("b,20,0,700,1,0,55", "line 4: output_len='0': must be at least 1"),
        ("b,20,30,700,1,-1,55", "line 4: tool_wait_after_ms='-1': must be finite and at least 0"),
        ("b,20,30,700,1,,55", "line 4: tool_wait_after_ms='': not a number"),
        ("b,20,30,701,1,0,55", "line 4: arrival_time='701': the session's is 700"),
        ("b,20,30,700,1,0,-5", "line 4: prefix_len='-5': must be 0 to"),
    ],
)
def test_rows_that_cannot_be_are_named(tmp_path: Path, row: str, message: str) -> None:
    path = write(tmp_path, [*ROWS[:2], row, *ROWS[2:]])
    with pytest.raises(WorkloadError, match=message):
        read(path)
    source = Source(path, "skip")
    assert [one.identifier for one in tracelab.read(source)] == ["a"]
    assert source.skipped == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"round_index": 2}, "round_index=2: expected 1"),
        ({"prefix_tokens": 5}, "input_tokens_total=110: 5 reused and 10 appended tokens make 15"),
        ({"newly_append_tokens": None}, "newly_append_tokens=None: not a whole number"),
        ({"timing_events": 3}, "timing_events='int': not a list of objects"),
        ({"timing_events": events(("text", "25:00:00"))}, "timestamp=.*: not a time such as"),
        (
            {"timing_events": events(("user_message", "00:00:00"))},
            "timing_events=.*: before those of the round before",
        ),
        ({"tools": [{"tool_wall_latency_ms": -1}]}, "tool_wall_latency_ms=-1: must be finite"),
        ({"output_tokens": 0}, "output_tokens=0: must be at least 1"),
    ],
)
def test_rounds_that_cannot_be_are_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    given = events(("user_message", "00:00:10"))
    rows = [a_round(0, timing_events=given), a_round(1, **changes), a_round(0, session_id="t")]
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(WorkloadError, match=f"line 2: {message}"):
        read(path)
    assert [one.identifier for one in read(path, "skip")] == ["t"]


@pytest.mark.parametrize("line", ['{"session_id": "s", "round', '{"session_id": null}', "[]"])
def test_a_row_of_nobody_stops_the_reading(tmp_path: Path, line: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(f"{json.dumps(a_round(0))}\n{line}\n")
    with pytest.raises(WorkloadError, match="line 2: "):
        read(path, "skip")
