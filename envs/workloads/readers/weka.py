"""Agentic coding traces of WEKA, which AIPerf reads too: one JSON object a session.

A file holds one object, or one a line. Its ``requests`` of type ``n`` or ``s`` are the turns of the
session; an entry of type ``subagent`` holds the requests of a conversation of its own, which has
the session as its root and what holds the entry as its parent. See ``docs/trace_replay_tester.md``
of github.com/callanjfox/kv-cache-tester for the fields.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from conserve_gym.envs.workloads.conversation import GapKind, Recording, Turn
from conserve_gym.envs.workloads.readers.source import RowError, Source

FORMAT = "weka"

_START = 65_536  # characters of a first line that may hold a whole session


def looks_like(head: list[str]) -> bool:
    """Return whether these can be the first lines of such a file."""
    start = "".join(head)[:_START]
    return start.lstrip().startswith("{") and '"requests"' in start and '"block_size"' in start


def read(source: Source) -> Iterator[Recording]:
    """Yield each session, and after it those that it began.

    A gap is a request's ``think_time``, or else what lies between the end of the request before it
    and its own time; tools filled it if all that was new was a ``tool_result``, a human if none
    was. What a request shares with the turn before it is known in whole blocks only: if they are
    the same, its prompt and output count as kept whole. One session is held at a time, and the
    names of those before it.

    Args:
        source: The file.

    Raises:
        WorkloadError: A request cannot be right, or the file cannot be read.
    """
    names: set[str] = set()
    for line, session in _objects(source):
        try:
            conversations = _conversations(source, line, session, names)
        except RowError as error:
            source.skip(error)
            continue
        for identifier, root, parent, place, requests, block in conversations:
            try:
                turns = tuple(_turns(source, line, place, requests, block))
            except RowError as error:
                source.skip(error)
                continue
            yield Recording(identifier, root, math.nan, turns, parent)


_Conversation = tuple[str, str, str | None, str, list[tuple[int, dict[str, Any]]], int]


def _objects(source: Source) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    lines: Iterator[tuple[int, str]] = source.lines()
    number, text = next(lines, (1, ""))
    first = source.json_object(number, text)
    if isinstance(first, RowError):
        # One object over several lines, or one a line of which the first is broken.
        rest = list(lines)
        whole = source.json_object(number, text + "".join(line for _, line in rest))
        if not isinstance(whole, RowError):
            yield number, whole
            return
        lines = iter(rest)
    yield number, first
    for number, text in lines:
        yield number, source.json_object(number, text)


def _conversations(
    source: Source, line: int, session: dict[str, Any] | RowError, names: set[str]
) -> list[_Conversation]:
    """Return the conversations of a session that have requests, itself first."""
    if isinstance(session, RowError):
        raise session
    identifier = session.get("id")
    if not isinstance(identifier, str) or not identifier.strip():
        raise source.error(line, "id", identifier, "must be a text that is not blank")
    if identifier in names:
        raise source.error(line, "id", identifier, "there is another of that name")
    names.add(identifier)
    block = source.integer(line, "block_size", session.get("block_size"), 1)
    found: list[_Conversation] = []
    entries: list[tuple[str, str | None, str, dict[str, Any]]] = [(identifier, None, "", session)]
    for name, parent, place, entry in entries:  # grows while it is gone through
        requests = entry.get("requests")
        if not isinstance(requests, list) or (entry is session and not requests):
            raise source.error(line, f"{place}requests", requests, "must be a list of some")
        own = []
        for index, request in enumerate(requests):
            where = f"{place}requests[{index}]"
            if not isinstance(request, dict):
                raise source.error(line, where, request, "not an object")
            kind = request.get("type")
            if kind == "subagent":
                agent = request.get("agent_id")
                agent = f"{name}/{agent if isinstance(agent, str) else index}"
                while agent in names:
                    agent += f" ({index})"
                names.add(agent)
                entries.append((agent, name, f"{where}.", request))
            elif kind in ("n", "s"):
                own.append((index, request))
            else:
                raise source.error(line, f"{where}.type", kind, "none of n, s, subagent")
        if own:
            found.append((name, identifier, parent, place, own, block))
    return found


def _turns(
    source: Source, line: int, place: str, requests: list[tuple[int, dict[str, Any]]], block: int
) -> Iterator[Turn]:
    prompts = _Prompts()
    before: Turn | None = None
    began = ended = math.nan
    for index, request in requests:
        where = f"{place}requests[{index}]."
        input_tokens = source.integer(line, f"{where}in", request.get("in"), 1)
        output_tokens = source.output(line, request.get("out"), f"{where}out")
        blocks = request.get("hash_ids")
        if not isinstance(blocks, list) or not all(isinstance(one, int) for one in blocks):
            raise source.error(line, f"{where}hash_ids", blocks, "not a list of numbers")
        time = source.number(line, f"{where}t", request.get("t"))
        if before is None:
            began = time
        shared = min(prompts.share(blocks) * block, input_tokens)
        if before and shared + block >= before.input_tokens:
            new_tokens = input_tokens - before.input_tokens - before.output_tokens
        else:
            new_tokens = input_tokens - shared
        gap_s, kind = 0.0, _kind(source, line, where, request)
        if before and request.get("think_time") is not None:
            gap_s = source.number(line, f"{where}think_time", request["think_time"])
        elif before:
            gap_s = math.nan if ended != ended else max(time - ended, 0.0)
        before = source.turn(
            line,
            before,
            input_tokens,
            max(new_tokens, 1),
            output_tokens,
            gap_s,
            kind,
            time - began,
        )
        ended = math.nan
        if request.get("api_time") is not None:
            ended = time + source.number(line, f"{where}api_time", request["api_time"])
        yield before


class _Prompts:
    """The prompts of a conversation, as a tree of their blocks."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, int], int] = {}

    def share(self, blocks: list[int]) -> int:
        """Add a prompt, and return how many leading blocks it shares with an earlier one."""
        after = self._after
        node, shared = 0, 0
        for block in blocks:
            step = node, block
            if step in after:
                shared += 1
                node = after[step]
            else:
                node = after[step] = len(after) + 1
        return shared


def _kind(source: Source, line: int, where: str, request: dict[str, Any]) -> GapKind:
    types = request.get("input_types", [])
    if not isinstance(types, list):
        raise source.error(line, f"{where}input_types", types, "not a list")
    if not types:
        return "unknown"
    tools = sum(one == "tool_result" for one in types)
    if not tools:
        return "user"
    return "tool" if tools == len(types) else "mixed"
