"""Files broken at random: each gives conversations that can be, or one error in one line."""

from __future__ import annotations

import json
import math
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conserve_gym.envs.workloads.conversation import GapKind, Recording, WorkloadError
from conserve_gym.envs.workloads.readers import (
    aiperf,
    bailian,
    llmservingsim,
    mooncake,
    tracelab,
)
from conserve_gym.envs.workloads.readers.source import Source

SAMPLES = Path(__file__).resolve().parents[4].parent / "shared/traces/format_samples"

AIPERF_SESSIONS = [
    {"session_id": "a", "timestamp": 10, "input_length": 900, "output_length": 50, "group_id": 1},
    {"session_id": "b", "timestamp": 20, "input_length": 700, "output_length": 70},
    {"session_id": "a", "delay": 1500.5, "input_length": 1000, "output_length": 60},
    {"input_length": 30, "output_length": 5, "hash_ids": [1]},
    {"session_id": "b", "delay": 3, "input_length": 40, "output_length": 1},
    {"session_id": "a", "delay": 0, "input_length": 1500, "output_length": 600},
]
AIPERF_TEXTS = [
    {"text_input": "A few words.", "output_length": 5, "timestamp": 4},
    {
        "session_id": "c",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "What is this?"}]},
            {"role": "assistant", "tool_calls": [{"function": {"name": "look"}}], "content": None},
        ],
        "tools": [{"function": {"name": "look", "description": "Looks."}}],
        "output_length": 7,
    },
    {"payload": {"prompt": "Once upon", "max_tokens": 5}, "output_length": 5},
    {
        "session_id": "d",
        "turns": [
            {"text": "Hello there", "output_length": 9, "timestamp": 5},
            {"texts": ["and", "more"], "output_length": 3, "delay": 200},
        ],
    },
]
BAILIAN = [
    {"chat_id": 1, "parent_chat_id": -1, "turn": 1, "timestamp": 0.5, "input_length": 40},
    {"chat_id": 2, "parent_chat_id": -1, "turn": 1, "timestamp": 1.5, "input_length": 17},
    {"chat_id": 3, "parent_chat_id": 1, "turn": 2, "timestamp": 9.25, "input_length": 90},
    {"chat_id": 4, "parent_chat_id": 1, "turn": 2, "timestamp": 12.0, "input_length": 33},
    {"chat_id": 5, "parent_chat_id": 3, "turn": 3, "timestamp": 50.0, "input_length": 200},
]


class Case(NamedTuple):
    """A reader, a file that it reads, and how many turns that file has by a plain count."""

    read: Callable[[Source], Iterator[Recording]]
    lines: list[str]
    turns: Callable[[str], int]


def dump(rows: list[dict[str, object]]) -> list[str]:
    return [json.dumps(row) for row in rows]


def head(name: str, lines: int) -> list[str]:
    path = SAMPLES / name
    return path.read_text().splitlines()[:lines] if path.is_file() else []


def entries(line: str, field: str) -> int:
    return len(json.loads(line).get(field, [None]))


def slim(line: str) -> str:
    """Leave out what the TraceLab reader does not look at, most of a row."""
    row = json.loads(line)
    kept = ("session_id", "round_index", "input_tokens_total", "prefix_tokens")
    kept += ("newly_append_tokens", "output_tokens")
    short = {field: row[field] for field in kept}
    for field, names in (
        ("timing_events", ("event_type", "timestamp")),
        ("tools", ("tool_wall_latency_ms",)),
    ):
        short[field] = [{name: item[name] for name in names} for item in row[field]]
    return json.dumps(short)


CASES = {
    "mooncake": Case(
        mooncake.read,
        head("mooncake_conversation_head150.jsonl", 150)[60:67]
        + head("mooncake_conversation_head150.jsonl", 150)[130:138],
        lambda line: 1,
    ),
    "aiperf": Case(aiperf.read, head("aiperf_production_trace.jsonl", 10), lambda line: 1),
    "aiperf full": Case(
        partial(aiperf.read, input_is_incremental=False, chars_per_token=4.0),
        dump(AIPERF_SESSIONS + AIPERF_TEXTS),
        partial(entries, field="turns"),
    ),
    "aiperf incremental": Case(
        partial(aiperf.read, input_is_incremental=True, chars_per_token=4.0),
        dump(AIPERF_SESSIONS + AIPERF_TEXTS),
        partial(entries, field="turns"),
    ),
    "tracelab csv": Case(
        tracelab.read,
        head("tracelab_replay_multi_session_large.csv", 12),
        lambda line: not line.lstrip().startswith("session_id"),
    ),
    "tracelab jsonl": Case(
        tracelab.read,
        [
            slim(line)
            for line in head("tracelab_round_trace_sample.jsonl", 19)
            if json.loads(line)["round_index"] < 3
        ],
        lambda line: 1,
    ),
    "bailian": Case(bailian.read, head("bailian_readme_example.jsonl", 2), lambda line: 1),
    "bailian tree": Case(
        bailian.read,
        dump([{"output_length": 3, "hash_ids": [1, 2], **row} for row in BAILIAN]),
        lambda line: 1,
    ),
    "llmservingsim flat": Case(
        llmservingsim.read, head("llmservingsim_flat_head50.jsonl", 8), lambda line: 1
    ),
    "llmservingsim agentic": Case(
        llmservingsim.read,
        head("llmservingsim_agentic_readme_example.jsonl", 1)
        + head("llmservingsim_flat_head50.jsonl", 2),
        partial(entries, field="sub_requests"),
    ),
}

