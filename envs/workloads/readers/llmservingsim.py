"""LLMServingSim: JSON lines of single requests, of agentic sessions, or of both.

A request has ``input_toks``, ``output_toks`` and ``arrival_time_ns``. A session has
``session_id``, ``arrival_time_ns`` and ``sub_requests``, each with ``input_toks`` of the full
prompt, ``output_toks``, and ``tool_duration_ns``, the wait after it. Token ids are not looked at:
what a prompt reuses follows from its length.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from conserve_gym.envs.workloads.conversation import GapKind, Recording, Turn
from conserve_gym.envs.workloads.readers.detection import objects
from conserve_gym.envs.workloads.readers.estimates import appended_tokens
from conserve_gym.envs.workloads.readers.sessions import named
from conserve_gym.envs.workloads.readers.source import RowError, Source

FORMAT = "llmservingsim"


def looks_like(head: list[str]) -> bool:
    """Return whether these can be the first lines of such a file."""
    return any("arrival_time_ns" in row or "sub_requests" in row for row in objects(head)[:1])


def read(source: Source) -> Iterator[Recording]:
    """Yield a conversation a line, as the lines come; only the names of sessions are held.

    Args:
        source: The file.

    Raises:
        WorkloadError: A line cannot be right, or the file cannot be read.
    """
    names: set[str] = set()
    for line, row in source.objects():
        try:
            if isinstance(row, RowError):
                raise row
            recording = _recording(source, line, row)
            if recording.identifier in names:
                raise source.error(line, "session_id", recording.identifier, "came before")
        except RowError as error:
            source.skip(error)
            continue
        if "sub_requests" in row:
            names.add(recording.identifier)
        yield recording


def _recording(source: Source, line: int, row: dict[str, Any]) -> Recording:
    arrival_s = source.number(line, "arrival_time_ns", row.get("arrival_time_ns")) * 1e-9
    if "sub_requests" not in row:
        turn = _turn(source, line, row, None, 0.0)
        return Recording(f"line {line}", f"line {line}", arrival_s, (turn,))
    name = named(source, line, "session_id", row.get("session_id"))
    requests = row["sub_requests"]
    if not isinstance(requests, list) or not requests:
        raise source.error(line, "sub_requests", type(requests).__name__, "not a list of requests")
    turns: list[Turn] = []
    wait_s = 0.0
    for number, request in enumerate(requests, start=1):
        if not isinstance(request, dict):
            raise source.error(line, f"sub_requests {number}", type(request).__name__, "no object")
        turns.append(_turn(source, line, request, turns[-1] if turns else None, wait_s))
        wait = request.get("tool_duration_ns", 0 if number == len(requests) else None)
        wait_s = source.number(line, "tool_duration_ns", wait) * 1e-9
    return Recording(name, name, arrival_s, tuple(turns))


def _turn(
    source: Source, line: int, row: dict[str, Any], before: Turn | None, gap_s: float
) -> Turn:
    tokens = source.integer(line, "input_toks", row.get("input_toks"), 1)
    output = source.output(line, row.get("output_toks"), "output_toks")
    kind: GapKind = "tool" if before else "unknown"
    new = appended_tokens(before, tokens)
    return source.turn(line, before, tokens, new, output, gap_s, kind)
