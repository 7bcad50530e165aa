"""TraceLab: rounds of coding agents, as its csv for simulators and as its JSON lines.

Both state how much of a prompt the service's own cache held, and that is what counts as reused, up
to what the conversation held: a prefix that the cache had lost counts as new. The first prompt of
a conversation is all new, though the service may have had parts of it from others.

Csv (``artifacts/trace_facts/csv_export`` of github.com/uw-syfi/TraceLab, and its replay traces):
``session_id`` or ``id``; ``arrival_time`` of the session in ms, if there is one; ``round_idx``
from 0; ``prefix_len`` reused and ``input_len`` appended tokens of the prompt; ``output_len``;
``tool_wait_after_ms`` until the next round.

JSON lines, one a round: ``session_id``, ``round_index`` from 0, ``input_tokens_total``,
``prefix_tokens``, ``newly_append_tokens``, ``output_tokens``, ``timing_events`` with
``event_type`` and ``timestamp``, ``tools`` with ``tool_wall_latency_ms``. A gap runs from the last
thing that the model sent to the last thing that it was given. Where events do not tell, it is the
longest of the tools that ran.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from conserve_gym.envs.workloads.conversation import GapKind, Recording, Turn
from conserve_gym.envs.workloads.readers.detection import columns, objects
from conserve_gym.envs.workloads.readers.sessions import OpenSessions, named
from conserve_gym.envs.workloads.readers.source import RowError, Source

FORMAT = "tracelab"

_COLUMNS = ("round_idx", "prefix_len", "input_len", "output_len", "tool_wait_after_ms")
_FIELDS = ("session_id", "round_index", "newly_append_tokens", "prefix_tokens")
_GIVEN: dict[str, GapKind] = {"user_message": "user", "tool_result": "tool"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SENT = {"reasoning", "text", "tool_call"}


def looks_like(head: list[str]) -> bool:
    """Return whether these can be the first lines of such a file."""
    rows = objects(head)
    if rows:
        return all(field in rows[0] for field in _FIELDS)
    return columns(head) >= set(_COLUMNS)


def read(source: Source) -> Iterator[Recording]:
    """Yield the sessions in the order of their first rounds.

    Rounds of a session stand in order, but those of others may stand between them, so every
    session is held until the file ends. A row that does not name its session stops the reading
    even where others are left out: nobody knows which one it would shorten.

    Args:
        source: The file.

    Raises:
        WorkloadError: A row cannot be right, or the file cannot be read.
    """
    _, first = next(source.lines(), (0, ""))
    return _json_lines(source) if first.lstrip().startswith("{") else _csv(source, first)


class _Session:
    """A session whose rounds are being read."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.arrival_s = math.nan
        self.turns: list[Turn] = []
        self.wait_s = math.nan  # after the last round, as far as that round says
        self.kind: GapKind = "unknown"
        self.begun_us = math.nan
        self.given_us = math.nan  # when the last round began, and when it ended
        self.sent_us = math.nan

    def append(
        self, source: Source, line: int, prefix: int, appended: int, output: int, gap_s: float
    ) -> None:
        before = self.turns[-1] if self.turns else None
        held = before.input_tokens + before.output_tokens if before else 0
        tokens = prefix + appended
        # A prompt that was in the cache as a whole still has its last token computed.
        new = max(appended, tokens - held, 1)
        kind: GapKind = self.kind if before else "unknown"
        gap_s = gap_s if before else 0.0
        self.turns.append(source.turn(line, before, tokens, new, output, gap_s, kind))


def _csv(source: Source, head: str) -> Iterator[Recording]:
    name = "session_id" if "session_id" in columns([head]) else "id"
    sessions = OpenSessions(source, _Session)
    for line, cells in source.rows((name, *_COLUMNS), ("arrival_time",)):
        session = sessions.get(named(source, line, name, cells[0]))
        if session is None:
            continue
        try:
            _read_cells(source, line, cells, session)
        except RowError as error:
            sessions.leave_out(session.name, error)
    for session in sessions:
        yield Recording(session.name, session.name, session.arrival_s, tuple(session.turns))


