"""The trace of the ConServe paper's artifact, in csv: one row a turn.

Columns ``conv_id``; ``iter_id`` from 0; ``appended_input``, the new tokens of the prompt;
``total_input``, all of it; ``carried_over``, the rest; ``out_token_size``. There are no times: the
paper replays it without tool time (``paper/figures/section3/output/trace_profile_summary.csv`` of
github.com/jerryding95/conserve).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from conserve_gym.envs.workloads.conversation import Recording, Turn
from conserve_gym.envs.workloads.readers.detection import columns
from conserve_gym.envs.workloads.readers.sessions import OpenSessions, named
from conserve_gym.envs.workloads.readers.source import RowError, Source

FORMAT = "conserve_artifact"

_COLUMNS = (
    "conv_id",
    "iter_id",
    "appended_input",
    "total_input",
    "carried_over",
    "out_token_size",
)


def looks_like(head: list[str]) -> bool:
    """Return whether these can be the first lines of such a file."""
    return columns(head) >= set(_COLUMNS)


class _Conversation:
    """A conversation whose turns are being read."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.turns: list[Turn] = []


def read(source: Source) -> Iterator[Recording]:
    """Yield the conversations in the order of their first rows; all are held until the file ends.

    A row that does not name its conversation stops the reading even where others are left out.

    Args:
        source: The file.

    Raises:
        WorkloadError: A row cannot be right, or the file cannot be read.
    """
    conversations = OpenSessions(source, _Conversation)
    for line, cells in source.rows(_COLUMNS):
        one = conversations.get(named(source, line, "conv_id", cells[0]))
        if one is None:
            continue
        try:
            one.turns.append(_turn(source, line, cells, one.turns))
        except RowError as error:
            conversations.leave_out(one.name, error)
    for one in conversations:
        yield Recording(one.name, one.name, math.nan, tuple(one.turns))


def _turn(source: Source, line: int, cells: tuple[str, ...], turns: list[Turn]) -> Turn:
    if source.integer(line, "iter_id", cells[1]) != len(turns):
        raise source.error(line, "iter_id", cells[1].strip(), f"expected {len(turns)}")
    new, tokens, kept = (
        source.integer(line, field, cell)
        for field, cell in zip(_COLUMNS[2:5], cells[2:5], strict=True)
    )
    if tokens != new + kept:
        why = f"{new} appended and {kept} carried over make {new + kept}"
        raise source.error(line, "total_input", tokens, why)
    output = source.output(line, cells[5], "out_token_size")
    before = turns[-1] if turns else None
    if before is None:
        return source.turn(line, None, tokens, new, output, 0.0)
    return source.turn(line, before, tokens, new, output, math.nan, "tool")
