"""Our own csv, or Parquet with the same columns: one row a turn.

Columns: ``conv_id``; ``turn`` from 0; ``gap_s`` between the last turn's end and this turn's
arrival, blank if unknown; ``input_tokens`` of the full prompt; ``new_tokens`` of it that need
prefill while the conversation's own KV cache is resident; ``output_tokens``. A file may also have
``parent_conv_id``, the conversation that began this one; ``root_conv_id``, the one that began all,
for files without the rows that lead to it; ``arrival_s``, read on turn 0; ``t_s``, when a turn was
recorded, on any clock of the conversation; and ``gap_kind``. Other columns are not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, cast, get_args

from conserve_gym.envs.workloads.conversation import GapKind, Recording, Turn
from conserve_gym.envs.workloads.limits import Limits
from conserve_gym.envs.workloads.readers.source import RowError, Source

FORMAT = "conserve_csv"

COLUMNS = ("conv_id", "turn", "gap_s", "input_tokens", "new_tokens", "output_tokens")
OPTIONAL = ("parent_conv_id", "arrival_s", "gap_kind", "t_s", "root_conv_id")

_KINDS = {"": "unknown"} | {kind: kind for kind in get_args(GapKind)}


def looks_like(head: list[str]) -> bool:
    """Return whether these can be the first lines of such a file."""
    names = {name.strip() for name in head[0].split(",")} if head else set()
    return {"conv_id", "turn", "input_tokens", "new_tokens"} <= names


class _Link(NamedTuple):
    """Where a conversation belongs, as its first row says; texts are blank where it does not."""

    line: int
    parent: str
    root: str


class _Open:
    """A conversation whose rows are being read."""

    __slots__ = ("arrival_s", "began_s", "turns")

    def __init__(self, arrival_s: float, began_s: float) -> None:
        self.arrival_s = arrival_s
        self.began_s = began_s
        self.turns: list[Turn] = []


def read(
    source: Source, limits: Limits | None = None, grouped: bool = False
) -> Iterator[Recording]:
    """Yield the conversations in the order of their first rows.

    Rows of a conversation stand in order of turns, but those of others may stand between them, so
    every conversation that is taken is held until the file ends, unless they are ``grouped``.

    Args:
        source: The file.
        limits: What is taken; rows beyond it are not looked at.
        grouped: Whether the rows of each conversation stand together: then no more than one is
            held, and files may be larger than the memory.

    Raises:
        WorkloadError: A row cannot be right, or the file cannot be read.
    """
    limits = limits or Limits()
    held: dict[str, _Open] = {}
    yielded = 0
    closed: set[str] = set()  # left out or cut: their further rows are not looked at
    links: dict[str, _Link] = {}
    for line, cells in source.rows(COLUMNS, OPTIONAL):
        identifier = cells[0]
        if identifier in closed:
            continue
        one = held.get(identifier)
        if one is None and grouped:
            for recording in _ended(source, held, links):
                yield recording
                yielded += 1
            held.clear()
            closed.clear()
        if one is None and yielded + len(held) >= limits.conversations:
            if grouped:
                return
            closed.add(identifier)
            continue
        try:
            if one is None:
                one = _begun(source, line, cells)
                parent, root = (name if name.strip() else "" for name in (cells[6], cells[10]))
                if parent or root:
                    links[identifier] = _Link(line, parent, root)
            lengths = _lengths(source, line, cells, len(one.turns))
            if limits.end_before(len(one.turns), lengths[0], lengths[2]):
                closed.add(identifier)
                continue
            one.turns.append(_turn(source, line, cells, lengths, one))
        except RowError as error:
            source.skip(error)
            held.pop(identifier, None)
            closed.add(identifier)
            continue
        held[identifier] = one
        if len(one.turns) >= limits.max_turns:
            closed.add(identifier)
    yield from _ended(source, held, links)


def _ended(source: Source, held: dict[str, _Open], links: dict[str, _Link]) -> Iterator[Recording]:
    for identifier, one in held.items():
        try:
            root = _root(source, identifier, links)
        except RowError as error:
            source.skip(error)
            continue
        link = links.get(identifier)
        parent = link.parent if link else ""
        yield Recording(identifier, root, one.arrival_s, tuple(one.turns), parent or None)


def _begun(source: Source, line: int, cells: tuple[str, ...]) -> _Open:
    if not cells[0].strip():
        raise source.error(line, "conv_id", cells[0], "blank")
    return _Open(
        _seconds(source, line, "arrival_s", cells[7]), _seconds(source, line, "t_s", cells[9])
    )


def _seconds(source: Source, line: int, field: str, cell: str) -> float:
    cell = cell.strip()
    return source.number(line, field, cell) if cell else math.nan


def _lengths(source: Source, line: int, cells: tuple[str, ...], index: int) -> tuple[int, int, int]:
    _, turn, _, input_tokens, new_tokens, output_tokens = cells[:6]
    if source.integer(line, "turn", turn) != index:
        raise source.error(line, "turn", turn.strip(), f"expected {index}")
    return (
        source.integer(line, "input_tokens", input_tokens, 1),
        source.integer(line, "new_tokens", new_tokens, 1),
        source.integer(line, "output_tokens", output_tokens),
    )


def _turn(
    source: Source,
    line: int,
    cells: tuple[str, ...],
    lengths: tuple[int, int, int],
    one: _Open,
) -> Turn:
    input_tokens, new_tokens, output_tokens = lengths
    kind = cells[8].strip()
    gap_kind = _KINDS.get(kind)
    if gap_kind is None:
        raise source.error(line, "gap_kind", kind, f"none of {', '.join(get_args(GapKind))}")
    before = one.turns[-1] if one.turns else None
    sent_s = _seconds(source, line, "t_s", cells[9]) - one.began_s
    return source.turn(
        line,
        before,
        input_tokens,
        new_tokens,
        output_tokens or source.output(line, cells[5]),
        _seconds(source, line, "gap_s", cells[2]) if before else 0.0,
        cast(GapKind, gap_kind),
        math.nan if sent_s != sent_s else sent_s,
    )


def _root(source: Source, identifier: str, links: dict[str, _Link]) -> str:
    """Return the first root that it or one that led to it states, or else the last parent."""
    seen = {identifier}
    stated, top = "", identifier
    while link := links.get(top):
        stated = stated or link.root
        if not link.parent:
            break
        top = link.parent
        if top in seen:
            raise source.error(link.line, "parent_conv_id", top, "is its own descendant")
        seen.add(top)
    if stated == identifier != top:
        raise source.error(links[identifier].line, "root_conv_id", stated, "has a parent")
    return stated or top
