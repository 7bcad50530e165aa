"""Recordings written as our own csv or as Parquet, whichever format they came from."""

from __future__ import annotations

import csv
import gzip
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple

import zstandard

from conserve_gym.envs.workloads.conversation import Recording, WorkloadError

_BATCH = 65_536


class Written(NamedTuple):
    """How much was written."""

    conversations: int
    turns: int


class _Row(NamedTuple):
    conv_id: str
    parent_conv_id: str | None
    root_conv_id: str | None
    turn: int
    arrival_s: float | None
    t_s: float | None
    gap_s: float | None
    gap_kind: str
    input_tokens: int
    new_tokens: int
    output_tokens: int


def convert(recordings: Iterable[Recording], path: Path) -> Written:
    """Write recordings to a file, whole or not at all, holding no more than some of their turns.

    Args:
        recordings: What to write; unknown gaps and arrivals are left blank.
        path: A name that ends in ``.csv``, ``.csv.gz``, ``.csv.zst`` or ``.parquet`` (which needs
            the extra ``parquet``). A file of that name is replaced.

    Raises:
        WorkloadError: The ending is another, the file cannot be written, a conversation's name
            cannot be told from another's in a csv file, or reading the recordings fails.
    """
    write = next((write for end, write in _WRITERS.items() if path.name.endswith(end)), None)
    if write is None:
        raise WorkloadError(f"{path}: must end in one of {', '.join(_WRITERS)}")
    counts = _Counts()
    try:
        with _replacing(path) as file:
            write(counts.rows(recordings), file)
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be written ({error})") from None
    return Written(len(counts.names), counts.turns)


class _Counts:
    """Rows of recordings, counted while they pass."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.turns = 0

    def rows(self, recordings: Iterable[Recording]) -> Iterator[_Row]:
        for identifier, root, arrival_s, turns, parent in recordings:
            if identifier in self.names:
                raise WorkloadError(f"conversation {identifier!r}: there is another of that name")
            for name in (identifier, root, parent):
                if name is not None and not (name.strip() and name.isprintable()):
                    raise WorkloadError(
                        f"conversation {identifier!r}: a name must be printable and not blank"
                    )
            self.names.add(identifier)
            self.turns += len(turns)
            other_root = None if root == identifier else root
            arrival = _known(arrival_s)
            for index, turn in enumerate(turns):
                yield _Row(
                    identifier,
                    parent,
                    other_root,
                    index,
                    arrival,
                    _known(turn.sent_s),
                    _known(turn.gap_s),
                    turn.gap_kind,
                    turn.input_tokens,
                    turn.new_tokens,
                    turn.output_tokens,
                )


def _known(number: float) -> float | None:
    return None if math.isnan(number) else number


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes its place when it is whole, and is removed if it never is."""
    # In the same folder, so that taking the place is one step.
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _write_csv(rows: Iterator[_Row], file: IO[bytes]) -> None:
    with io.TextIOWrapper(file, encoding="utf-8", newline="") as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_Row._fields)
        writer.writerows(rows)  # None is blank


def _write_gzip(rows: Iterator[_Row], file: IO[bytes]) -> None:
    # Without a name and a time, so that the same recordings make the same file.
    with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
        _write_csv(rows, packed)  # type: ignore[arg-type]


def _write_zstd(rows: Iterator[_Row], file: IO[bytes]) -> None:
    with zstandard.ZstdCompressor().stream_writer(file) as packed:
        _write_csv(rows, packed)


def _write_parquet(rows: Iterator[_Row], file: IO[bytes]) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise WorkloadError(
            "Parquet needs pyarrow: pip install 'conserve-gym[parquet]', or write .csv.zst"
        ) from None
    text, whole, number = pyarrow.string(), pyarrow.int64(), pyarrow.float64()
    types = (text, text, text, whole, number, number, number, text, whole, whole, whole)
    schema = pyarrow.schema(list(zip(_Row._fields, types, strict=True)))
    with parquet.ParquetWriter(file, schema, write_page_checksum=True) as writer:
        while batch := list(islice(rows, _BATCH)):
            columns = map(pyarrow.array, zip(*batch, strict=True), types)
            writer.write_batch(pyarrow.record_batch(list(columns), schema))


_WRITERS: dict[str, Callable[[Iterator[_Row], IO[bytes]], None]] = {
    ".csv": _write_csv,
    ".csv.gz": _write_gzip,
    ".csv.zst": _write_zstd,
    ".parquet": _write_parquet,
}
