"""Our own csv: what the columns mean that not every file has."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from conserve_gym.envs.workloads.conversation import Recording, Turn, WorkloadError
from conserve_gym.envs.workloads.limits import Limits
from conserve_gym.envs.workloads.readers import conserve_csv
from conserve_gym.envs.workloads.readers.source import Imputed, Source

HEADER = (
    "conv_id,parent_conv_id,turn,arrival_s,t_s,gap_s,gap_kind,input_tokens,new_tokens,output_tokens"
)
ROWS = [
    "a,,0,3.5,7,9,user,100,100,10",
    "a/1,a,0,,8,,,40,40,5",
    "a,,1,x,9.5,1.5,tool,130,20,30",
    "a/1/1,a/1,0,,8.5,,,30,30,5",
    "a/1,a,1,,,,,60,15,5",
]
TRACES = Path(__file__).resolve().parents[4].parent / "shared/traces"


def read(
    tmp_path: Path, rows: list[str], limits: Limits | None = None, on_error: str = "stop"
) -> tuple[Source, list[Recording]]:
    path = tmp_path / "trace.csv"
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    source = Source(path, "skip" if on_error == "skip" else "stop")
    return source, list(conserve_csv.read(source, limits))


def test_roots_arrivals_times_and_kinds_are_read(tmp_path: Path) -> None:
    _, recordings = read(tmp_path, ROWS)
    nan = math.nan
    assert recordings == [
        Recording(
            "a",
            "a",
            3.5,
            (Turn(100, 100, 10, 0.0, "user", 0.0), Turn(130, 20, 30, 1.5, "tool", 2.5)),
        ),
        Recording(
            "a/1",
            "a",
            nan,
            (Turn(40, 40, 5, 0.0, "unknown", 0.0), Turn(60, 15, 5, nan, "unknown", nan)),
            "a",
        ),
        Recording("a/1/1", "a", nan, (Turn(30, 30, 5, 0.0, "unknown", 0.0),), "a/1"),
    ]


def test_a_root_need_not_be_in_the_file(tmp_path: Path) -> None:
    _, recordings = read(tmp_path, ROWS[3:4])
    assert [(one.identifier, one.root) for one in recordings] == [("a/1/1", "a/1")]


def test_a_root_may_be_named_where_its_own_rows_are_not(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    row = "a/1/1,{},{},0,10,10,1"
    head = "conv_id,parent_conv_id,root_conv_id,turn,input_tokens,new_tokens,output_tokens,gap_s"
    for parent in ("a/1", ""):
        path.write_text(f"{head}\n{row.format(parent, 'a')},\n")
        (one,) = conserve_csv.read(Source(path), grouped=True)
        assert (one.parent, one.root) == (parent or None, "a")
    path.write_text(f"{head}\n{row.format('a/1', 'a/1/1')},\n")
    with pytest.raises(WorkloadError, match="line 2: root_conv_id='a/1/1': has a parent"):
        list(conserve_csv.read(Source(path)))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("b,,0,-1,0,,,10,10,1", "arrival_s='-1': must be finite and at least 0"),
        ("b,,0,nan,0,,,10,10,1", "arrival_s='nan': must be finite"),
        ("b,,0,0,soon,,,10,10,1", "t_s='soon': not a number"),
        ("b,,0,0,0,,robot,10,10,1", "gap_kind='robot': none of tool, user, mixed, unknown"),
        ("b,b,0,0,0,,,10,10,1", "parent_conv_id='b': is its own descendant"),
        ("b,,0,0,0,,,1_0,10,1", "input_tokens='1_0': not a whole number"),
        ("b,,0,0,1_0,,,10,10,1", "t_s='1_0': not a number"),
    ],
)
def test_a_cell_that_cannot_be_is_named(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(WorkloadError, match=f"trace.csv, line 7: {message}"):
        read(tmp_path, [*ROWS, row])
    source, recordings = read(tmp_path, [*ROWS, row], on_error="skip")
    assert source.skipped == 1
    assert [one.identifier for one in recordings] == ["a", "a/1", "a/1/1"]


def test_a_circle_of_parents_is_refused_whole(tmp_path: Path) -> None:
    rows = ["b,c,0,,,,,1,1,1", "c,d,0,,,,,1,1,1", "d,b,0,,,,,1,1,1", "e,d,0,,,,,1,1,1"]
    source, recordings = read(tmp_path, [*rows, *ROWS], on_error="skip")
    assert source.skipped == 4
    assert len(recordings) == 3


def test_a_bad_row_leaves_its_whole_conversation_out(tmp_path: Path) -> None:
    rows = [*ROWS, "a,,2,,,0,tool,170,9,1", "a,,3,nonsense"]
    source, recordings = read(tmp_path, rows, on_error="skip")
    assert [one.identifier for one in recordings] == ["a/1", "a/1/1"]
    assert source.skipped == 1
    assert "line 7: new_tokens=9" in source.problems[0]


def test_what_is_beyond_the_limits_is_not_looked_at(tmp_path: Path) -> None:
    rows = [*ROWS, "a,,x,,,,,,,", "a/1/1,,,,,,,,,", "f,,0,,,,,0,0,0"]
    _, recordings = read(tmp_path, rows, Limits(conversations=3, max_turns=1))
    assert [len(one.turns) for one in recordings] == [1, 1, 1]


def test_a_quote_that_is_not_closed_swallows_no_rows(tmp_path: Path) -> None:
    for rows in ([*ROWS[:3], '"' + ROWS[3], ROWS[4]], [ROWS[0], '"b', 'b",,0,,,,,1,1,1']):
        with pytest.raises(WorkloadError, match=r"line \d: (not csv|a quote over several lines)"):
            read(tmp_path, rows)


def test_a_quote_in_the_head_swallows_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(f'{HEADER},"extra\n{ROWS[0]}\n{HEADER},"\n')
    with pytest.raises(WorkloadError, match="line 1: a quote over several lines"):
        list(conserve_csv.read(Source(path)))


def test_a_row_with_more_cells_than_the_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="line 2: 11 cells for 10 columns"):
        read(tmp_path, ["b,,0,0,0,0,user,10,10,1,000"])
    assert len(read(tmp_path, ["b,,0,0,0,0,user,10,10,1,"])[1]) == 1


def test_files_are_told_by_their_head() -> None:
    assert conserve_csv.looks_like([HEADER, *ROWS])
    assert conserve_csv.looks_like(
        ["turn, conv_id, gap_s, new_tokens, output_tokens, input_tokens"]
    )
    for head in ([], ["arrival_s,input_tokens,output_tokens"], ['{"conv_id": 1}']):
        assert not conserve_csv.looks_like(head)


def test_every_turn_of_a_coding_trace_is_read() -> None:
    path = TRACES / "weka_claude_code.csv.gz"
    if not path.is_file():
        pytest.skip(f"the trace is not there: {path}")
    recordings = list(conserve_csv.read(Source(path, empty_output_tokens=1)))
    assert len(recordings) == 773
    assert len({one.root for one in recordings}) == 710
    turns = [turn for one in recordings for turn in one.turns]
    assert len(turns) == 49_334
    assert sum(isinstance(turn.output_tokens, Imputed) for turn in turns) == 27
    assert all(turn.gap_kind != "unknown" for turn in turns)


GROUPED = [ROWS[0], ROWS[2], ROWS[1], ROWS[4], ROWS[3]]


def test_grouped_rows_are_yielded_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("\n".join([HEADER, *GROUPED, "b,,0,,,,,1,1,1", "broken"]) + "\n")
    stream = conserve_csv.read(Source(path), grouped=True)
    _, expected = read(tmp_path / "..", GROUPED)
    assert [next(stream) for _ in expected] == expected  # before the last line is looked at
    with pytest.raises(WorkloadError, match="line 8"):
        list(stream)


def test_grouped_rows_give_what_all_rows_give(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("\n".join([HEADER, *GROUPED]) + "\n")
    for limits in (None, Limits(conversations=2), Limits(max_turns=1), Limits(0)):
        grouped = list(conserve_csv.read(Source(path), limits, grouped=True))
        assert grouped == list(conserve_csv.read(Source(path), limits))


def test_a_conversation_that_comes_back_among_grouped_rows_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    rows = ["a,,0,,,,,9,9,1", "b,,0,,,,,9,9,1", "a,,1,,,,,20,10,1"]
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    with pytest.raises(WorkloadError, match="line 4: turn='1': expected 0"):
        list(conserve_csv.read(Source(path), grouped=True))
