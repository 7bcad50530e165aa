"""AIPerf's ``mooncake_trace`` and ``multi_turn``: JSON lines, which may also be mixed.

A ``mooncake_trace`` line is a request with exactly one of ``input_length``, ``text_input``,
``messages`` and ``payload``; ``output_length``; and perhaps ``session_id``, ``timestamp`` in ms,
``delay`` in ms since the end of the request before, and ``hash_ids``. Requests of a session stand
in order; those without one are conversations of one turn. Hashes are not looked at, because their
block size stands elsewhere: files of requests without sessions whose hashes tell conversations are
read as ``mooncake``.

A ``multi_turn`` line is a conversation with ``turns``, each with ``text`` or ``texts`` that are
added to what was said before, ``output_length``, and perhaps ``delay`` or ``timestamp``.

A text counts as its characters divided by ``chars_per_token``, rounded up. Those of messages are
their contents, and the names and values of their tool calls and of the tools on offer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from conserve_gym.envs.fields import Positive
from conserve_gym.envs.workloads.conversation import Recording, Turn, WorkloadError
from conserve_gym.envs.workloads.readers import mooncake
from conserve_gym.envs.workloads.readers.detection import objects
from conserve_gym.envs.workloads.readers.estimates import appended_tokens
from conserve_gym.envs.workloads.readers.sessions import OpenSessions, named
from conserve_gym.envs.workloads.readers.source import RowError, Source

FORMAT = "aiperf"

_INPUTS = ("input_length", "text_input", "messages", "payload")
_NOT_TEXT = ("image", "images", "audio", "audios", "video", "videos")
_OTHER_FORMATS = ("chat_id", "requests", "sub_requests", "forks", "spawns", "pre_gap")

# What a row itself may say of input_is_incremental.
_SAID = {
    ("message_mode", "history"): False,
    ("message_mode", "delta"): True,
    ("context_mode", "message_array_with_responses"): False,
    ("context_mode", "deltas_without_responses"): True,
}


def looks_like(head: list[str]) -> bool:
    """Return whether these can be the first lines of such a file."""
    rows = objects(head)
    return bool(rows) and all(map(_is_ours, rows)) and not mooncake.looks_like(head)


def _is_ours(row: dict[str, Any]) -> bool:
    return any(name in row for name in (*_INPUTS, "turns")) and not any(
        name in row for name in _OTHER_FORMATS
    )


class _Session:
    """A session whose requests are being read."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.arrival_s = math.nan
        self.turns: list[Turn] = []


def read(
    source: Source,
    input_is_incremental: bool | None = None,
    chars_per_token: Positive | None = None,
) -> Iterator[Recording]:
    """Yield conversations of one line as they come, then sessions in the order of their first.

    A session may have another request until the file ends, so all sessions are held. A line that
    is no JSON stops the reading of a file with sessions even where others are left out: nobody
    knows which one it would shorten.

    Args:
        source: The file.
        input_is_incremental: Whether a session's requests state what they add, or full prompts;
            None refuses sessions.
        chars_per_token: How many characters count as a token; None refuses texts.

    Raises:
        WorkloadError: A row cannot be right, an option is missing, or the file cannot be read.
    """
    rows = _Rows(source, input_is_incremental, chars_per_token)
    sessions = OpenSessions(source, _Session)
    lines: set[str] = set()
    broken: RowError | None = None
    for line, row in source.objects():
        if isinstance(row, RowError):
            source.skip(row)
            broken = row
            continue
        if "turns" not in row and row.get("session_id") is not None:
            session = sessions.get(named(source, line, "session_id", row["session_id"]))
            if session is None:
                continue
            try:
                rows.extend(line, row, session)
            except RowError as error:
                sessions.leave_out(session.name, error)
            continue
        try:
            one = _Session(f"line {line}")
            if "turns" in row:
                if row.get("session_id") is not None:
                    one.name = named(source, line, "session_id", row["session_id"])
                    if one.name in lines:
                        raise source.error(line, "session_id", one.name, "came before")
                rows.converse(line, row, one)
            else:
                rows.ask(line, row, one, incremental=False)
        except RowError as error:
            source.skip(error)
            continue
        lines.add(one.name)
        yield _recording(one)
    for session in sessions:
        if broken:
            raise broken
        if session.name in lines:
            raise WorkloadError(
                f"{source.path}: session_id={session.name!r}: on lines of two kinds"
            )
        yield _recording(session)


def _recording(one: _Session) -> Recording:
    return Recording(one.name, one.name, one.arrival_s, tuple(one.turns))


