"""The trace of the paper's artifact is what our csv made of it has."""

from __future__ import annotations

import csv
import gzip
import math
from pathlib import Path

import pytest

from conserve_gym.envs.workloads.conversation import Recording, Turn, WorkloadError
from conserve_gym.envs.workloads.readers import conserve_artifact
from conserve_gym.envs.workloads.readers.registry import detect, open_recordings
from conserve_gym.envs.workloads.readers.source import Source

HEAD = "conv_id,iter_id,appended_input,total_input,out_token_size,carried_over"
ROWS = ["7,0,100,100,10,0", "8,0,50,50,5,0", "7,1,20,130,30,110"]
OURS = Path(__file__).resolve().parents[4].parent / "shared/traces/conserve_miniswe_trace.csv.gz"


def write(tmp_path: Path, rows: list[str]) -> Path:
    path = tmp_path / "trace_profile_summary.csv"
    path.write_text("\n".join([HEAD, *rows]) + "\n")
    return path


def test_rows_are_turns_without_times(tmp_path: Path) -> None:
    path = write(tmp_path, ROWS)
    assert detect(path) == "conserve_artifact"
    first, second = open_recordings(path)[1]
    assert repr(first) == repr(
        Recording(
            "7",
            "7",
            math.nan,
            (Turn(100, 100, 10, 0.0), Turn(130, 20, 30, math.nan, "tool")),
        )
    )
    assert (second.identifier, len(second.turns)) == ("8", 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("7,1,20,130,30,100", "total_input=130: 20 appended and 100 carried over make 120"),
        ("7,2,20,130,30,110", "iter_id='2': expected 1"),
        ("7,1,9,130,30,121", "new_tokens=9: a prompt of 130 tokens after 110 held has 20 to 130"),
        ("7,1,20,130,0,110", "out_token_size='0': must be at least 1; empty_output_tokens"),
        ("7,1,-20,90,1,110", "appended_input='-20': must be 0"),
    ],
)
def test_rows_that_cannot_be_are_named(tmp_path: Path, row: str, message: str) -> None:
    path = write(tmp_path, [*ROWS[:2], row])
    with pytest.raises(WorkloadError, match=f"line 4: {message}"):
        list(open_recordings(path)[1])
    source = Source(path, "skip")
    assert [one.identifier for one in conserve_artifact.read(source)] == ["8"]
    assert source.skipped == 1


def test_a_row_of_nobody_stops_the_reading(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="line 2: conv_id='': names no conversation"):
        list(conserve_artifact.read(Source(write(tmp_path, [",0,1,1,1,0"]), "skip")))


def test_the_papers_trace_is_our_csv_of_it(tmp_path: Path) -> None:
    if not OURS.is_file():
        pytest.skip(f"the trace is not there: {OURS}")
    rows = []
    with gzip.open(OURS, "rt") as file:
        for row in csv.DictReader(file):
            kept = int(row["input_tokens"]) - int(row["new_tokens"])
            lengths = row["new_tokens"], row["input_tokens"], row["output_tokens"], kept
            rows.append(",".join(map(str, (row["conv_id"], row["turn"], *lengths))))
    recordings = list(open_recordings(write(tmp_path, rows))[1])
    assert repr(recordings) == repr(list(open_recordings(OURS)[1]))
    assert len(recordings) == 2294
