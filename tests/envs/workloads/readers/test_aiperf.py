"""AIPerf's mooncake_trace and multi_turn."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from conserve_gym.envs.workloads.conversation import Recording, Turn, WorkloadError
from conserve_gym.envs.workloads.readers import aiperf
from conserve_gym.envs.workloads.readers.source import Source

SAMPLE = (
    Path(__file__).resolve().parents[4].parent
    / "shared/traces/format_samples/aiperf_production_trace.jsonl"
)


def write(tmp_path: Path, rows: list[Any]) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def read(path: Path, on_error: Any = "stop", **options: Any) -> list[Recording]:
    return list(aiperf.read(Source(path, on_error), **options))


SESSIONS = [
    {"session_id": "a", "timestamp": 500, "input_length": 100, "output_length": 10},
    {"session_id": "b", "input_length": 60, "output_length": 4},
    {"session_id": "a", "delay": 1500, "input_length": 130, "output_length": 20},
    {"timestamp": 30, "input_length": 7, "output_length": 1},
    {"session_id": "a", "timestamp": 9000, "input_length": 150, "output_length": 5},
]


def lengths(one: Recording) -> list[tuple[int, int, int]]:
    return [(turn.input_tokens, turn.new_tokens, turn.output_tokens) for turn in one.turns]


def test_full_and_incremental_lengths_of_sessions(tmp_path: Path) -> None:
    path = write(tmp_path, SESSIONS)
    single, a, b = read(path, input_is_incremental=False)
    assert single == Recording("line 4", "line 4", 0.03, (Turn(7, 7, 1, 0.0, "unknown", 0.0),))
    assert lengths(a) == [(100, 100, 10), (130, 20, 20), (150, 20, 5)]
    assert (a.identifier, a.arrival_s) == ("a", 0.5)
    assert a.turns[1].gap_s == 1.5
    assert math.isnan(a.turns[2].gap_s)  # when it came is not when the one before was done
    assert math.isnan(b.arrival_s)
    single, a, b = read(path, input_is_incremental=True)
    assert lengths(single) == [(7, 7, 1)]
    assert lengths(a) == [(100, 100, 10), (240, 130, 20), (410, 150, 5)]
    assert sum(turn.new_tokens for turn in a.turns) == 100 + 130 + 150


def test_sessions_need_to_be_told_what_a_length_is(tmp_path: Path) -> None:
    path = write(tmp_path, SESSIONS)
    for on_error in ("stop", "skip"):
        with pytest.raises(
            WorkloadError, match=r"1: reader_options.input_is_incremental=None: .* what a"
        ):
            read(path, on_error)
    assert len(read(write(tmp_path, SESSIONS[3:4]))) == 1


@pytest.mark.parametrize(
    ("said", "incremental"),
    [
        ({"message_mode": "delta"}, True),
        ({"message_mode": "history"}, False),
        ({"context_mode": "deltas_without_responses"}, True),
        ({"context_mode": "message_array_with_responses"}, False),
    ],
)
def test_a_row_that_contradicts_is_refused(
    tmp_path: Path, said: dict[str, str], incremental: bool
) -> None:
    path = write(tmp_path, [SESSIONS[0] | said])
    assert len(read(path, input_is_incremental=incremental)) == 1
    with pytest.raises(WorkloadError, match=f"contradicts input_is_incremental={not incremental}"):
        read(path, input_is_incremental=not incremental)


TEXT = {"text_input": "x" * 9, "output_length": 3}
MESSAGES = {
    "messages": [
        {"role": "system", "content": "x" * 10},
        {"role": "user", "content": [{"type": "text", "text": "x" * 5}]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "xxx"}}]},
    ],
    "tools": [{"name": "xx"}],
    "output_length": 3,
}


@pytest.mark.parametrize(
    ("row", "tokens"),
    [
        (TEXT, 3),  # 9 characters
        (MESSAGES, 9),  # 10, 5, 15 of function, name and xxx, 6 of name and xx
        ({"payload": {"prompt": "x" * 8}, "output_length": 3}, 2),
        ({"payload": MESSAGES, "output_length": 3}, 9),
        ({"text_input": "", "output_length": 3}, 1),
    ],
)
def test_texts_are_counted_by_the_stated_rule(
    tmp_path: Path, row: dict[str, Any], tokens: int
) -> None:
    path = write(tmp_path, [row])
    (one,) = read(path, chars_per_token=4.0)
    assert lengths(one) == [(tokens, tokens, 3)]
    for on_error in ("stop", "skip"):
        with pytest.raises(
            WorkloadError, match=r"line 1: reader_options.chars_per_token=None: .*texts"
        ):
            read(path, on_error)


TURNS = {
    "session_id": "m",
    "turns": [
        {"text": "x" * 40, "output_length": 6, "timestamp": 250},
        {"texts": ["x" * 8, "x" * 8], "output_length": 2, "delay": 700},
        {"texts": [{"name": "q", "contents": ["x" * 4]}], "output_length": 1},
    ],
}


def test_turns_add_to_what_was_said(tmp_path: Path) -> None:
    rows = [TURNS, {"turns": TURNS["turns"][:1]}]
    one, other = read(write(tmp_path, rows), chars_per_token=4)
    assert lengths(one) == [(10, 10, 6), (20, 4, 2), (23, 1, 1)]
    assert (one.identifier, one.arrival_s, one.turns[1].gap_s) == ("m", 0.25, 0.7)
    assert math.isnan(one.turns[2].gap_s)
    assert (other.identifier, len(other.turns)) == ("line 2", 1)


@pytest.mark.skipif(not SAMPLE.is_file(), reason="needs shared/traces beside the checkout")
def test_the_sample_adds_up() -> None:
    recordings = read(SAMPLE)
    rows = [json.loads(line) for line in SAMPLE.read_text().splitlines()]
    assert [lengths(one) for one in recordings] == [
        [(row["input_length"], row["input_length"], row["output_length"])] for row in rows
    ]
    assert [one.arrival_s for one in recordings] == [row["timestamp"] / 1000 for row in rows]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"output_length": 3}, "needs exactly one of input_length, text_input"),
        (TEXT | {"input_length": 3}, "line='input_length and text_input': needs exactly one"),
        ({"input_length": 3}, "output_length=None: not a whole number"),
        ({"input_length": 3, "output_length": 0}, "output_length=0: must be at least 1"),
        ({"input_length": 0, "output_length": 1}, "input_length=0: must be 1 to"),
        ({"input_length": 3, "output_length": 1, "timestamp": -4}, "timestamp=-4: must be"),
        ({"input_length": 3, "output_length": 1, "chat_id": 1}, "needs exactly one of"),
        ({"text_input": 3, "output_length": 1}, "text_input='int': not a text"),
        ({"messages": [], "output_length": 1}, "messages='list': not a list of any"),
        ({"messages": ["hi"], "output_length": 1}, "messages='str': not an object"),
        (
            {"messages": [{"content": [{"image_url": "x"}]}], "output_length": 1},
            "content='dict': only texts can be counted",
        ),
        ({"payload": {"input": "x"}, "output_length": 1}, "payload='dict': no messages"),
        ({"turns": []}, "turns='list': not a list of turns"),
        ({"turns": [3]}, "turns, 1='int': not an object"),
        ({"turns": [{"output_length": 3}]}, "turns, 1='output_length': needs text or texts"),
        ({"turns": [{"text": "a", "image": "b"}]}, "image='...': only texts can be counted"),
        ({"turns": [{"text": "a"}], "forks": ["b"]}, "forks='...': not of multi_turn"),
        ({"turns": [{"text": "a", "output_length": 1}], "session_id": "m"}, "session_id='m': came"),
    ],
)
def test_lines_that_cannot_be_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = write(tmp_path, [TURNS, row, TEXT])
    with pytest.raises(WorkloadError, match=f"line 2: .*{message}"):
        read(path, chars_per_token=4)
    source = Source(path, "skip")
    kept = [one.identifier for one in aiperf.read(source, chars_per_token=4)]
    assert kept == ["m", "line 3"]
    assert source.skipped == 1


def test_a_bad_row_takes_its_session_along(tmp_path: Path) -> None:
    rows = [*SESSIONS[:3], {"session_id": "a", "input_length": "many", "output_length": 1}]
    path = write(tmp_path, [*rows, SESSIONS[4]])
    source = Source(path, "skip")
    assert [one.identifier for one in aiperf.read(source, input_is_incremental=True)] == ["b"]
    assert source.skipped == 1
    # A line of nobody may be of any session, but not of a file without sessions.
    with pytest.raises(WorkloadError, match=r"line 2: .*not JSON"):
        read(write(tmp_path, [SESSIONS[0], '{"session_id": "a', SESSIONS[2]]), "skip",
             input_is_incremental=True)  # fmt: skip
    assert len(read(write(tmp_path, [TEXT, "{", TEXT]), "skip", chars_per_token=4)) == 2
