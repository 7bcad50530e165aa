"""Azure's requests: lengths and times of arrival."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from conserve_gym.envs.workloads.conversation import Recording, Turn, WorkloadError
from conserve_gym.envs.workloads.readers import azure
from conserve_gym.envs.workloads.readers.source import Source

DATED = "TIMESTAMP,ContextTokens,GeneratedTokens"
ROWS = [
    "2023-11-16 18:15:46.6805900,374,44",
    "2023-11-16 18:15:50.9951690,396,109",
    "2023-11-17 00:00:00.0000000,879,55",
]
TRACES = Path(__file__).resolve().parents[4].parent / "shared/traces"


def read(
    tmp_path: Path, rows: list[str], head: str = DATED, on_error: str = "stop"
) -> list[Recording]:
    path = tmp_path / "azure.csv"
    path.write_text("\n".join([head, *rows]))
    return list(azure.read(Source(path, "skip" if on_error == "skip" else "stop")))


def test_every_request_is_a_conversation_that_came_when_it_came(tmp_path: Path) -> None:
    recordings = read(tmp_path, ROWS)
    assert [one.turns for one in recordings] == [
        (Turn(374, 374, 44, 0.0, "unknown", 0.0),),
        (Turn(396, 396, 109, 0.0, "unknown", 0.0),),
        (Turn(879, 879, 55, 0.0, "unknown", 0.0),),
    ]
    assert [one.arrival_s for one in recordings] == pytest.approx([0.0, 4.314579, 20_653.31941])
    assert len({one.root for one in recordings}) == 3


def test_times_may_be_in_seconds_or_have_a_zone(tmp_path: Path) -> None:
    seconds = read(tmp_path, ["1.5,10,2", "3,5,1"], "arrival_s,input_tokens,output_tokens")
    assert [one.arrival_s for one in seconds] == [1.5, 3.0]
    zones = ["2024-05-10 00:00:00.5+00:00,1,1", "2024-05-10 00:00:01+00:00,1,1"]
    assert [one.arrival_s for one in read(tmp_path, zones)] == [0.0, 0.5]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("yesterday,1,1", "TIMESTAMP='yesterday': not a date"),
        ("2023-11-16 18:15:46,1,1", "TIMESTAMP='2023-11-16 18:15:46': before the first request"),
        ("2023-11-18 00:00:00+01:00,1,1", "TIMESTAMP=.*: with a time zone, or without"),
        ("2023-11-18 00:00:00,0,1", r"ContextTokens='0': must be 1 to 2\^53"),
        ("2023-11-18 00:00:00,1,0", "GeneratedTokens='0': must be at least 1"),
        ("2023-11-18 00:00:00,1", "GeneratedTokens='': not a whole number"),
    ],
)
def test_a_row_that_cannot_be_is_named(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(WorkloadError, match=rf"azure\.csv, line 5: {message}"):
        read(tmp_path, [*ROWS, row])
    assert len(read(tmp_path, [*ROWS, row, ROWS[2]], on_error="skip")) == 4


@pytest.mark.parametrize(("name", "requests"), [("code", 8_819), ("conv", 19_366)])
def test_lengths_and_arrivals_are_those_of_the_file(name: str, requests: int) -> None:
    path = TRACES / f"azure2023_{name}_singleturn.csv.gz"
    if not path.is_file():
        pytest.skip(f"the trace is not there: {path}")
    recordings = list(azure.read(Source(path)))
    with gzip.open(path) as file:
        table = np.loadtxt(file, delimiter=",", skiprows=1)
    assert len(recordings) == len(table) == requests
    assert [one.arrival_s for one in recordings] == table[:, 0].tolist()
    turns = [one.turns[0] for one in recordings]
    assert sum(turn.input_tokens for turn in turns) == table[:, 1].sum()
    assert sum(turn.output_tokens for turn in turns) == table[:, 2].sum()
    gaps = np.diff(table[:, 0])
    if name == "code":
        assert gaps.std() / gaps.mean() == pytest.approx(13.0, abs=0.5)


def test_published_dates_are_the_seconds_of_the_rebuilt_file() -> None:
    published = TRACES / "format_samples/azure_2023_conv_head100.csv"
    if not published.is_file():
        pytest.skip(f"the sample is not there: {published}")
    recordings = list(azure.read(Source(published)))
    rebuilt = list(azure.read(Source(TRACES / "azure2023_conv_singleturn.csv.gz")))[:99]
    assert [one.turns for one in recordings] == [one.turns for one in rebuilt]
    expected = [one.arrival_s for one in rebuilt]
    assert [one.arrival_s for one in recordings] == pytest.approx(expected, abs=5.01e-4)


def test_files_are_told_by_their_head() -> None:
    assert azure.looks_like([DATED])
    assert azure.looks_like(["arrival_s,input_tokens,output_tokens\r\n"])
    assert not azure.looks_like([])
    assert not azure.looks_like(["conv_id,arrival_s,input_tokens,output_tokens"])
