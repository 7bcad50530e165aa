"""Recordings written and read again."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conserve_gym.envs.workloads.conversation import GapKind, Recording, Turn, WorkloadError
from conserve_gym.envs.workloads.convert import convert
from conserve_gym.envs.workloads.readers.registry import open_recordings

TRACES = Path(__file__).resolve().parents[3].parent / "shared/traces"
PACKED = (".csv", ".csv.gz", ".csv.zst")
ENDINGS = (*PACKED, ".parquet")

seconds = st.floats(0.0, 1e9) | st.just(math.nan)
lengths = st.integers(1, 10**6)
kinds: st.SearchStrategy[GapKind] = st.sampled_from(("tool", "user", "mixed", "unknown"))


@st.composite
def turns(draw: st.DrawFn) -> tuple[Turn, ...]:
    recorded, held = [], 0
    times = [0.0, *(draw(seconds) for _ in range(draw(st.integers(0, 4))))]
    if draw(st.booleans()):
        times = [math.nan] * len(times)
    for index, sent_s in enumerate(times):
        new, output, kept = draw(lengths), draw(lengths), draw(st.integers(0, held))
        gap_s = draw(seconds) if index else 0.0
        recorded.append(Turn(kept + new, new, output, gap_s, draw(kinds), sent_s))
        held = kept + new + output
    return tuple(recorded)


names = st.text(min_size=1).filter(lambda name: name.isprintable() and name.strip())


@st.composite
def families(draw: st.DrawFn) -> list[Recording]:
    """Return conversations, many begun by earlier ones, and some whose parents are left out."""
    family: list[Recording] = []
    for name in draw(st.lists(names, unique=True)):
        parent = draw(st.none() | st.sampled_from(family)) if family else None
        family.append(
            Recording(
                name,
                parent.root if parent else name,
                draw(seconds),
                draw(turns()),
                parent.identifier if parent else None,
            )
        )
    return [one for one in family if draw(st.integers(0, 3))]


@settings(max_examples=60, deadline=None)
@given(recorded=families(), ending=st.sampled_from(ENDINGS))
def test_what_is_written_is_read_again(
    recorded: list[Recording], ending: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("written") / f"trace{ending}"
    written = convert(iter(recorded), path)
    assert written == (len(recorded), sum(len(one.turns) for one in recorded))
    assert repr(list(open_recordings(path)[1])) == repr(recorded)


@pytest.mark.parametrize(
    "name",
    [
        "conserve_miniswe_trace.csv.gz",
        "weka_claude_code.csv.gz",
        "mooncake_conversation_rebuilt.csv.gz",
        "taubench_airline_gpt4o_lengths.csv.gz",
        "azure2023_code_singleturn.csv.gz",
        "format_samples/burstgpt_v2_head.csv",
        "format_samples/weka_trace_0026.json",
    ],
)
def test_real_files_are_read_again(name: str, tmp_path: Path) -> None:
    path = TRACES / name
    if not path.is_file():
        pytest.skip(f"the file is not there: {path}")
    recorded = list(open_recordings(path, empty_output_tokens=1)[1])
    for ending in (".csv.zst", ".parquet"):
        copy = tmp_path / f"copy{ending}"
        convert(recorded, copy)
        assert repr(list(open_recordings(copy)[1])) == repr(recorded)


TWO = [
    Recording("a", "a", 1.5, (Turn(5, 5, 1, 0.0, "user", 0.0), Turn(9, 3, 2, math.nan, "tool"))),
    Recording("a/x", "a", math.nan, (Turn(7, 7, 1, 0.0),), "a"),
]


def test_parquet_has_the_columns_of_the_csv(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    convert(TWO, tmp_path / "two.parquet")
    convert(TWO, tmp_path / "two.csv")
    rows = parquet.read_table(tmp_path / "two.parquet").to_pylist()
    assert rows[1] == {
        "conv_id": "a",
        "parent_conv_id": None,
        "root_conv_id": None,
        "turn": 1,
        "arrival_s": 1.5,
        "t_s": None,
        "gap_s": None,
        "gap_kind": "tool",
        "input_tokens": 9,
        "new_tokens": 3,
        "output_tokens": 2,
    }
    lines = [",".join("" if cell is None else str(cell) for cell in row.values()) for row in rows]
    assert (tmp_path / "two.csv").read_text().splitlines() == [",".join(rows[0]), *lines]


def test_parquet_without_pyarrow_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(WorkloadError, match=r"pip install 'conserve-gym\[parquet\]'"):
        convert(TWO, tmp_path / "two.parquet")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_that_cannot_be_whole_is_not_written(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"trace{ending}"
    path.write_bytes(b"before")

    def failing() -> Iterator[Recording]:
        yield TWO[0]
        raise WorkloadError("a bad row")

    with pytest.raises(WorkloadError, match="a bad row"):
        convert(failing(), path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("recorded", "message"),
    [
        ([TWO[0], TWO[0]], "conversation 'a': there is another of that name"),
        ([TWO[0]._replace(identifier="a\nb")], r"conversation 'a\\nb': a name must be printable"),
        ([TWO[0]._replace(root=" ")], "conversation 'a': a name must be printable and not blank"),
        ([TWO[0]._replace(parent="")], "conversation 'a': a name must be printable and not blank"),
        ([TWO[0]._replace(identifier="\ud800")], "a name must be printable"),
    ],
)
def test_names_that_could_not_be_read_again_are_refused(
    tmp_path: Path, recorded: list[Recording], message: str
) -> None:
    with pytest.raises(WorkloadError, match=message):
        convert(recorded, tmp_path / "trace.csv")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for path in (tmp_path / "nowhere/trace.csv", tmp_path / "folder.csv"):
        with pytest.raises(WorkloadError, match=rf"{path.name}: cannot be written"):
            convert(TWO, path)
    with pytest.raises(WorkloadError, match=r"trace\.json: must end in one of \.csv, \.csv\.gz"):
        convert(TWO, tmp_path / "trace.json")
    assert len(list(tmp_path.iterdir())) == 1


def test_the_same_recordings_make_the_same_file(tmp_path: Path) -> None:
    for ending in PACKED:
        files = [tmp_path / f"{name}{ending}" for name in ("one", "other")]
        for path in files:
            convert(TWO, path)
        assert files[0].read_bytes() == files[1].read_bytes()
