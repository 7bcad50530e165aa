"""Reader of recorded conversations in csv, one row a turn, plain or gzipped."""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from pydantic import PositiveInt, validate_call

from conserve_gym.envs.fields import NotNegative
from conserve_gym.envs.workloads.conversation import Turn, WorkloadError

COLUMNS = ("conv_id", "turn", "gap_s", "input_tokens", "new_tokens", "output_tokens")
"""Columns that are read; a file may have more."""


class CsvTrace:
    """The first conversations of a csv file, in the file's order.

    Columns: ``conv_id``; ``turn`` from 0; ``gap_s`` between the last turn's end and this turn's
    arrival; ``input_tokens`` of the full prompt; ``new_tokens`` of it that need prefill while the
    conversation's own KV cache is resident; ``output_tokens``. Rows of a conversation stand in
    order of turns; those of others, such as its sub-agents, may stand between them.

    Args:
        path: File to read; ``.gz`` is unpacked.
        conversations: How many to take; None takes all.
        max_turns: Longer conversations are cut; None takes all turns.
        blank_gap_s: What a blank gap counts as; None refuses blank gaps.
        max_first_input_tokens: Conversations whose first prompt is longer are left out, such as
            those that were recorded from their middle on; None takes all.
        max_context_tokens: Conversations are cut before the first turn whose prompt and output are
            longer together; None takes all turns.
        empty_output_tokens: What an output of 0 tokens counts as; None refuses empty outputs.

    Attributes:
        name: File name with what was taken from it.
        blank_gaps: Gaps of the turns taken that were blank.
        empty_outputs: Outputs of the turns taken that were empty.

    Raises:
        WorkloadError: A row that cannot be right; the message names file, line, field and value.
    """

    @validate_call
    def __init__(
        self,
        path: Path,
        conversations: PositiveInt | None = None,
        max_turns: PositiveInt | None = None,
        blank_gap_s: NotNegative | None = None,
        max_first_input_tokens: PositiveInt | None = None,
        max_context_tokens: PositiveInt | None = None,
        empty_output_tokens: PositiveInt | None = None,
    ) -> None:
        """Read and check the file."""
        self._path = path
        self._blank_gap_s = blank_gap_s
        self._empty_output_tokens = empty_output_tokens
        self.blank_gaps = 0
        self.empty_outputs = 0
        if not self._path.is_file():
            raise WorkloadError(f"workload.path={self._path}: no such file")
        self._turns = self._read(
            conversations,
            math.inf if max_turns is None else max_turns,
            math.inf if max_first_input_tokens is None else max_first_input_tokens,
            math.inf if max_context_tokens is None else max_context_tokens,
        )
        turns = sum(len(conversation) for conversation in self._turns)
        taken = "all" if conversations is None else "the first"
        self.name = f"{self._path.name} ({taken} {len(self._turns):,} conversations"
        if max_first_input_tokens is not None:
            self.name += f" with first prompts up to {max_first_input_tokens:,} tokens"
        self.name += f", {turns:,} turns"
        if max_turns is not None:
            self.name += f", cut at {max_turns}"
        if max_context_tokens is not None:
            self.name += f", cut at {max_context_tokens:,} tokens"
        self.name += ")"
        if self.blank_gaps:
            self.name += f", {self.blank_gaps} blank gaps taken as {blank_gap_s:g} s"
        if self.empty_outputs:
            self.name += f", {self.empty_outputs} empty outputs taken as {empty_output_tokens}"

    def draw(self, rng: np.random.Generator) -> list[tuple[Turn, ...]]:
        """Return the recorded turns; nothing is drawn."""
        return list(self._turns)

    def _read(
        self,
        conversations: int | None,
        max_turns: float,
        max_first_input_tokens: float,
        max_context_tokens: float,
    ) -> list[tuple[Turn, ...]]:
        taken: dict[str, list[Turn]] = {}
        closed: set[str] = set()  # left out or cut: their further rows are not looked at
        for line, row in self._rows():
            identifier = row["conv_id"]
            if identifier in closed:
                continue
            if not identifier.strip():
                raise self._error(line, "conv_id", identifier, "blank")
            turns = taken.get(identifier, [])
            if not turns and len(taken) == conversations:
                closed.add(identifier)
                continue
            input_tokens, new_tokens, output_tokens = self._lengths(line, row, turns)
            too_long = input_tokens + output_tokens > max_context_tokens
            if too_long or (not turns and input_tokens > max_first_input_tokens):
                closed.add(identifier)
                continue
            if not output_tokens:
                output_tokens = self._empty_output(line, row)
            gap_s = self._gap(line, row) if turns else 0.0
            turns.append(Turn(input_tokens, new_tokens, output_tokens, gap_s))
            taken[identifier] = turns
            if len(turns) == max_turns:
                closed.add(identifier)
        if not taken:
            raise WorkloadError(f"{self._path}: no conversations")
        return [tuple(turns) for turns in taken.values()]

    def _lengths(self, line: int, row: dict[str, str], before: list[Turn]) -> tuple[int, int, int]:
        turn = self._integer(line, row, "turn", 0)
        if turn != len(before):
            raise self._error(line, "turn", row["turn"], f"expected {len(before)}")
        input_tokens = self._integer(line, row, "input_tokens", 1)
        new_tokens = self._integer(line, row, "new_tokens", 1)
        output_tokens = self._integer(line, row, "output_tokens", 0)
        held = before[-1].input_tokens + before[-1].output_tokens if before else 0
        if not input_tokens - held <= new_tokens <= input_tokens:
            raise self._error(
                line,
                "new_tokens",
                row["new_tokens"],
                f"a prompt of {input_tokens} tokens after {held} held has {input_tokens - held} "
                f"to {input_tokens} new ones",
            )
        return input_tokens, new_tokens, output_tokens

    def _empty_output(self, line: int, row: dict[str, str]) -> int:
        if self._empty_output_tokens is None:
            why = "must be at least 1; workload.empty_output_tokens says what to take for it"
            raise self._error(line, "output_tokens", row["output_tokens"], why)
        self.empty_outputs += 1
        return self._empty_output_tokens

    def _gap(self, line: int, row: dict[str, str]) -> float:
        text = row["gap_s"].strip()
        if not text:
            if self._blank_gap_s is None:
                raise self._error(
                    line, "gap_s", text, "blank; workload.blank_gap_s says what to take for it"
                )
            self.blank_gaps += 1
            return self._blank_gap_s
        try:
            gap = float(text)
        except ValueError:
            raise self._error(line, "gap_s", text, "not a number") from None
        if not math.isfinite(gap) or gap < 0.0:
            raise self._error(line, "gap_s", text, "must be finite and not negative")
        return gap

    def _integer(self, line: int, row: dict[str, str], field: str, least: int) -> int:
        text = row[field].strip()
        try:
            value = int(text)
        except ValueError:
            raise self._error(line, field, text, "not a whole number") from None
        if value < least:
            raise self._error(line, field, text, f"must be at least {least}")
        return value

    def _rows(self) -> Iterator[tuple[int, dict[str, str]]]:
        try:
            with self._open() as file:
                reader = csv.DictReader(file, restval="")
                missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
                if missing:
                    raise WorkloadError(f"{self._path}, line 1: no column {', '.join(missing)}")
                for row in reader:
                    yield reader.line_num, row
        except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
            raise WorkloadError(f"{self._path}: cannot be read ({error})") from None

    def _open(self) -> IO[str]:
        if self._path.suffix == ".gz":
            return gzip.open(self._path, "rt", encoding="utf-8-sig", newline="")
        return self._path.open(encoding="utf-8-sig", newline="")

    def _error(self, line: int, field: str, value: str, why: str) -> WorkloadError:
        return WorkloadError(f"{self._path}, line {line}: {field}={value!r}: {why}")
