"""Parquet files with the columns of our own csv are read as strictly as it is."""

from __future__ import annotations

import csv
import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import ODD, attempt

from conserve_gym.envs.workloads.conversation import Recording, WorkloadError
from conserve_gym.envs.workloads.limits import Limits
from conserve_gym.envs.workloads.readers import conserve_csv, parquet
from conserve_gym.envs.workloads.readers.registry import detect, open_recordings
from conserve_gym.envs.workloads.readers.source import Source

arrow = pytest.importorskip("pyarrow")
arrow_parquet = pytest.importorskip("pyarrow.parquet")

COLUMNS: dict[str, list[Any]] = {
    "conv_id": ["a", "a/1", "a", "a/1/1", "a/1"],
    "parent_conv_id": [None, "a", None, "a/1", "a"],
    "turn": [0, 0, 1, 0, 1],
    "arrival_s": [3.5, None, None, None, None],
    "t_s": [7.0, 8.0, 9.5, 8.5, None],
    "gap_s": [9.0, None, 1.5, None, None],
    "gap_kind": ["user", None, "tool", None, None],
    "input_tokens": [100, 40, 130, 30, 60],
    "new_tokens": [100, 40, 20, 30, 15],
    "output_tokens": [10, 5, 30, 5, 5],
    "note": [[1], [], None, [2], [3]],  # not looked at
}


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    arrow_parquet.write_table(arrow.table(columns), path, **options)
    return path


def read(path: Path, limits: Limits | None = None, grouped: bool = False) -> list[Recording]:
    return list(conserve_csv.read(Source(path), limits, grouped))


def as_csv(path: Path, columns: dict[str, Any]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def changed(**cells: Any) -> dict[str, Any]:
    """Return the table with other last cells."""
    return COLUMNS | {name: [*COLUMNS[name][:-1], cell] for name, cell in cells.items()}


def test_a_table_gives_what_its_csv_gives(tmp_path: Path) -> None:
    path = write(tmp_path / "told by its content", COLUMNS)
    expected = read(as_csv(tmp_path / "trace.csv", COLUMNS))
    assert detect(path) == "conserve_csv"
    assert repr(list(open_recordings(path)[1])) == repr(expected)
    limits = Limits(conversations=2, max_turns=1)
    assert read(path, limits) == read(tmp_path / "trace.csv", limits)
    assert expected[-1].parent == "a/1"


@pytest.mark.parametrize(
    "type_", ["large_string", "dictionary", "int32", "float32", "float64", "uint16"]
)
def test_columns_may_have_other_types(tmp_path: Path, type_: str) -> None:
    table = arrow.table(COLUMNS)
    texts, numbers = ("conv_id", "gap_kind"), ("turn", "input_tokens", "new_tokens")
    for name in texts if type_ in ("large_string", "dictionary") else numbers:
        column = table[name]
        column = column.dictionary_encode() if type_ == "dictionary" else column.cast(type_)
        table = table.set_column(table.column_names.index(name), name, column)
    arrow_parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    expected = read(as_csv(tmp_path / "trace.csv", COLUMNS))
    assert repr(read(tmp_path / "a.parquet")) == repr(expected)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"turn": 2}, "row 5: turn='2': expected 1"),
        ({"turn": None}, "row 5: turn='': not a whole number"),
        ({"input_tokens": 60.5}, "row 5: input_tokens='60.5': not a whole number"),
        ({"input_tokens": -1}, "row 5: input_tokens='-1': must be 1"),
        ({"gap_s": float("nan")}, "row 5: gap_s='nan': must be finite"),
        ({"gap_s": -0.5}, "row 5: gap_s='-0.5': must be finite and at least 0"),
        ({"conv_id": None, "turn": 0}, "row 5: conv_id='': blank"),
        ({"gap_kind": "robot"}, "row 5: gap_kind='robot': none of"),
        ({"new_tokens": 9}, "row 5: new_tokens=9: a prompt of 60 tokens after 45 held has"),
        ({"output_tokens": 0}, "row 5: output_tokens='0': must be at least 1"),
    ],
)
def test_a_cell_that_cannot_be_is_named(
    tmp_path: Path, cells: dict[str, Any], message: str
) -> None:
    with pytest.raises(WorkloadError, match=f"a.parquet, {message}"):
        read(write(tmp_path / "a.parquet", changed(**cells)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop_columns(["turn", "gap_s"]), "no column turn, gap_s"),
        (lambda table: table.append_column("turn", table["turn"]), "two columns turn"),
        (
            lambda table: table.set_column(2, "turn", table["note"]),
            r"column turn has list<.*>: neither text nor numbers",
        ),
    ],
)
def test_columns_that_cannot_be_are_named(
    tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    arrow_parquet.write_table(change(arrow.table(COLUMNS)), tmp_path / "a.parquet")
    with pytest.raises(WorkloadError, match=f"a.parquet: {message}"):
        read(tmp_path / "a.parquet")


def test_bad_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    source = Source(write(tmp_path / "a.parquet", changed(turn=7)), "skip")
    assert [one.identifier for one in conserve_csv.read(source)] == ["a", "a/1/1"]
    assert source.skipped == 1


def test_grouped_rows_are_read_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_BATCH", 2)
    rows = 9
    columns = {name: list(range(rows)) for name in ("conv_id", "input_tokens", "new_tokens")}
    columns["input_tokens"] = columns["new_tokens"] = [5] * rows
    columns |= {"turn": [0] * (rows - 1) + [3], "gap_s": [None] * rows, "output_tokens": [1] * rows}
    path = write(tmp_path / "a.parquet", columns, row_group_size=4)
    stream = conserve_csv.read(Source(path), grouped=True)
    assert [next(stream).identifier for _ in range(rows - 1)] == [str(i) for i in range(rows - 1)]
    with pytest.raises(WorkloadError, match="row 9: turn='3'"):
        next(stream)


def test_without_pyarrow_one_line_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.parquet", COLUMNS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(WorkloadError, match=r"pip install 'conserve-gym\[parquet\]'"):
        read(path)


def test_other_formats_are_no_parquet(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", COLUMNS)
    for format in ("weka", "azure", "mooncake"):
        with pytest.raises(WorkloadError, match=r"a.parquet: Parquet is read as conserve_csv only"):
            list(open_recordings(path, format)[1])


def test_a_damaged_page_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path, COLUMNS, compression="none", use_dictionary=False, write_page_checksum=True)
    content = path.read_bytes()
    at = content.index((130).to_bytes(8, "little") + (30).to_bytes(8, "little"))
    path.write_bytes(content[:at] + b"\x83" + content[at + 1 :])
    with pytest.raises(WorkloadError, match=r"a.parquet: cannot be read"):
        read(path)


CELLS = [*(odd.decode("latin-1") for odd in ODD if len(odd) < 100), None]


@st.composite
def broken_tables(draw: st.DrawFn) -> dict[str, list[str | None]]:
    """Return the table as texts, with some cells of other rows, odd, or of rows that moved."""
    rows = [
        [None if cell is None else str(cell) for cell in row]
        for row in zip(*(COLUMNS[name] for name in list(COLUMNS)[:-1]), strict=True)
    ]
    for _ in range(draw(st.sampled_from([1, 1, 2, 4]))):
        at, place = draw(st.integers(0, len(rows) - 1)), draw(st.integers(0, len(rows[0]) - 1))
        what = draw(st.sampled_from(["double", "move", "other", "odd", "odd", "odd"]))
        if what == "double":
            rows.insert(draw(st.integers(0, len(rows))), list(rows[at]))
        elif what == "move":
            rows.insert(draw(st.integers(0, len(rows) - 1)), rows.pop(at))
        else:
            other = [row[place] for row in rows] if what == "other" else CELLS
            rows[at][place] = draw(st.sampled_from(other))
    return dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=False))


