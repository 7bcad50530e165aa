"""Files broken at random: each gives conversations that can be, or one error in one line."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from mutations import attempt, mutated

from conserve_gym.envs.workloads.conversation import Recording
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

TOKEN = re.compile(rb'"[^"]*"|-?[0-9][0-9.]*')


def check(case: Case, data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        start = time.perf_counter()
        stopped = attempt(lambda: list(case.read(Source(Path(file.name)))))
        skipping = Source(Path(file.name), "skip")
        skipped = attempt(lambda: list(case.read(skipping)))
        assert time.perf_counter() - start < 5.0
        if stopped is not None:
            assert skipping.skipped == 0
            assert repr(skipped) == repr(stopped)  # NaN differs from itself
            with open(file.name, encoding="utf-8-sig", newline="") as plain:
                expected = sum(case.turns(line) for line in plain if line.strip())
            assert sum(len(one.turns) for one in stopped) == expected
        elif skipped is not None:
            assert skipping.skipped > 0


def fuzz(name: str, examples: int) -> None:
    case = CASES[name]
    if not case.lines:
        pytest.skip("needs shared/traces beside the checkout")

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(mutated(case.lines, TOKEN))
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
    fuzz(name, settings().max_examples)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_ten_thousand_broken_files_give_conversations_or_an_error(name: str) -> None:
    fuzz(name, 10_000)
