"""The workload of recorded conversations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import PositiveInt, validate_call

from conserve_gym.envs.fields import NotNegative
from conserve_gym.envs.workloads.conversation import Recording, Turn, WorkloadError
from conserve_gym.envs.workloads.limits import Limits
from conserve_gym.envs.workloads.readers.registry import open_recordings
from conserve_gym.envs.workloads.readers.source import Imputed, OnError
from conserve_gym.envs.workloads.splits import Split, of_split
from conserve_gym.envs.workloads.transforms import applied, built


class RecordedWorkload:
    """The first conversations of a file, in the file's order.

    Args:
        path: File to read, plain, packed with gzip or Zstandard, or Parquet.
        conversations: How many to take, of the split if there is one; None takes all.
        max_turns: Longer conversations are cut; None takes all turns.
        blank_gap_s: What an unknown gap counts as; None refuses unknown gaps.
        max_first_input_tokens: Conversations whose first prompt is longer are left out, such as
            those that were recorded from their middle on; None takes all.
        max_context_tokens: Conversations are cut before the first turn whose prompt and output are
            longer together; None takes all turns.
        empty_output_tokens: What an output of 0 tokens counts as; None refuses empty outputs.
        format: Name of the file's format (``readers.registry.READERS``); ``auto`` looks at its
            first lines.
        on_error: Whether a bad row stops the reading, or its conversation is left out and counted.
        reader_options: The format's own options.
        split: Take those conversations only whose root is in this split; None takes all.
        transforms: Changes to what was taken, in this order (``transforms.TRANSFORMS``), as objects
            or as a configuration writes them.

    Attributes:
        name: File name with what was taken from it and what was assumed.
        arrivals_s: When each conversation began in the recording, in seconds; NaN if nobody knows.
        blank_gaps: Gaps of the turns played that were unknown.
        empty_outputs: Outputs of the turns taken that were empty.
        skipped: Conversations that were left out because of a bad row.
        problems: What was wrong with the first of them.

    Raises:
        WorkloadError: The file cannot be read, or a row of it cannot be right; the message names
            file, line, field and value.
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
        format: str = "auto",
        on_error: OnError = "stop",
        reader_options: Mapping[str, Any] | None = None,
        split: Split | None = None,
        transforms: Sequence[Any] = (),
    ) -> None:
        """Read and check the file."""
        if not path.is_file():
            raise WorkloadError(f"workload.path={path}: no such file")
        limits = Limits(
            _or_all(conversations),
            _or_all(max_turns),
            _or_all(max_first_input_tokens),
            _or_all(max_context_tokens),
        )
        source, stream = open_recordings(
            path,
            format,
            on_error,
            blank_gap_s is not None or bool(transforms),
            empty_output_tokens,
            limits if split is None else limits._replace(conversations=math.inf),
            "workload.",
            **(reader_options or {}),
        )
        recordings = list(stream)
        if split is not None:
            recordings = of_split(recordings, split)[:conversations]
        self.empty_outputs = 0
        recordings = [self._counted(recording) for recording in recordings]
        if not recordings:
            raise WorkloadError(f"{path}: no conversations")
        taken = "all" if conversations is None else "the first"
        self.name = f"{path.name} ({taken} {len(recordings):,} conversations"
        if split is not None:
            self.name += f" of the {split} split"
        if max_first_input_tokens is not None:
            self.name += f" with first prompts up to {max_first_input_tokens:,} tokens"
        self.name += f", {_turns(recordings):,} turns"
        if max_turns is not None:
            self.name += f", cut at {max_turns}"
        if max_context_tokens is not None:
            self.name += f", cut at {max_context_tokens:,} tokens"
        self.name += ")"

        changes = built(transforms)
        recordings = applied(changes, recordings)
        self.name += "".join(f", {change.name}" for change in changes)
        if changes:
            self.name += f": {len(recordings):,} conversations, {_turns(recordings):,} turns"

        self.blank_gaps = 0
        self._turns = [self._played(path, recording, blank_gap_s) for recording in recordings]
        self.arrivals_s = [recording.arrival_s for recording in recordings]
        self.skipped = source.skipped
        self.problems = source.problems
        if self.blank_gaps:
            self.name += f", {self.blank_gaps} blank gaps taken as {blank_gap_s:g} s"
        if self.empty_outputs:
            self.name += f", {self.empty_outputs} empty outputs taken as {empty_output_tokens}"
        if self.skipped:
            self.name += f", {self.skipped:,} conversations with bad rows left out"

    def draw(self, rng: np.random.Generator) -> list[tuple[Turn, ...]]:
        """Return the recorded turns; nothing is drawn."""
        return list(self._turns)

    def _counted(self, recording: Recording) -> Recording:
        """Return a recording with plain numbers, those that stand for empty outputs counted."""
        empty = sum(isinstance(turn.output_tokens, Imputed) for turn in recording.turns)
        if not empty:
            return recording
        self.empty_outputs += empty
        plain = (turn._replace(output_tokens=int(turn.output_tokens)) for turn in recording.turns)
        return recording._replace(turns=tuple(plain))

    def _played(
        self, path: Path, recording: Recording, blank_gap_s: float | None
    ) -> tuple[Turn, ...]:
        """Return turns whose gaps are all known."""
        turns = recording.turns
        blank = [i for i, turn in enumerate(turns) if i and math.isnan(turn.gap_s)]
        if not blank:
            return turns
        if blank_gap_s is None:
            raise WorkloadError(
                f"{path}, conversation {recording.identifier!r}, turn {blank[0]}: gap_s is "
                "unknown; workload.blank_gap_s says what to take for it"
            )
        self.blank_gaps += len(blank)
        played = list(turns)
        for i in blank:
            played[i] = turns[i]._replace(gap_s=blank_gap_s)
        return tuple(played)


def _or_all(limit: int | None) -> float:
    return math.inf if limit is None else limit


def _turns(recordings: Iterable[Recording]) -> int:
    return sum(len(recording.turns) for recording in recordings)
