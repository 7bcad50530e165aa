"""The decision log: segments of JSON lines, written by a thread of its own.

Every segment begins with a head: all that was known, so that it restores a router and replays by
itself. After it come the ledger's events, decisions, and what else they depend on, in order.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from threading import Event as Signal
from threading import Thread
from typing import Any, NamedTuple, TextIO

import numpy as np

from conserve_gym.agents.runtime.mlp import Float32Array
from conserve_gym.agents.runtime.scheduler import Decision
from conserve_gym.agents.runtime.shadow import Disagreement
from conserve_gym.errors import ConServeGymError
from conserve_gym.ledger import Event, record_of
from conserve_gym.placement import Placement

_log = logging.getLogger(__name__)

SCHEMA = 1
_PREFIX, _SUFFIX = "ledger-", ".jsonl"


class LogError(ConServeGymError):
    """A decision log that cannot be read; the message names file and line."""


class Head(NamedTuple):
    """Begins a segment."""

    record: dict[str, Any]


class Decided(NamedTuple):
    """A decision, with what a candidate in the shadow would have done instead."""

    time: float
    conversation: int
    turn: int
    policy: str
    preference: float | None
    must_place: bool
    decision: Decision
    instead: Disagreement | None


Item = Head | Decided | Event | dict[str, Any]


class DecisionLog:
    """Writes a log without keeping its callers waiting.

    What cannot be written (a full disk) is dropped, counted and complained of once: a router goes
    on serving.

    Args:
        folder: Where segments go; it is made.
        segment_bytes: Size from which on ``full`` asks for another segment.
        keep: Number of segments to keep.

    Attributes:
        dropped: Items that could not be written.
    """

    def __init__(self, folder: Path, *, segment_bytes: int = 64 * 2**20, keep: int = 16) -> None:
        """Start the thread that writes."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._segment_bytes = segment_bytes
        self._keep = keep
        self._queue: SimpleQueue[Item | Signal | None] = SimpleQueue()
        self._file: TextIO | None = None
        self._complained = False
        self.full = False
        self.dropped = 0
        self._thread = Thread(target=self._write, name="decision log", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Add an item; whoever adds it changes it no more."""
        self._queue.put(item)

    def flush(self, timeout_s: float = 10.0) -> None:
        """Wait until everything added so far is in the file."""
        done = Signal()
        self._queue.put(done)
        done.wait(timeout_s)

    def close(self) -> None:
        """Write what is left and stop."""
        self._queue.put(None)
        self._thread.join(10.0)

    def _write(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, Signal):
                item.set()
                continue
            try:
                self._write_one(item)
                if self._queue.empty() and self._file is not None:
                    self._file.flush()
            except (OSError, ValueError) as error:
                self.dropped += 1
                if not self._complained:
                    _log.error("decision log: %s", error)
                self._complained = True
            # Lets go of the interpreter's lock, which a thread that decides may be waiting for:
            # else it would wait for the switch interval, 5 ms, while the queue is drained.
            time.sleep(0)
        if self._file is not None:
            self._file.close()

    def _write_one(self, item: Item) -> None:
        if isinstance(item, Head):
            self._next_segment()
        if self._file is None:
            raise OSError(f"no segment could be begun in {self._folder}")
        self._file.write(json.dumps(_record(item), allow_nan=False) + "\n")
        if isinstance(item, Head):
            self._file.flush()  # whole before the segment before it may go
            for old in segments(self._folder)[: -self._keep]:
                old.unlink(missing_ok=True)
        elif self._file.tell() > self._segment_bytes:
            self.full = True

    def _next_segment(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        last = [int(path.name[len(_PREFIX) : -len(_SUFFIX)]) for path in segments(self._folder)]
        path = self._folder / f"{_PREFIX}{max(last, default=0) + 1:08d}{_SUFFIX}"
        # Prompts are not in it, but how many conversations somebody has is nobody else's business.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._file = open(descriptor, "w", encoding="utf-8")  # noqa: SIM115
        self.full = False


def segments(folder: Path) -> list[Path]:
    """Return a log's segments, oldest first."""
    names = folder.glob(f"{_PREFIX}*{_SUFFIX}")
    return sorted(path for path in names if path.name[len(_PREFIX) : -len(_SUFFIX)].isdecimal())


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Read a segment: its head, then everything after it.

    A last line that was cut off by a crash is left out.

    Raises:
        LogError: The segment has no whole head, or another line is not ours.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
                if not isinstance(record, dict) or (number == 1 and record["log"] != SCHEMA):
                    raise ValueError
            except (ValueError, KeyError, RecursionError):
                if number > 1 and not line.endswith(b"\n"):
                    return
                raise LogError(f"{path}, line {number}: not of a decision log") from None
            yield record


def latest(folder: Path) -> Iterator[dict[str, Any]]:
    """Read the newest segment that has a whole head; nothing if there is none."""
    for path in reversed(segments(folder)):
        records = read(path)
        try:
            head = next(records, None)
        except LogError:
            continue
        if head is not None:
            yield head
            yield from records
            return


def placement_record(placement: Placement) -> list[float | None]:
    """Return a placement as JSON has it; infinity is null."""
    at, to, tokens = placement
    return [at, to, None if math.isinf(tokens) else tokens]


def placement_of(record: list[Any]) -> Placement:
    """Return the placement that ``placement_record`` wrote."""
    at, to, tokens = record
    return Placement(int(at), int(to), math.inf if tokens is None else float(tokens))


def _record(item: Item) -> dict[str, Any]:
    if isinstance(item, dict):
        return item
    if isinstance(item, Head):
        return {"log": SCHEMA, **item.record}
    if not isinstance(item, Decided):
        return record_of(item)
    decision, instead = item.decision, item.instead
    record: dict[str, Any] = {
        "decision": placement_record(decision.placement),
        "time": item.time,
        "conversation": item.conversation,
        "turn": item.turn,
        "policy": item.policy,
        "preference": item.preference,
        "must_place": item.must_place,
        "action": decision.action,
        "scores": _scores(decision.scores),
        "fallback": decision.fallback,
    }
    if instead is not None:
        record["shadow"] = {
            "decision": placement_record(instead.placement),
            "score_gain": instead.score_gain,
            "fallback": instead.fallback,
        }
    return record


def _scores(scores: Float32Array) -> list[float]:
    """Return scores that JSON has and that a line has room for: of 64 engines there are 4,096."""
    few = len(scores) <= 32 and bool(np.isfinite(scores).all())
    return scores.tolist() if few else []
