"""Recorded conversations: what is read, and what is said of a file that cannot be read."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from conserve_gym.envs.configuration import load_scenario
from conserve_gym.envs.workloads.conversation import Turn, WorkloadError
from conserve_gym.envs.workloads.recorded import RecordedWorkload
from conserve_gym.errors import ConServeGymError

HEADER = "conv_id,model,turn,gap_s,input_tokens,new_tokens,output_tokens"
ROWS = [
    "a,m,0,,100,100,10",
    "a,m,1,0.5,130,20,30",
    "a,m,2,2,40,40,1",  # rewritten: nothing of what was held is still valid
    "b,m,0,,7,7,1",
    "c,m,0,,50,50,5",
    "c,m,1,0,60,5,5",
]
A = (Turn(100, 100, 10, 0.0), Turn(130, 20, 30, 0.5), Turn(40, 40, 1, 2.0))
B = (Turn(7, 7, 1, 0.0),)
C = (Turn(50, 50, 5, 0.0), Turn(60, 5, 5, 0.0))

REAL_TRACES = Path(__file__).resolve().parents[3].parent / "shared/traces"
REAL_TRACE = REAL_TRACES / "conserve_miniswe_trace.csv.gz"
CODING_TRACE = REAL_TRACES / "weka_claude_code.csv.gz"


def write(tmp_path: Path, rows: list[str], header: str = HEADER) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def read(path: Path, **options: Any) -> list[tuple[Turn, ...]]:
    return RecordedWorkload(path, **options).draw(np.random.default_rng(0))


def test_plain_and_gzipped_files_are_read_alike(tmp_path: Path) -> None:
    path = write(tmp_path, ROWS)
    zipped = tmp_path / "trace.csv.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert read(path) == read(zipped) == [A, B, C]
    assert RecordedWorkload(path).name == "trace.csv (all 3 conversations, 6 turns)"


def test_spaces_line_ends_and_blank_lines_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    rows = [row.replace(",", ", ") if row.startswith("a") else row for row in ROWS]
    path.write_bytes("\r\n".join([HEADER, *rows[:3], "", *rows[3:]]).encode())
    assert read(path) == [A, B, C]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"conversations": 2}, [A, B]),
        ({"conversations": 9}, [A, B, C]),
        ({"max_turns": 2}, [A[:2], B, C]),
        ({"max_turns": 1, "conversations": 1}, [A[:1]]),
    ],
)
def test_limits(tmp_path: Path, options: dict[str, int], expected: list[Any]) -> None:
    assert read(write(tmp_path, ROWS), **options) == expected


@pytest.mark.parametrize(
    "field",
    [
        "conversations",
        "max_turns",
        "max_first_input_tokens",
        "max_context_tokens",
        "empty_output_tokens",
    ],
)
def test_limits_below_one_are_refused(tmp_path: Path, field: str) -> None:
    with pytest.raises(ValidationError, match=f"{field}\n.*greater than 0"):
        RecordedWorkload(write(tmp_path, ROWS), **{field: 0})


def test_rows_beyond_the_limit_are_not_looked_at(tmp_path: Path) -> None:
    assert read(write(tmp_path, [*ROWS, "c,m,nonsense"]), conversations=2) == [A, B]


def test_blank_gaps_are_refused_or_counted(tmp_path: Path) -> None:
    path = write(tmp_path, [ROWS[0], "a,m,1,,130,20,30", "a,m,2, ,170,10,1"])
    with pytest.raises(WorkloadError, match=r"line 3: gap_s='': blank; workload\.blank_gap_s says"):
        RecordedWorkload(path)
    trace = RecordedWorkload(path, blank_gap_s=1.5)
    assert trace.blank_gaps == 2
    assert trace.name.endswith("2 blank gaps taken as 1.5 s")
    assert [turn.gap_s for turn in trace.draw(np.random.default_rng(0))[0]] == [0.0, 1.5, 1.5]
    assert RecordedWorkload(path, max_turns=2, blank_gap_s=0.0).blank_gaps == 1
    assert RecordedWorkload(path, max_turns=1).blank_gaps == 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,m,2,x,170,10,1", "gap_s='x': not a number"),
        ("a,m,2,-0.1,170,10,1", "gap_s='-0.1': must be finite and at least 0"),
        ("a,m,2,nan,170,10,1", "gap_s='nan': must be finite"),
        ("a,m,2,inf,170,10,1", "gap_s='inf': must be finite"),
        ("a,m,3,0,170,10,1", "turn='3': expected 2"),
        ("a,m,1,0,170,10,1", "turn='1': expected 2"),
        ("a,m,,0,170,10,1", "turn='': not a whole number"),
        ("a,m,-2,0,170,10,1", r"turn='-2': must be 0 to 2\^53"),
        ("a,m,2,0,170.0,10,1", "input_tokens='170.0': not a whole number"),
        ("a,m,2,0,many,10,1", "input_tokens='many': not a whole number"),
        ("a,m,2,0,0,10,1", r"input_tokens='0': must be 1 to 2\^53"),
        ("a,m,2,0,170,0,1", r"new_tokens='0': must be 1 to 2\^53"),
        ("a,m,2,0,170,9,1", "new_tokens=9: .* 170 tokens after 160 held has 10 to 170 new"),
        ("a,m,2,0,170,171,1", "new_tokens=171: .* 10 to 170 new"),
        ("a,m,2,0,170,10,0", "output_tokens='0': must be at least 1"),
        ("a,m,2,0,170,10", "output_tokens='': not a whole number"),
        ("a,m,2", "input_tokens='': not a whole number"),
        ("d,m,0,,10,9,1", "new_tokens=9: .* 10 tokens after 0 held has 10 to 10 new"),
        ("d,m,1,0,10,10,1", "turn='1': expected 0"),
        (",m,0,,10,10,1", "conv_id='': blank"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, row: str, message: str) -> None:
    path = write(tmp_path, [*ROWS[:2], row, *ROWS[3:]])
    with pytest.raises(WorkloadError, match=rf"{re.escape(str(path))}, line 4: {message}"):
        RecordedWorkload(path)


def test_rows_of_other_conversations_may_stand_between(tmp_path: Path) -> None:
    path = write(tmp_path, [ROWS[0], ROWS[4], ROWS[1], ROWS[3], ROWS[5], ROWS[2]])
    assert read(path) == [A, C, B]
    assert read(path, conversations=2, max_turns=2) == [A[:2], C]


@pytest.mark.parametrize(
    ("options", "expected", "says"),
    [
        (
            {"max_first_input_tokens": 99},
            [B, C],
            "all 2 conversations with first prompts up to 99 tokens, 3 turns)",
        ),
        (
            {"max_first_input_tokens": 50, "conversations": 1},
            [B],
            "the first 1 conversations with first prompts up to 50",
        ),
        ({"max_context_tokens": 159}, [A[:1], B, C], "4 turns... cut at 159 tokens)"),
        ({"max_context_tokens": 160}, [A, B, C], "6 turns... cut at 160 tokens)"),
        ({"max_context_tokens": 54}, [B], "all 1 conversations, 1 turns... cut at 54 tokens)"),
        ({"max_context_tokens": 64}, [B, C[:1]], "2 turns... cut at 64 tokens)"),
    ],
)
def test_limits_of_length(
    tmp_path: Path, options: dict[str, int], expected: list[Any], says: str
) -> None:
    trace = RecordedWorkload(write(tmp_path, ROWS), **options)
    assert trace.draw(np.random.default_rng(0)) == expected
    assert all(part in trace.name for part in says.split("..."))


def test_what_is_left_out_counts_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, ["d,m,0,,90,90,0", *ROWS[:1], "a,m,1,,130,20,0", "a,m,2,x,y,z,0"])
    trace = RecordedWorkload(
        path, max_first_input_tokens=100, max_context_tokens=129, empty_output_tokens=1
    )
    assert trace.draw(np.random.default_rng(0)) == [(Turn(90, 90, 1, 0.0),), A[:1]]
    assert (trace.blank_gaps, trace.empty_outputs) == (0, 1)


def test_empty_outputs_are_refused_or_counted(tmp_path: Path) -> None:
    path = write(tmp_path, [ROWS[0], "a,m,1,2,130,20,0", "a,m,2,0,140,8,1"])
    message = r"line 3: output_tokens='0': .*; workload\.empty_output_tokens says"
    with pytest.raises(WorkloadError, match=message):
        RecordedWorkload(path)
    with pytest.raises(WorkloadError, match=r"line 4: new_tokens=8: .* after 131 held"):
        RecordedWorkload(path, empty_output_tokens=1)
    trace = RecordedWorkload(path, empty_output_tokens=2)
    assert read(path, empty_output_tokens=2)[0][1] == Turn(130, 20, 2, 2.0)
    assert trace.name.endswith("3 turns), 1 empty outputs taken as 2")


@pytest.mark.parametrize("column", ["conv_id", "turn", "gap_s", "new_tokens"])
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    path = write(tmp_path, ROWS, HEADER.replace(column, "other"))
    with pytest.raises(WorkloadError, match=rf"trace\.csv, line 1: no column {column}$"):
        RecordedWorkload(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", b"", r"empty\.csv, line 1: no column conv_id, turn, gap_s, input_tokens"),
        ("header.csv", f"{HEADER}\n".encode(), r"header\.csv: no conversations"),
        ("bytes.csv", b"\xff\xfe\x00", r"bytes\.csv: cannot be read \(.*utf-8"),
        ("plain.csv.gz", b"conv_id", r"plain\.csv\.gz: cannot be read \(Not a gzipped"),
    ],
)
def test_a_file_that_is_no_trace_is_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(WorkloadError, match=message):
        RecordedWorkload(path)


@pytest.mark.parametrize("damage", ["cut off", "overwritten"])
def test_a_damaged_gzipped_file_is_named(tmp_path: Path, damage: str) -> None:
    rows = [f"{i},m,0,,{i + 1},{i + 1},{i * i + 1}" for i in range(5000)]
    whole = gzip.compress("\n".join([HEADER, *rows]).encode())
    path = tmp_path / "trace.csv.gz"
    kept = len(whole) // 2 if damage == "cut off" else 10  # the header of the format
    path.write_bytes(whole[:kept] + (b"\xff" * 100 if damage == "overwritten" else b""))
    with pytest.raises(WorkloadError, match=r"trace\.csv\.gz: cannot be read \("):
        RecordedWorkload(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.csv", tmp_path):
        with pytest.raises(WorkloadError, match=f"workload.path={path}: no such file"):
            load_scenario(["workload=trace", f"workload.path={path}"])


@pytest.fixture(scope="module")
def real_trace() -> Path:
    if not REAL_TRACE.is_file():
        pytest.skip(f"the trace is not there: {REAL_TRACE}")
    return REAL_TRACE


def percentiles(values: list[int]) -> list[int]:
    return [round(value) for value in np.percentile(values, (50, 95, 99))]


def test_the_papers_workload_has_the_statistics_of_its_description(real_trace: Path) -> None:
    workload = load_scenario(["workload=trace", f"workload.path={real_trace}"]).workload
    conversations = workload.draw(np.random.default_rng(0))
    assert len(conversations) == 255
    assert {len(turns) for turns in conversations} == {5}
    every = [turn for turns in conversations for turn in turns]
    later = [turn for turns in conversations for turn in turns[1:]]
    assert workload.name.endswith(
        "(the first 255 conversations, 1,275 turns, cut at 5), 1020 blank gaps taken as 0 s"
    )
    assert percentiles([turns[0].input_tokens for turns in conversations]) == [15709, 17108, 18230]
    assert percentiles([turn.new_tokens for turn in later]) == [67, 67, 69]
    assert percentiles([turn.output_tokens for turn in every]) == [57, 270, 3832]
    peaks = percentiles([turns[-1].input_tokens for turns in conversations])
    assert [round(peak, -3) for peak in peaks[:2]] == [16000, 18000]
    assert {turn.gap_s for turn in every} == {0.0}


def test_the_papers_whole_trace_has_the_statistics_of_its_description(real_trace: Path) -> None:
    conversations = RecordedWorkload(real_trace, blank_gap_s=0.0).draw(np.random.default_rng(0))
    every = [turn for turns in conversations for turn in turns]
    later = [turn for turns in conversations for turn in turns[1:]]
    assert (len(conversations), len(every)) == (2294, 22805)
    first = [turns[0].input_tokens for turns in conversations]
    assert np.percentile(first, (50, 95, 99)) == pytest.approx([15890, 17293, 18755], abs=1)
    assert percentiles([turn.output_tokens for turn in every]) == [121, 799, 3896]
    assert max(turn.new_tokens for turn in later) == 313
    assert np.mean([turn.new_tokens == 67 for turn in later]) == pytest.approx(0.987, abs=5e-4)
    share = sum(first) / sum(turn.new_tokens for turn in every)
    assert share == pytest.approx(0.96, abs=5e-3)


def test_a_coding_trace_has_the_conversations_of_its_description() -> None:
    if not CODING_TRACE.is_file():
        pytest.skip(f"the trace is not there: {CODING_TRACE}")
    trace = RecordedWorkload(
        CODING_TRACE,
        blank_gap_s=0.0,
        max_first_input_tokens=32_768,
        max_context_tokens=131_072,
        empty_output_tokens=1,
    )
    assert trace.name.startswith(
        "weka_claude_code.csv.gz (all 448 conversations with first prompts up to 32,768 tokens, "
        "21,545 turns, cut at 131,072 tokens)"
    )


def test_the_packaged_workload_has_the_quantiles_of_the_whole_trace(real_trace: Path) -> None:
    recorded = RecordedWorkload(real_trace, blank_gap_s=0.0).draw(np.random.default_rng(0))
    overrides = ["workload.conversations=4000", "workload.max_turns=10"]
    drawn = load_scenario(overrides).workload.draw(np.random.default_rng(0))
    for turn in range(10):
        one, other = (
            np.array([turns[turn].output_tokens for turns in source if len(turns) > turn])
            for source in (recorded, drawn)
        )
        assert np.percentile(other, (25, 50, 75, 90)) == pytest.approx(
            np.percentile(one, (25, 50, 75, 90)), rel=0.1
        )


def test_bad_conversations_are_left_out_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path, [ROWS[0], "b,m,0,,7,8,1", *ROWS[1:3], *ROWS[4:], "a,m,3,0,1,1,x"])
    trace = RecordedWorkload(path, on_error="skip")
    assert trace.draw(np.random.default_rng(0)) == [C]
    assert trace.name == (
        "trace.csv (all 1 conversations, 2 turns), 2 conversations with bad rows left out"
    )
    assert trace.skipped == 2
    assert "line 3: new_tokens=8" in trace.problems[0]
    assert "line 8: output_tokens='x'" in trace.problems[1]
    # Those behind a bad one move up.
    assert read(path, on_error="skip", conversations=1) == [C]
    with pytest.raises(WorkloadError, match="line 3: new_tokens=8"):
        RecordedWorkload(path)


def many(tmp_path: Path, blank: str = "1") -> Path:
    rows = [f"c{i},m,0,,{i + 1},{i + 1},1" for i in range(100)]
    return write(tmp_path, [*rows, f"c7,m,1,{blank},20,11,0"])


def test_a_split_is_taken_before_the_first_ones_of_it(tmp_path: Path) -> None:
    parts = [
        RecordedWorkload(many(tmp_path), split=split, empty_output_tokens=1)
        for split in ("train", "validation", "test")
    ]
    drawn = [part.draw(np.random.default_rng(0)) for part in parts]
    assert sorted(turns for part in drawn for turns in part) == sorted(
        read(many(tmp_path), empty_output_tokens=1)
    )
    assert all(drawn)
    assert sum(part.empty_outputs for part in parts) == 1
    assert f"(all {len(drawn[2])} conversations of the test split, " in parts[2].name
    first = read(many(tmp_path), split="test", conversations=2, max_turns=1)
    assert first == [turns[:1] for turns in drawn[2][:2]]


def test_transforms_change_what_was_taken_and_say_so(tmp_path: Path) -> None:
    path = many(tmp_path, blank="")
    trace = load_scenario(
        [
            "workload=trace",
            f"workload.path={path}",
            "workload.conversations=20",
            "workload.blank_gap_s=3",
            "workload.empty_output_tokens=2",
            "workload.transforms=[{scale_lengths:{new:2}},{first_input:{least:5}}]",
        ]
    ).workload
    drawn = trace.draw(np.random.default_rng(0))
    assert drawn[5] == (Turn(16, 16, 1, 0.0), Turn(17 + 22, 22, 2, 3.0))
    assert len(drawn) == len(trace.arrivals_s) == 18
    assert trace.name == (
        "trace.csv (the first 20 conversations, 21 turns, cut at 5), new tokens × 2, outputs × 1, "
        "first prompts from 5 tokens: 18 conversations, 19 turns, 1 blank gaps taken as 3 s, "
        "1 empty outputs taken as 2"
    )
    with pytest.raises(
        WorkloadError, match="conversation 'c7', turn 1: gap_s is unknown; workload"
    ):
        RecordedWorkload(path, empty_output_tokens=1, transforms=[{"scale_lengths": {"new": 2}}])
    with pytest.raises(WorkloadError, match="no conversation is left"):
        RecordedWorkload(path, max_turns=1, transforms=[{"first_input": {"least": 101}}])


def test_arrivals_are_those_of_the_conversations_drawn(tmp_path: Path) -> None:
    rows = ["a,5,0,,1,1,1", "b,,0,,2,2,1", "c,7.5,0,,3,3,1"]
    path = write(tmp_path, rows, HEADER.replace("model", "arrival_s"))
    arrivals = RecordedWorkload(path).arrivals_s
    assert [repr(time) for time in arrivals] == ["5.0", "nan", "7.5"]


def test_other_formats_and_their_options(tmp_path: Path) -> None:
    path = tmp_path / "burst.csv"
    head = "Timestamp,Session ID,Elapsed time,Request tokens,Response tokens,Log Type"
    path.write_text(f"{head}\n1,a,2,10,0,API log\n5,a,,10,5,API log\n9,b,1,7,1,API log\n")
    options = ["workload=trace", f"workload.path={path}", "workload.empty_output_tokens=3"]
    incremental = "+workload.reader_options.input_is_incremental=true"
    trace = load_scenario([*options, incremental]).workload
    assert [turn[:4] for turn in trace.draw(np.random.default_rng(0))[0]] == [
        (10, 10, 3, 0.0),
        (23, 10, 5, 2.0),
    ]
    assert trace.name == (
        "burst.csv (the first 2 conversations, 3 turns, cut at 5), 1 empty outputs taken as 3"
    )
    limited = load_scenario([*options, "workload.max_context_tokens=12"]).workload
    assert [len(turns) for turns in limited.draw(np.random.default_rng(0))] == [1]
    assert limited.empty_outputs == 0
    for option, message in (
        (
            "+workload.reader_options.x=1",
            "burst.csv .burstgpt.: workload.reader_options.x=1: Unexpected keyword",
        ),
        ("workload.format=parquet", "format=parquet: none of auto, conserve_csv, cons"),
        ("workload.format=azure", "burst.csv, line 1: no column TIMESTAMP"),
        ("workload.on_error=ignore", "workload.on_error='ignore': Input should be 'stop' or"),
        ("workload.split=half", "workload.split='half': Input should be 'train'"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            load_scenario([*options, option])
        assert isinstance(caught.value, ConServeGymError)
