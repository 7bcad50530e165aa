"""Azure's production requests: single turns with real arrivals.

Columns ``TIMESTAMP, ContextTokens, GeneratedTokens``, as published (AzurePublicDataset, 2023 and
2024), or ``arrival_s, input_tokens, output_tokens`` with seconds for dates.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from conserve_gym.envs.workloads.conversation import Recording
from conserve_gym.envs.workloads.readers.source import RowError, Source

FORMAT = "azure"

_DATED = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_SECONDS = ("arrival_s", "input_tokens", "output_tokens")


def looks_like(head: list[str]) -> bool:
    """Return whether these can be the first lines of such a file."""
    names = _names(head[0]) if head else []
    return set(_DATED) <= set(names) or names == list(_SECONDS)


def read(source: Source) -> Iterator[Recording]:
    """Yield each request as a conversation of one turn, named after its line.

    Dates count from the first request's on. Nothing is held.

    Args:
        source: The file.

    Raises:
        WorkloadError: A row cannot be right, or the file cannot be read.
    """
    head = next((text for _, text in source.lines()), "")
    columns = _SECONDS if "arrival_s" in _names(head) else _DATED
    first: datetime | None = None
    for line, (time, input_tokens, output_tokens) in source.rows(columns):
        try:
            tokens = source.integer(line, columns[1], input_tokens, 1)
            output = source.output(line, output_tokens, columns[2])
            if columns is _SECONDS:
                arrival_s = source.number(line, "arrival_s", time)
            else:
                date = _date(source, line, time)
                first = first or date
                arrival_s = _since(source, line, time, date, first)
            turn = source.turn(line, None, tokens, tokens, output, 0.0, sent_s=0.0)
        except RowError as error:
            source.skip(error)
            continue
        yield Recording(f"line {line}", f"line {line}", arrival_s, (turn,))


def _names(head: str) -> list[str]:
    return [name.strip() for name in head.split(",")]


def _date(source: Source, line: int, text: str) -> datetime:
    try:
        return datetime.fromisoformat(text.strip())
    except ValueError:
        raise source.error(line, "TIMESTAMP", text, "not a date") from None


def _since(source: Source, line: int, text: str, date: datetime, first: datetime) -> float:
    if (date.tzinfo is None) != (first.tzinfo is None):
        raise source.error(line, "TIMESTAMP", text, "with a time zone, or without, unlike others")
    seconds = (date - first).total_seconds()
    if seconds < 0.0:
        raise source.error(line, "TIMESTAMP", text, f"before the first request, {first}")
    return seconds
