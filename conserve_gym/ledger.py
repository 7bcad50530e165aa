"""The ledger: an append-only record of what a scheduler has seen happen.

Everything a policy may know, every metric and every reward is computed from these events.
The simulator writes them, and so does a router in front of real engines: an event holds only
what a router can see by the event's time (a prompt's length when it arrives, an output's length
when its turn has finished), never what is still to come.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, get_type_hints

from conserve_gym.errors import ConServeGymError
from conserve_gym.files import whole


class LedgerError(ConServeGymError):
    """A ledger file or an append that breaks the ledger's rules."""


class TurnArrived(NamedTuple):
    """A turn's prompt reached the router; turn 0 is the conversation's arrival.

    Attributes:
        time: Seconds since the ledger's start.
        conversation: Identifier of the conversation.
        turn: Index of the turn, from 0.
        input_tokens: Length of the full prompt, history included.
        new_tokens: Part of the prompt that is not yet in the conversation's own KV cache.
    """

    time: float
    conversation: int
    turn: int
    input_tokens: int
    new_tokens: int


class Placed(NamedTuple):
    """A policy's placement took effect (see ``conserve_gym.placement``)."""

    time: float
    conversation: int
    turn: int
    prefill_at: int
    decode_at: int
    offload_above: float


class Prefilled(NamedTuple):
    """A prefill engine finished a turn's prompt on behalf of another engine.

    Attributes:
        tokens: Length of the prompt.
        cached_tokens: Part of it that the engine had in its KV cache, or pulled there.
        queued_s: Seconds the prompt waited in that engine, as the engine reports afterwards.
    """

    time: float
    conversation: int
    turn: int
    engine: int
    tokens: int
    cached_tokens: int
    queued_s: float


class KvMoved(NamedTuple):
    """KV cache of a turn arrived at another engine, ``seconds`` after the move began.

    That is what was computed away from the decoder and came to it, and also history that was pulled
    to where a later prompt is computed.
    """

    time: float
    conversation: int
    turn: int
    source: int
    target: int
    tokens: int
    seconds: float


class FirstToken(NamedTuple):
    """The first output token of a turn was seen."""

    time: float
    conversation: int
    turn: int
    engine: int


class TurnFinished(NamedTuple):
    """The last output token of a turn was seen; the engine reports what it had cached."""

    time: float
    conversation: int
    turn: int
    engine: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int


class TurnAborted(NamedTuple):
    """A turn will have no further token: its client left, or what computed it failed.

    Routers alone see this. A conversation at the door has left it; one that was placed keeps its
    placement, and may go on with another turn.
    """

    time: float
    conversation: int
    turn: int


class ConversationEnded(NamedTuple):
    """No further turn of the conversation will come: its client said so with its last turn.

    A router whose clients do not say so writes it when it gives a silent conversation up.
    """

    time: float
    conversation: int
    turns: int


class Metered(NamedTuple):
    """The energy counters of all engines were read: joules used since the ledger's start."""

    time: float
    joules: float


Event: TypeAlias = (
    TurnArrived
    | Placed
    | Prefilled
    | KvMoved
    | FirstToken
    | TurnFinished
    | TurnAborted
    | ConversationEnded
    | Metered
)

EVENT_TYPES: dict[str, type[Event]] = {
    "turn_arrived": TurnArrived,
    "placed": Placed,
    "prefilled": Prefilled,
    "kv_moved": KvMoved,
    "first_token": FirstToken,
    "turn_finished": TurnFinished,
    "turn_aborted": TurnAborted,
    "conversation_ended": ConversationEnded,
    "metered": Metered,
}
_EVENT_NAMES = {event_type: name for name, event_type in EVENT_TYPES.items()}
_TOO_LARGE = 2**63
_FIELD_TYPES = {name: get_type_hints(event_type) for name, event_type in EVENT_TYPES.items()}