class _Rows:
    """What rows mean, given the options."""

    def __init__(
        self, source: Source, incremental: bool | None, chars_per_token: float | None
    ) -> None:
        self._source = source
        self._incremental = incremental
        self._chars_per_token = chars_per_token

    def extend(self, line: int, row: dict[str, Any], one: _Session) -> None:
        """Append a request to its session."""
        if self._incremental is None:
            raise WorkloadError(
                f"{self._source.path}, line {line}: "
                f"{self._source.keys}reader_options.input_is_incremental=None: a file with "
                "sessions does not say whether input_length is the full prompt, as in Mooncake's "
                "traces, or what a turn adds to it, as AIPerf's agentic-code generator writes; "
                "taking one for the other miscounts every later turn. Say false or true"
            )
        for (field, value), incremental in _SAID.items():
            if row.get(field) == value and incremental != self._incremental:
                why = f"contradicts input_is_incremental={self._incremental}"
                raise self._source.error(line, field, value, why)
        self.ask(line, row, one, self._incremental)

    def ask(self, line: int, row: dict[str, Any], one: _Session, incremental: bool) -> None:
        """Append a request of ``mooncake_trace``."""
        given = [name for name in _INPUTS if row.get(name) is not None]
        if len(given) != 1 or not _is_ours(row):
            why = f"needs exactly one of {', '.join(_INPUTS)}"
            raise self._source.error(line, "line", " and ".join(given or row)[:80], why)
        field = given[0]
        if field == "input_length":
            tokens = self._source.integer(line, field, row[field], 1)
        elif field == "messages":
            tokens = self._tokens(line, self._said(line, row))
        elif field == "payload":
            tokens = self._tokens(line, self._payload(line, row[field]))
        else:
            tokens = self._tokens(line, self._text(line, field, row[field]))
        self._append(line, row, one, tokens, incremental)

    def converse(self, line: int, row: dict[str, Any], one: _Session) -> None:
        """Append the turns of ``multi_turn``."""
        turns = row["turns"]
        if not isinstance(turns, list) or not turns:
            raise self._source.error(line, "turns", type(turns).__name__, "not a list of turns")
        for field in _OTHER_FORMATS:
            if field in row:
                raise self._source.error(line, field, "...", "not of multi_turn")
        for number, turn in enumerate(turns, start=1):
            if not isinstance(turn, dict):
                what = type(turn).__name__
                raise self._source.error(line, f"turns, {number}", what, "not an object")
            for field in (*_NOT_TEXT, *_OTHER_FORMATS):
                if turn.get(field) is not None:
                    raise self._source.error(line, field, "...", "only texts can be counted")
            given = [name for name in ("text", "texts") if turn.get(name) is not None]
            if len(given) != 1:
                found = " and ".join(given or turn)[:80]
                raise self._source.error(line, f"turns, {number}", found, "needs text or texts")
            characters = self._text(line, given[0], turn[given[0]])
            self._append(line, turn, one, self._tokens(line, characters), incremental=True)

    def _append(
        self, line: int, row: dict[str, Any], one: _Session, tokens: int, incremental: bool
    ) -> None:
        before = one.turns[-1] if one.turns else None
        delay_s, time_s = (
            math.nan
            if row.get(field) is None
            else self._source.number(line, field, row[field]) / 1000
            for field in ("delay", "timestamp")
        )
        if before is None:
            one.arrival_s = time_s
        if incremental:
            new = tokens
            tokens += before.input_tokens + before.output_tokens if before else 0
        else:
            new = appended_tokens(before, tokens)
        output = self._source.output(line, row.get("output_length"), "output_length")
        gap_s = delay_s if before else 0.0
        sent_s = time_s - one.arrival_s if before else 0.0
        turn = self._source.turn(line, before, tokens, new, output, gap_s, "unknown", sent_s)
        one.turns.append(turn)

    def _tokens(self, line: int, characters: int) -> int:
        if self._chars_per_token is None:
            raise WorkloadError(
                f"{self._source.path}, line {line}: "
                f"{self._source.keys}reader_options.chars_per_token=None: the file has texts, "
                "whose tokens are unknown; say how many characters count as one (English has about "
                "4 to a token)"
            )
        return max(math.ceil(characters / self._chars_per_token), 1)

    def _text(self, line: int, field: str, value: object) -> int:
        """Return the characters of a text, or of a list of texts or of objects with contents."""
        parts = value if isinstance(value, list) else [value]
        characters = 0
        for part in parts:
            contents = part.get("contents") if isinstance(part, dict) else [part]
            if not isinstance(contents, list) or not all(isinstance(one, str) for one in contents):
                raise self._source.error(line, field, type(part).__name__, "not a text")
            characters += sum(map(len, contents))
        return characters

    def _payload(self, line: int, payload: object) -> int:
        if isinstance(payload, dict) and "messages" in payload:
            return self._said(line, payload)
        if isinstance(payload, dict) and "prompt" in payload:
            return self._text(line, "prompt", payload["prompt"])
        raise self._source.error(line, "payload", type(payload).__name__, "no messages, no prompt")

    def _said(self, line: int, row: dict[str, Any]) -> int:
        """Return the characters of chat messages and of the tools on offer."""
        messages = row["messages"]
        if not isinstance(messages, list) or not messages:
            raise self._source.error(line, "messages", type(messages).__name__, "not a list of any")
        characters = _strings(row.get("tools"))
        for message in messages:
            if not isinstance(message, dict):
                raise self._source.error(line, "messages", type(message).__name__, "not an object")
            characters += _strings(message.get("tool_calls"))
            content = message.get("content")
            for part in content if isinstance(content, list) else [content]:
                text = part.get("text") if isinstance(part, dict) else part
                if isinstance(text, str):
                    characters += len(text)
                elif part is not None:
                    what = type(part).__name__
                    raise self._source.error(line, "content", what, "only texts can be counted")
        return characters


def _strings(value: object) -> int:
    """Return the characters of all names and texts of a JSON value, however deep it is."""
    characters = 0
    values = [value]
    while values:
        one = values.pop()
        if isinstance(one, str):
            characters += len(one)
        elif isinstance(one, list):
            values += one
        elif isinstance(one, dict):
            values += [*one, *one.values()]
    return characters