def _read_cells(source: Source, line: int, cells: tuple[str, ...], session: _Session) -> None:
    _, number, prefix, appended, output, wait, arrival = cells
    _check_round(source, line, "round_idx", number, session)
    arrival_s = source.number(line, "arrival_time", arrival) / 1000 if arrival.strip() else math.nan
    if not session.turns:
        session.arrival_s = arrival_s
    elif not (arrival_s == session.arrival_s or math.isnan(session.arrival_s)):
        expected = f"the session's is {session.arrival_s * 1000:g}"
        raise source.error(line, "arrival_time", arrival, expected)
    session.append(
        source,
        line,
        source.integer(line, "prefix_len", prefix),
        source.integer(line, "input_len", appended, 1),
        source.output(line, output, "output_len"),
        session.wait_s,
    )
    session.wait_s = source.number(line, "tool_wait_after_ms", wait) / 1000
    session.kind = "tool"


def _json_lines(source: Source) -> Iterator[Recording]:
    sessions = OpenSessions(source, _Session)
    for line, row in source.objects():
        if isinstance(row, RowError):
            raise row
        session = sessions.get(named(source, line, "session_id", row.get("session_id")))
        if session is None:
            continue
        try:
            _read_round(source, line, row, session)
        except RowError as error:
            sessions.leave_out(session.name, error)
    begun = [session.begun_us for session in sessions if not math.isnan(session.begun_us)]
    start_us = min(begun, default=0.0)
    for session in sessions:
        arrival_s = (session.begun_us - start_us) / 1e6
        yield Recording(session.name, session.name, arrival_s, tuple(session.turns))


def _read_round(source: Source, line: int, row: dict[str, Any], session: _Session) -> None:
    _check_round(source, line, "round_index", row.get("round_index"), session)
    tokens, prefix, appended = (
        source.integer(line, field, row.get(field))
        for field in ("input_tokens_total", "prefix_tokens", "newly_append_tokens")
    )
    if tokens != prefix + appended:
        why = f"{prefix} reused and {appended} appended tokens make {prefix + appended}"
        raise source.error(line, "input_tokens_total", tokens, why)
    kind, given_us, sent_us = _times(source, line, row)
    if given_us < session.given_us:
        raise source.error(line, "timing_events", given_us, "before those of the round before")
    gap_s = session.wait_s
    if not math.isnan(given_us - session.sent_us):
        # A tool may be done before the model is.
        gap_s, session.kind = max(0.0, given_us - session.sent_us) / 1e6, kind
    if not session.turns:
        session.begun_us = given_us
    output = source.output(line, row.get("output_tokens"))
    session.append(source, line, prefix, appended, output, gap_s)
    session.given_us, session.sent_us = given_us, sent_us
    session.wait_s = _longest_tool_s(source, line, row)
    session.kind = "unknown" if math.isnan(session.wait_s) else "tool"


def _times(source: Source, line: int, row: dict[str, Any]) -> tuple[GapKind, float, float]:
    """Return what was given to a round, when the last of it was, and when it sent its last."""
    given: list[float] = []
    sent: list[float] = []
    kinds: set[GapKind] = set()
    for event in _list(source, line, row, "timing_events"):
        kind = event.get("event_type")
        if kind in ("user_message", "tool_result"):
            kinds.add(_GIVEN[kind])
            given.append(_time_us(source, line, event.get("timestamp")))
        elif isinstance(kind, str) and kind in _SENT:
            sent.append(_time_us(source, line, event.get("timestamp")))
    what: GapKind = "mixed" if len(kinds) > 1 else next(iter(kinds), "unknown")
    return what, max(given, default=math.nan), max(sent, default=math.nan)


def _longest_tool_s(source: Source, line: int, row: dict[str, Any]) -> float:
    waits = [tool.get("tool_wall_latency_ms") for tool in _list(source, line, row, "tools")]
    known = [
        source.number(line, "tool_wall_latency_ms", wait) for wait in waits if wait is not None
    ]
    return max(known, default=math.nan) / 1000


def _list(source: Source, line: int, row: dict[str, Any], field: str) -> list[dict[str, Any]]:
    value = row.get(field)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise source.error(line, field, type(value).__name__, "not a list of objects")
    return value


def _time_us(source: Source, line: int, value: object) -> float:
    """Return microseconds since 1970, which a float holds without loss."""
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
        if moment is not None:
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            return (moment - _EPOCH) / timedelta(microseconds=1)
    except (ValueError, OverflowError):
        pass
    raise source.error(line, "timestamp", value, "not a time such as 2026-06-01T05:40:20.151Z")


def _check_round(source: Source, line: int, field: str, value: object, session: _Session) -> None:
    if source.integer(line, field, value) != len(session.turns):
        raise source.error(line, field, value, f"expected {len(session.turns)}")
