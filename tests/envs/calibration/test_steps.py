"""Tables of measured steps as files."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from conserve_gym.envs.calibration.steps import CalibrationError, Steps

HEAD = "prompt_tokens,context_tokens,sequences,kv_tokens,ms\n"


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    steps = Steps.of([128, 0, 64], [0, 0, 32], [0, 4, 2], [0, 1000, 300], [10.5, 11.25, 12.125])
    steps.write(tmp_path / "steps.csv")
    again = Steps.read(tmp_path / "steps.csv")
    assert np.array_equal(again.ms, steps.ms)
    assert np.array_equal(again.kv_tokens, steps.kv_tokens)
    assert [len(part) for part in (again.of_prompts, again.of_decodes, again.mixed)] == [1, 1, 1]
    assert again.mixed.ms.tolist() == [12.125]


def test_comments_further_columns_and_gzip_are_read(tmp_path: Path) -> None:
    path = tmp_path / "steps.csv.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("# measured on a Tuesday\n" + HEAD.strip() + ",who\n128,0,0,0,10,me\n")
    assert Steps.read(path).ms.tolist() == [10.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt_tokens,ms\n1,2\n", "no column context_tokens, sequences, kv_tokens"),
        (HEAD + "128,0,0,0,10\n128,0,0,0,fast\n", "row 2: ms='fast' is not a number above 0"),
        (HEAD + "128,0,0,0,0\n", "row 1: ms=.*0.* is not a number above 0"),
        (HEAD + "-1,0,0,0,10\n", "row 1: prompt_tokens=.*-1.* is not a number from 0"),
        (HEAD + "1,,0,0,10\n", "row 1: context_tokens=.*nan.* is not a number from 0"),
        ("", "No columns"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "steps.csv"
    path.write_text(text)
    with pytest.raises(CalibrationError, match=message) as caught:
        Steps.read(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"none\.csv"):
        Steps.read(tmp_path / "none.csv")
