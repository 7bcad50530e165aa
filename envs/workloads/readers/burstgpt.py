"""BurstGPT: requests to ChatGPT and GPT-4 at a university, in csv.

Columns ``Timestamp, Model, Request tokens, Response tokens, Total tokens, Log Type``, where each
request is a conversation of its own; from version 2 on also ``Session ID`` and ``Elapsed time``,
which tell the requests of a conversation and how long each was served. Times are in seconds.

Rows of requests that failed have lengths of 0 and are refused: read the published files without
failures, or skip what cannot be right.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from conserve_gym.envs.workloads.conversation import Recording, Turn
from conserve_gym.envs.workloads.readers.source import RowError, Source

FORMAT = "burstgpt"

_COLUMNS = ("Timestamp", "Request tokens", "Response tokens", "Log Type")
_OPTIONAL = ("Session ID", "Elapsed time", "Total tokens")


def looks_like(head: list[str]) -> bool:
    """Return whether these can be the first lines of such a file."""
    return bool(head) and set(_COLUMNS) <= {name.strip() for name in head[0].split(",")}


class _Request(NamedTuple):
    line: int
    time: float
    elapsed_s: float
    input_tokens: int
    output_tokens: int
    human: bool


def read(source: Source, input_is_incremental: bool = False) -> Iterator[Recording]:
    """Yield each session, or each request that is of none, in the order of their first rows.

    The file does not say what a prompt shares with the one before it. Of a full prompt that is
    longer than all that the conversation held, what is longer counts as new; a shorter one was cut
    or rewritten, and all of it counts as new. Gaps are what lies between the end of a request and
    the next one's time, at a resolution of 1 s, and 0 where they overlap.

    Any row may belong to any session, so every session is held until the file ends; requests of
    no session are not.

    Args:
        source: The file.
        input_is_incremental: Whether ``Request tokens`` counts what a request appends to its
            session, and not its full prompt.

    Raises:
        WorkloadError: A row cannot be right, or the file cannot be read.
    """
    sessions: dict[str, list[_Request]] = {}
    closed: set[str] = set()
    first = math.nan
    for line, cells in source.rows(_COLUMNS, _OPTIONAL):
        session = cells[4].strip()
        if session in closed:
            continue
        try:
            request = _request(source, line, cells)
            if first != first:
                first = request.time
            if request.time < first:
                why = f"before the first request, {first:g}"
                raise source.error(line, "Timestamp", cells[0], why)
            if not session:
                turns = _turns(source, [request], input_is_incremental)
                yield Recording(f"line {line}", f"line {line}", request.time - first, turns)
                continue
        except RowError as error:
            source.skip(error)
            if session:
                sessions.pop(session, None)
                closed.add(session)
            continue
        sessions.setdefault(session, []).append(request)
    for session, requests in sessions.items():
        requests.sort(key=lambda request: request.time)
        try:
            turns = _turns(source, requests, input_is_incremental)
        except RowError as error:
            source.skip(error)
            continue
        yield Recording(session, session, requests[0].time - first, turns)


def _request(source: Source, line: int, cells: tuple[str, ...]) -> _Request:
    time, input_tokens, output_tokens, log, _, elapsed, total = cells
    request = _Request(
        line,
        source.number(line, "Timestamp", time),
        source.number(line, "Elapsed time", elapsed) if elapsed.strip() else math.nan,
        source.integer(line, "Request tokens", input_tokens, 1),
        source.output(line, output_tokens, "Response tokens"),
        log.strip() == "Conversation log",
    )
    if total.strip():
        recorded = request.input_tokens + source.integer(line, "Response tokens", output_tokens)
        if source.integer(line, "Total tokens", total) != recorded:
            raise source.error(line, "Total tokens", total, f"not the sum of both, {recorded}")
    return request


def _turns(source: Source, requests: list[_Request], incremental: bool) -> tuple[Turn, ...]:
    turns: list[Turn] = []
    ended = math.nan
    for line, time, elapsed_s, tokens, output_tokens, human in requests:
        before = turns[-1] if turns else None
        held = before.input_tokens + before.output_tokens if before else 0
        input_tokens = held + tokens if incremental else tokens
        new_tokens = input_tokens - held if input_tokens > held else input_tokens
        gap_s = 0.0
        if before:
            gap_s = math.nan if ended != ended else max(time - ended, 0.0)
        turns.append(
            source.turn(
                line,
                before,
                input_tokens,
                new_tokens,
                output_tokens,
                gap_s,
                "user" if human else "unknown",
                time - requests[0].time,
            )
        )
        ended = time + elapsed_s
    return tuple(turns)
