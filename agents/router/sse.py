"""Server-sent events of OpenAI's streams: cut apart, looked into, and put together."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

DONE = b"data: [DONE]\n\n"

# An event longer than any engine sends: what comes is no stream of events.
_TOO_LONG = 16 * 2**20


class StreamError(ValueError):
    """What an engine sent is no stream of events."""


class Cutter:
    """Cuts a stream into events, each with its empty line."""

    def __init__(self) -> None:
        """Start at the stream's beginning."""
        self._rest = b""

    def cut(self, part: bytes) -> list[bytes]:
        """Take in what came; returns the events that are whole now.

        Raises:
            StreamError: An event has no end.
        """
        self._rest += part.replace(b"\r", b"") if b"\r" in part else part
        *whole, self._rest = self._rest.split(b"\n\n")
        if len(self._rest) > _TOO_LONG:
            raise StreamError(f"an event of more than {_TOO_LONG} bytes")
        return [event + b"\n\n" for event in whole if event.strip()]

    def end(self) -> list[bytes]:
        """Return what is left at the stream's end."""
        return [self._rest + b"\n\n"] if self._rest.strip() else []


async def events(received: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Cut a stream into events, each with its empty line.

    Raises:
        StreamError: An event has no end.
    """
    cutter = Cutter()
    async for part in received:
        for event in cutter.cut(part):
            yield event
    for event in cutter.end():
        yield event


def data(event: bytes) -> dict[str, Any] | None:
    """Return an event's JSON object; None if it has none.

    Raises:
        StreamError: Its data is no JSON.
    """
    lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
    content = b"\n".join(lines)
    if not content or content == b"[DONE]":
        return None
    try:
        value = json.loads(content)
    except ValueError:
        raise StreamError(f"{content[:80]!r} is no JSON") from None
    return value if isinstance(value, dict) else None


def event(value: dict[str, Any]) -> bytes:
    """Return a JSON object as an event."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def has_token(chunk: dict[str, Any]) -> bool:
    """Return whether a chunk carries output, and not only a role."""
    for choice in chunk.get("choices") or ():
        if choice.get("text") or choice.get("finish_reason"):
            return True
        if any(value for key, value in (choice.get("delta") or {}).items() if key != "role"):
            return True
    return False


class Whole:
    """Puts the chunks of a stream together, for a client that asked for no stream."""

    def __init__(self) -> None:
        """Start without a chunk."""
        self._answer: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    def add(self, chunk: dict[str, Any]) -> None:
        """Take a chunk in."""
        for key, value in chunk.items():
            if key != "choices" and value is not None:
                self._answer[key] = value
        for part in chunk.get("choices") or ():
            whole = self._choices.setdefault(part.get("index", 0), {})
            part = dict(part)
            if "delta" in part:
                part["message"] = part.pop("delta")
            _join(whole, part)

    def answer(self) -> dict[str, Any]:
        """Return the whole answer."""
        kind = self._answer.get("object")
        if kind == "chat.completion.chunk":
            self._answer["object"] = "chat.completion"
            for choice in self._choices.values():
                message = choice.setdefault("message", {})
                message.setdefault("role", "assistant")
                message.setdefault("content", None)
        choices = [choice for _, choice in sorted(self._choices.items())]
        return {**self._answer, "choices": choices}


# Text that names something comes once; other text comes in parts.
_NAMES = {"role", "id", "type", "finish_reason", "stop_reason"}


def _join(whole: dict[str, Any], part: dict[str, Any]) -> None:
    """Add a part's values to those before it: texts and lists are longer, objects deeper."""
    for key, value in part.items():
        before: Any = whole.get(key)
        if value is None:
            whole.setdefault(key, None)
        elif isinstance(value, dict):
            if not isinstance(before, dict):
                before = whole[key] = {}
            _join(before, value)
        elif isinstance(value, list) and key == "tool_calls":
            calls: list[dict[str, Any]] = whole.setdefault(key, [])
            for call in value:
                same = [one for one in calls if one.get("index") == call.get("index")]
                if not same:
                    same = [{}]
                    calls += same
                _join(same[0], call)
        elif key not in _NAMES and type(value) is type(before) and isinstance(value, list | str):
            whole[key] = before + value
        else:
            whole[key] = value