def fuzz_cells(examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(broken_tables())
    def run(columns: dict[str, list[str | None]]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            table = write(Path(folder) / "a.parquet", columns)
            found = [attempt(lambda path=path: read(path))  # type: ignore[misc]
                     for path in (table, as_csv(Path(folder) / "a.csv", columns))]  # fmt: skip
            skipping = Source(table, "skip")
            skipped = attempt(lambda: list(conserve_csv.read(skipping)))
        # A csv cannot have line ends in its cells.
        if not any("\n" in (cell or "") or "\r" in (cell or "")
                   for column in columns.values() for cell in column):  # fmt: skip
            assert repr(found[0]) == repr(found[1])
        assert (skipping.skipped == 0) == (found[0] is not None) or skipped is None
        if found[0] is not None:
            assert sum(len(one.turns) for one in found[0]) == len(columns["turn"])

    run()


def fuzz_bytes(examples: int) -> None:
    buffer = io.BytesIO()
    table = arrow.table({name: COLUMNS[name] for name in list(COLUMNS)[:-1]})
    arrow_parquet.write_table(table, buffer, row_group_size=3, write_page_checksum=True)
    content = buffer.getvalue()

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def run(data: st.DataObject) -> None:
        mutated = bytearray(content)
        for _ in range(data.draw(st.sampled_from([1, 1, 2, 5]))):
            at = data.draw(st.integers(4, len(mutated) - 1))
            what = data.draw(st.sampled_from(["flip", "flip", "cut", "drop", "double", "replace"]))
            if what == "flip":
                mutated[at] = data.draw(st.integers(0, 255))
            elif what == "cut":
                del mutated[max(at, 5) :]
            elif what == "drop":
                del mutated[at : at + data.draw(st.integers(1, 8))]
            elif what == "double":
                mutated[at:at] = mutated[at : at + data.draw(st.integers(1, 64))]
            else:
                mutated[at : at + 4] = data.draw(st.sampled_from([b"\xff" * 4, b"\0" * 4, b"PAR1"]))
            if len(mutated) < 6:
                break
        with tempfile.NamedTemporaryFile() as file:
            file.write(mutated)
            file.flush()
            start = time.perf_counter()
            for on_error in ("stop", "skip"):
                source = Source(Path(file.name), on_error)  # type: ignore[arg-type]
                found = attempt(lambda source=source: list(conserve_csv.read(source)))  # type: ignore[misc]
                if found is not None and source.skipped == 0:
                    assert sum(len(one.turns) for one in found) == len(COLUMNS["turn"])
            assert time.perf_counter() - start < 5.0

    run()


def test_broken_cells_give_what_the_csv_gives() -> None:
    fuzz_cells(settings().max_examples)


def test_broken_files_give_conversations_or_an_error() -> None:
    fuzz_bytes(settings().max_examples)


@pytest.mark.slow
@pytest.mark.parametrize("fuzz", [fuzz_cells, fuzz_bytes])
def test_ten_thousand_broken_tables(fuzz: Callable[[int], None]) -> None:
    fuzz(10_000)
