"""A file that recordings are read from: unpacked, cut into rows, and strict about them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import reprlib
import zlib
from collections.abc import Generator, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal

import zstandard

from conserve_gym.envs.workloads.conversation import GapKind, Turn, WorkloadError
from conserve_gym.envs.workloads.readers import parquet

OnError = Literal["stop", "skip"]

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_EXAMPLES = 5
_SHOWN = 60


class RowError(WorkloadError):
    """A row that cannot be right; the message names file, line, field and value."""


class Imputed(int):
    """An output that was recorded with 0 tokens: what is taken for it."""


class Source:
    """A file of recordings, plain, packed with gzip or Zstandard, or Parquet, read as a stream.

    Args:
        path: The file.
        on_error: Whether a bad row stops the reading, or its conversation is left out and counted.
        unknown_gaps: Whether a turn after the first may have a gap that nobody knows (NaN).
        empty_output_tokens: What an output of 0 tokens counts as; None refuses empty outputs.
        keys: How the keys of such options begin, for errors: ``workload.`` in a scenario.

    Attributes:
        path: The file.
        keys: How the keys of options begin.
        is_parquet: Whether it is Parquet: then it has rows, but no lines.
        skipped: Conversations that were left out.
        problems: What was wrong with the first of them.
        notes: What its reader says of the whole file, once it is read.

    Raises:
        WorkloadError: There is no such file.
    """

    def __init__(
        self,
        path: Path,
        on_error: OnError = "stop",
        unknown_gaps: bool = True,
        empty_output_tokens: int | None = None,
        keys: str = "",
    ) -> None:
        """Look whether the file is there."""
        self.path = path
        self._on_error = on_error
        self._unknown_gaps = unknown_gaps
        self._empty_output_tokens = empty_output_tokens
        self.keys = keys
        self.skipped = 0
        self.problems: list[str] = []
        self.notes: list[str] = []
        if not path.is_file():
            raise WorkloadError(f"{path}: no such file")
        self.is_parquet = parquet.is_parquet(path)

    def error(self, line: int, field: str, value: object, why: str) -> RowError:
        """Return the error of a row, for its reader to raise."""
        unit = "row" if self.is_parquet else "line"
        return RowError(f"{self.path}, {unit} {line}: {field}={_short(value)}: {why}")

    def skip(self, error: RowError) -> None:
        """Leave a conversation out because of a bad row.

        Raises:
            RowError: Reading shall stop at bad rows.
        """
        if self._on_error == "stop":
            raise error
        self.skipped += 1
        if len(self.problems) < _EXAMPLES:
            self.problems.append(str(error))

    def lines(self) -> Generator[tuple[int, str], None, None]:
        """Yield every line that is not blank, with its number from 1.

        Raises:
            WorkloadError: The file cannot be unpacked or is not UTF-8.
        """
        if self.is_parquet:
            raise WorkloadError(f"{self.path}: Parquet is read as conserve_csv only")
        try:
            with self.path.open("rb") as packed, self._unpacked(packed) as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield number, line
        except (OSError, EOFError, UnicodeDecodeError, zlib.error, zstandard.ZstdError) as error:
            raise WorkloadError(f"{self.path}: cannot be read ({error})") from None

    def objects(self) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
        """Yield every line's JSON object, or what is wrong with the line."""
        for number, line in self.lines():
            yield number, self.json_object(number, line)

    def json_object(self, line: int, text: str) -> dict[str, Any] | RowError:
        """Return the JSON object that a text is, or what is wrong with it."""
        try:
            value = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            return self.error(line, "line", text.strip()[:_SHOWN], f"not JSON ({error})")
        if isinstance(value, dict):
            return value
        return self.error(line, "line", text.strip()[:_SHOWN], "not an object")

    def rows(
        self, columns: Sequence[str], optional: Sequence[str] = ()
    ) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Yield the named columns of every row of a csv file with a head, or of a Parquet file.

        A row's number is that of its line; in Parquet rows count from 1.

        Args:
            columns: Those that it must have.
            optional: Further ones; blank where the file has none.

        Raises:
            WorkloadError: A column is missing, or the file is not csv.
        """
        if self.is_parquet:
            yield from parquet.rows(self.path, columns, optional)
            return
        lines = self.lines()
        number = 1

        def texts() -> Iterator[str]:
            nonlocal number
            for number, text in lines:  # noqa: B007 (for the rows)
                yield text

        reader = csv.reader(texts(), strict=True)
        try:
            head = [name.strip() for name in next(reader, [])]
            if reader.line_num > 1:
                raise WorkloadError(f"{self.path}, line 1: a quote over several lines")
            missing = [name for name in columns if name not in head]
            if missing:
                raise WorkloadError(f"{self.path}, line 1: no column {', '.join(missing)}")
            # A cell more than the head has is blank in every row, and stands for absent columns.
            width = len(head) + 1
            places = [
                head.index(name) if name in head else width - 1 for name in (*columns, *optional)
            ]
            cells = itemgetter(*places)
            for read, row in enumerate(reader, start=2):
                if reader.line_num != read:
                    raise WorkloadError(f"{self.path}, line {number}: a quote over several lines")
                if len(row) >= width and any(row[width - 1 :]):
                    why = f"{len(row)} cells for {len(head)} columns"
                    raise WorkloadError(f"{self.path}, line {number}: {why}")
                row += [""] * (width - len(row))
                yield number, cells(row)
        except csv.Error as error:
            raise WorkloadError(f"{self.path}, line {number}: not csv ({error})") from None

    def integer(self, line: int, field: str, value: object, least: int = 0) -> int:
        """Return a whole number of a csv cell or a JSON value.

        Raises:
            RowError: It is none, or below ``least``.
        """
        if isinstance(value, str):
            try:
                number = int(value)
                if "_" in value:  # 1_000 is a number to Python alone
                    raise ValueError
            except ValueError:
                raise self.error(line, field, value.strip(), "not a whole number") from None
        elif isinstance(value, int) and not isinstance(value, bool):
            number = value
        elif isinstance(value, float) and value.is_integer():
            number = int(value)
        else:
            raise self.error(line, field, value, "not a whole number")
        if not least <= number < 2**53:
            raise self.error(line, field, value, f"must be {least} to 2^53")
        return number

    def number(self, line: int, field: str, value: object, least: float = 0.0) -> float:
        """Return a finite number of a csv cell or a JSON value.

        Raises:
            RowError: It is none, or below ``least``.
        """
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self.error(line, field, value, "not a number")
        try:
            number = float(value)
            if isinstance(value, str) and "_" in value:
                raise ValueError
        except (ValueError, OverflowError):
            raise self.error(line, field, value, "not a number") from None
        if not math.isfinite(number) or number < least:
            raise self.error(line, field, value, f"must be finite and at least {least:g}")
        return number

    def output(self, line: int, value: object, field: str = "output_tokens") -> int:
        """Return the length of an output, of an empty one what is taken for it.

        Raises:
            RowError: It is no length, or empty outputs are refused.
        """
        number = self.integer(line, field, value)
        if number:
            return number
        if self._empty_output_tokens is None:
            why = f"must be at least 1; {self.keys}empty_output_tokens says what to take for it"
            raise self.error(line, field, value, why)
        return Imputed(self._empty_output_tokens)

    def turn(
        self,
        line: int,
        before: Turn | None,
        input_tokens: int,
        new_tokens: int,
        output_tokens: int,
        gap_s: float,
        gap_kind: GapKind = "unknown",
        sent_s: float = math.nan,
    ) -> Turn:
        """Return a turn whose lengths fit together.

        Args:
            line: Where it stands.
            before: The turn before it; None for the first.
            input_tokens: Full prompt, at least 1.
            new_tokens: What of it the cache of earlier turns cannot cover, at least 1.
            output_tokens: Output; 0 is refused or counts as what ``output`` says.
            gap_s: Time since the end of the turn before; NaN if unknown.
            gap_kind: What passed in it.
            sent_s: When it was recorded, in seconds since the first turn; NaN if unknown.

        Raises:
            RowError: They do not.
        """
        held = before.input_tokens + before.output_tokens if before else 0
        if output_tokens == 0:
            output_tokens = self.output(line, 0)
        if gap_s != gap_s and before and not self._unknown_gaps:
            why = f"blank; {self.keys}blank_gap_s says what to take for it"
            raise self.error(line, "gap_s", "", why)
        for field, value in (
            ("input_tokens", input_tokens),
            ("new_tokens", new_tokens),
            ("output_tokens", output_tokens),
        ):
            if value < 1:
                raise self.error(line, field, value, "must be at least 1")
        if not input_tokens - held <= new_tokens <= input_tokens:
            why = f"a prompt of {input_tokens} tokens after {held} held has "
            why += f"{max(input_tokens - held, 1)} to {input_tokens} new ones"
            raise self.error(line, "new_tokens", new_tokens, why)
        return Turn(input_tokens, new_tokens, output_tokens, gap_s, gap_kind, sent_s)

    def _unpacked(self, packed: BinaryIO) -> IO[str]:
        magic = packed.read(4)
        packed.seek(0)
        unpacked: Any = packed
        if magic[:2] == _GZIP or self.path.suffix == ".gz":
            unpacked = gzip.GzipFile(fileobj=packed)
        elif magic == _ZSTD:
            unpacked = zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True)
        return io.TextIOWrapper(unpacked, encoding="utf-8-sig", newline="")


def _short(value: object) -> str:
    short = reprlib.Repr()
    short.maxlevel = 1
    short.maxstring = short.maxother = short.maxlong = _SHOWN
    return short.repr(value)


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON number")