ODD = [
    b"-1", b"0", b"1", b"0.5", b"1e400", b"-1e-3", b"NaN", b"Infinity", b"1e15", b"9" * 30,
    b"9" * 5000, b'"x"', b'""', b"x", b"", b"null", b"true", b"[]", b"{}", b"[" * 2000,
    b'"2026-02-30T00:00:00Z"', b'"0001-01-01T00:00:00+23:59"', b"\xff", b"\x00", b"\r", b"\n",
]  # fmt: skip
WHATS = ["flip", "cut", "drop", "double", "move", "swap", "replace", "replace", "replace"]
TOKEN = re.compile(rb'"[^"]*"|-?[0-9][0-9.]*')


@st.composite
def mutated(draw: st.DrawFn, lines: list[str]) -> bytes:
    rows = [line.encode() for line in lines]
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 4]))):
        if not rows:
            break
        at = draw(st.integers(0, len(rows) - 1))
        row = rows[at]
        tokens = [match.span() for match in TOKEN.finditer(row)]
        what = draw(st.sampled_from(WHATS))
        if what == "flip" and row:
            place = draw(st.integers(0, len(row) - 1))
            rows[at] = row[:place] + bytes([draw(st.integers(0, 255))]) + row[place + 1 :]
        elif what == "cut":
            rows[at] = row[: draw(st.integers(0, len(row)))]
        elif what == "drop":
            del rows[at]
        elif what == "double":
            rows.insert(draw(st.integers(0, len(rows))), row)
        elif what == "move":
            rows.insert(draw(st.integers(0, len(rows) - 1)), rows.pop(at))
        elif what == "swap" and len(tokens) > 1:
            first, second = sorted(draw(st.sampled_from(tokens)) for _ in range(2))
            if first != second:
                (a, b), (c, d) = first, second
                rows[at] = row[:a] + row[c:d] + row[b:c] + row[a:b] + row[d:]
        elif what == "replace" and tokens:
            a, b = draw(st.sampled_from(tokens))
            rows[at] = row[:a] + draw(st.sampled_from(ODD)) + row[b:]
    end = draw(st.sampled_from([b"\n", b"\r\n"]))
    return end.join(rows) + draw(st.sampled_from([b"", end]))


def check(case: Case, data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        start = time.perf_counter()
        stopped = attempt(case, Source(Path(file.name)))
        skipping = Source(Path(file.name), "skip")
        skipped = attempt(case, skipping)
        assert time.perf_counter() - start < 5.0
        if stopped is not None:
            assert skipping.skipped == 0
            assert skipped == stopped
            with open(file.name, encoding="utf-8-sig", newline="") as plain:
                expected = sum(case.turns(line) for line in plain if line.strip())
            assert sum(len(one.turns) for one in stopped) == expected
        elif skipped is not None:
            assert skipping.skipped > 0


def attempt(case: Case, source: Source) -> list[Recording] | None:
    try:
        recordings = list(case.read(source))
    except WorkloadError as error:
        assert len(str(error).splitlines()) == 1
        return None
    names = [one.identifier for one in recordings]
    assert len(set(names)) == len(names)
    for one in recordings:
        assert one.turns
        assert math.isnan(one.arrival_s) or one.arrival_s >= 0.0
        held = 0
        for turn in one.turns:
            assert max(turn.input_tokens - held, 1) <= turn.new_tokens <= turn.input_tokens
            assert turn.output_tokens >= 1
            assert math.isnan(turn.gap_s) or 0.0 <= turn.gap_s < math.inf
            assert turn.gap_kind in get_args(GapKind)
            held = turn.input_tokens + turn.output_tokens
    # NaN differs from itself.
    return [one._replace(turns=tuple(map(repr, one.turns))) for one in map(without_nan, recordings)]


def without_nan(one: Recording) -> Recording:
    return one._replace(arrival_s=-1.0) if math.isnan(one.arrival_s) else one


def fuzz(name: str, examples: int) -> None:
    case = CASES[name]
    if not case.lines:
        pytest.skip("needs shared/traces beside the checkout")

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(mutated(case.lines))
    def run(data: bytes) -> None:
        check(case, data)

    run()


@pytest.mark.parametrize("name", CASES)
def test_an_unbroken_file_is_read(name: str) -> None:
    case = CASES[name]
    if not case.lines:
        pytest.skip("needs shared/traces beside the checkout")
    data = "\n".join(case.lines).encode()
    check(case, data)
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        assert list(case.read(Source(Path(file.name))))


@pytest.mark.parametrize("name", CASES)
def test_a_broken_file_gives_conversations_or_an_error(name: str) -> None:
    fuzz(name, 300)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_ten_thousand_broken_files_give_conversations_or_an_error(name: str) -> None:
    fuzz(name, 10_000)