class Ledger:
    """Append-only list of events in order of time."""

    def __init__(self) -> None:
        """Start an empty ledger."""
        self._events: list[Event] = []
        self._last_time = -math.inf

    def append(self, event: Event) -> None:
        """Add an event.

        Raises:
            LedgerError: The event is older than the last one.
        """
        if event.time < self._last_time:
            raise LedgerError(f"time runs back: {event} after an event at {self._last_time} s")
        self._last_time = event.time
        self._events.append(event)

    def __deepcopy__(self, memo: dict[int, Any]) -> Ledger:
        """Return a ledger that goes on by itself; the events so far never change and are shared."""
        copied = Ledger()
        copied._events = self._events.copy()
        copied._last_time = self._last_time
        memo[id(self)] = copied
        return copied

    def __len__(self) -> int:
        """Return the number of events."""
        return len(self._events)

    def __iter__(self) -> Iterator[Event]:
        """Iterate over the events, oldest first."""
        return iter(self._events)

    def since(self, cursor: int) -> list[Event]:
        """Return the events from position ``cursor`` on."""
        return self._events[cursor:]

    def lines(self) -> Iterator[str]:
        """Yield one JSON object an event; floats are written so that they read back exactly.

        Infinity, which JSON lacks, is null.
        """
        for event in self._events:
            yield json.dumps(record_of(event), allow_nan=False)

    def digest(self) -> str:
        """Return the SHA-256 of the ledger's lines: equal digests are equal ledgers."""
        sha = hashlib.sha256()
        for line in self.lines():
            sha.update(line.encode())
            sha.update(b"\n")
        return sha.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the ledger as JSON lines; the file appears whole or not at all."""
        with whole(Path(path)) as partial, partial.open("w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in self.lines())

    @classmethod
    def load(cls, path: str | Path) -> Ledger:
        """Read a ledger written by ``save`` or by a router.

        Raises:
            LedgerError: A line is not an event; the message names file, line and field.
        """
        ledger = cls()
        with Path(path).open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    ledger.append(_event_from_line(line))
                except LedgerError as error:
                    raise LedgerError(f"{path}, line {number}: {error}") from None
        return ledger


def record_of(event: Event) -> dict[str, Any]:
    """Return an event as a JSON object; infinity, which JSON lacks, is null."""
    fields = event._asdict().items()
    record = {field: None if value == math.inf else value for field, value in fields}
    return {"event": _EVENT_NAMES[type(event)], **record}


def _event_from_line(line: bytes) -> Event:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        # Not UTF-8, or not JSON, whose message counts lines of its own.
        raise LedgerError(f"not JSON ({getattr(error, 'msg', error)})") from None
    if not isinstance(record, dict):
        raise LedgerError(f"expected an object, found {type(record).__name__}")
    return event_of(record)


def event_of(record: dict[str, Any]) -> Event:
    """Return the event that ``record_of`` wrote.

    Raises:
        LedgerError: The record is no event; the message names the field.
    """
    record = dict(record)
    name = record.pop("event", None)
    if not isinstance(name, str) or name not in EVENT_TYPES:
        raise LedgerError(f"event={name!r} is none of {', '.join(EVENT_TYPES)}")
    event_type = EVENT_TYPES[name]
    unknown = record.keys() - set(event_type._fields)
    missing = set(event_type._fields) - record.keys()
    if unknown or missing:
        raise LedgerError(f"{name}: missing {sorted(missing)}, unknown {sorted(unknown)}")
    for field, kind in _FIELD_TYPES[name].items():
        value = record[field]
        if value is None and field == "offload_above":
            record[field] = math.inf
            continue
        # JSON writes whole seconds as integers; true and false are integers to Python.
        right = isinstance(value, int | kind) and not isinstance(value, bool)
        if not right or not 0 <= value < _TOO_LARGE:
            expected = "a whole number" if kind is int else "a number"
            raise LedgerError(f"{name}: {field}={value!r} is not {expected} from 0 on")
    return event_type(**record)
