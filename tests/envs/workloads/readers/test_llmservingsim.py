"""LLMServingSim's single requests and agentic sessions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conserve_gym.envs.workloads.conversation import Recording, Turn, WorkloadError
from conserve_gym.envs.workloads.readers import llmservingsim
from conserve_gym.envs.workloads.readers.source import Source

SAMPLES = Path(__file__).resolve().parents[4].parent / "shared/traces/format_samples"
needs_samples = pytest.mark.skipif(
    not SAMPLES.is_dir(), reason="needs shared/traces beside the checkout"
)

FLAT = {"input_toks": 30, "output_toks": 4, "arrival_time_ns": 2_000_000_000}
SESSION: dict[str, Any] = {
    "session_id": "s",
    "arrival_time_ns": 1_500_000_000,
    "sub_requests": [
        {"input_toks": 100, "output_toks": 10, "tool_duration_ns": 250_000_000},
        {"input_toks": 150, "output_toks": 20, "tool_duration_ns": 0},
        {"input_toks": 160, "output_toks": 5, "tool_duration_ns": 10**9},  # without the output
        {"input_toks": 90, "output_toks": 5},  # rewritten
    ],
}


def write(tmp_path: Path, rows: list[Any]) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def read(path: Path, on_error: Any = "stop") -> list[Recording]:
    return list(llmservingsim.read(Source(path, on_error)))


def test_a_wait_after_a_request_is_the_gap_before_the_next(tmp_path: Path) -> None:
    flat, session = read(write(tmp_path, [FLAT, SESSION]))
    assert flat == Recording("line 1", "line 1", 2.0, (Turn(30, 30, 4, 0.0, "unknown"),))
    assert session == Recording(
        "s",
        "s",
        1.5,
        (
            Turn(100, 100, 10, 0.0, "unknown"),
            Turn(150, 40, 20, 0.25, "tool"),
            Turn(160, 10, 5, 0.0, "tool"),
            Turn(90, 90, 5, 1.0, "tool"),
        ),
    )


@needs_samples
@pytest.mark.parametrize("kind", ["flat_head50", "agentic_readme_example"])
def test_the_samples_add_up(kind: str) -> None:
    path = SAMPLES / f"llmservingsim_{kind}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    requests = [request for row in rows for request in row.get("sub_requests", [row])]
    recordings = read(path)
    turns = [turn for one in recordings for turn in one.turns]
    assert [turn.input_tokens for turn in turns] == [row["input_toks"] for row in requests]
    assert [turn.output_tokens for turn in turns] == [row["output_toks"] for row in requests]
    waits = sum(request.get("tool_duration_ns", 0) for request in requests)
    assert sum(turn.gap_s for turn in turns) == pytest.approx(waits * 1e-9)
    assert [one.arrival_s for one in recordings] == pytest.approx(
        [row["arrival_time_ns"] * 1e-9 for row in rows]
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("nonsense", "line='\"nonsense\"': not an object"),
        (FLAT | {"arrival_time_ns": -1}, "arrival_time_ns=-1: must be finite and at least 0"),
        (FLAT | {"input_toks": 0}, "input_toks=0: must be 1 to"),
        (FLAT | {"output_toks": 0}, "output_toks=0: must be at least 1"),
        (SESSION | {"session_id": ""}, "session_id='': names no conversation"),
        (SESSION | {"sub_requests": []}, "sub_requests='list': not a list of requests"),
        (SESSION | {"sub_requests": [3]}, "sub_requests 1='int': no object"),
        (
            SESSION | {"sub_requests": [SESSION["sub_requests"][3]] * 2},
            "tool_duration_ns=None: not a number",
        ),
        (SESSION, "session_id='s': came before"),
    ],
)
def test_lines_that_cannot_be_are_named(tmp_path: Path, row: Any, message: str) -> None:
    path = write(tmp_path, [SESSION, row, FLAT])
    with pytest.raises(WorkloadError, match=f"line 2: {message}"):
        read(path)
    source = Source(path, "skip")
    assert [one.identifier for one in llmservingsim.read(source)] == ["s", "line 3"]
    assert source.skipped == 1


def test_lines_are_read_as_they_come(tmp_path: Path) -> None:
    path = write(tmp_path, [FLAT, SESSION])
    with path.open("a") as file:
        file.write("\nnonsense")
    recordings = llmservingsim.read(Source(path))
    assert [next(recordings).identifier, next(recordings).identifier] == ["line 1", "s"]
    with pytest.raises(WorkloadError, match=r"line 3: .*not JSON"):
        next(recordings)
