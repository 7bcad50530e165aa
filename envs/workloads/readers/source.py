"""A file that recordings are read from: unpacked, cut into rows, and strict about them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import zstandard

from conserve_gym.envs.workloads.conversation import GapKind, Turn, WorkloadError

OnError = Literal["stop", "skip"]

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_EXAMPLES = 5


class RowError(WorkloadError):
    """A row that cannot be right; the message names file, line, field and value."""


class Source:
    """A file of recordings, plain or packed with gzip or Zstandard, read as a stream.

    Args:
        path: The file.
        on_error: Whether a bad row stops the reading, or its conversation is left out and counted.

    Attributes:
        path: The file.
        skipped: Conversations that were left out.
        problems: What was wrong with the first of them.

    Raises:
        WorkloadError: There is no such file.
    """

    def __init__(self, path: Path, on_error: OnError = "stop") -> None:
        """Look whether the file is there."""
        self.path = path
        self._on_error = on_error
        self.skipped = 0
        self.problems: list[str] = []
        if not path.is_file():
            raise WorkloadError(f"{path}: no such file")

    def error(self, line: int, field: str, value: object, why: str) -> RowError:
        """Return the error of a row, for its reader to raise."""
        return RowError(f"{self.path}, line {line}: {field}={value!r}: {why}")

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

    def lines(self) -> Iterator[tuple[int, str]]:
        """Yield every line that is not blank, with its number from 1.

        Raises:
            WorkloadError: The file cannot be unpacked or is not UTF-8.
        """
        try:
            with self._open() as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield number, line
        except (OSError, EOFError, UnicodeDecodeError, zlib.error, zstandard.ZstdError) as error:
            raise WorkloadError(f"{self.path}: cannot be read ({error})") from None

    def objects(self) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
        """Yield every line's JSON object, or what is wrong with the line."""
        for number, line in self.lines():
            try:
                value = json.loads(line, parse_constant=_refuse)
            except (ValueError, RecursionError) as error:
                yield number, self.error(number, "line", line.strip()[:40], f"not JSON ({error})")
                continue
            if isinstance(value, dict):
                yield number, value
            else:
                yield number, self.error(number, "line", line.strip()[:40], "not an object")

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
        """Yield the named columns of every row of a csv file with a head.

        Raises:
            WorkloadError: A column is missing, or the file is not csv.
        """
        lines = self.lines()
        number = 1

        def texts() -> Iterator[str]:
            nonlocal number
            for number, text in lines:  # noqa: B007 (for the rows)
                yield text

        reader = csv.reader(texts())
        try:
            head = [name.strip() for name in next(reader, [])]
            missing = [name for name in columns if name not in head]
            if missing:
                raise WorkloadError(f"{self.path}, line 1: no column {', '.join(missing)}")
            places = [head.index(name) for name in columns]
            width = max(places) + 1
            for row in reader:
                if len(row) < width:
                    row += [""] * (width - len(row))
                yield number, [row[place] for place in places]
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
            except ValueError:
                raise self.error(line, field, value, "not a whole number") from None
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
        except (ValueError, OverflowError):
            raise self.error(line, field, value, "not a number") from None
        if not math.isfinite(number) or number < least:
            raise self.error(line, field, value, f"must be finite and at least {least:g}")
        return number

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
            output_tokens: Output, at least 1.
            gap_s: Time since the end of the turn before; NaN if unknown.
            gap_kind: What passed in it.
            sent_s: When it was recorded, in seconds since the first turn; NaN if unknown.

        Raises:
            RowError: They do not.
        """
        held = before.input_tokens + before.output_tokens if before else 0
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

    def _open(self) -> IO[str]:
        raw = self.path.open("rb")
        magic = raw.read(4)
        raw.seek(0)
        unpacked: Any = raw
        if magic[:2] == _GZIP:
            unpacked = gzip.GzipFile(fileobj=raw)
        elif magic == _ZSTD:
            unpacked = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
        return io.TextIOWrapper(unpacked, encoding="utf-8-sig", newline="")


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON number")
