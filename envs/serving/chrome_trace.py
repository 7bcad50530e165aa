"""A timeline as a Chrome trace, the JSON that ui.perfetto.dev and chrome://tracing open.

Format: "Trace Event Format", Google, JSON object form. One process an engine, with a thread for
its steps, one for the KV that it sends, one for the turns that it decodes, and a counter of KV
blocks. An arrow leads from a move of KV to what its target was doing when it arrived.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from conserve_gym.envs.serving.timeline import Timeline, Track
from conserve_gym.files import whole
from conserve_gym.ledger import Event, FirstToken, Ledger, Placed

TraceEvent: TypeAlias = dict[str, Any]

_STEPS, _KV_OUT, _TURNS = range(3)
_THREADS = ("steps", "KV sent", "turns decoded here")


def trace(timeline: Timeline, ledger: Ledger) -> list[TraceEvent]:
    """Return the trace events of an episode: names first, the rest in order of time.

    Args:
        timeline: What the engines did.
        ledger: What else happened: placements and first tokens.
    """
    names: list[TraceEvent] = []
    events: list[TraceEvent] = []
    arrows = 0
    for engine, track in enumerate(timeline.tracks):
        names += _names(engine, track)
        events += _steps(engine, track)
        events += _moves(engine, track, arrows)
        arrows += len(track.moves)
    events += _turns(ledger)
    # At one time, slices come before the arrows that end in them: sorting keeps their order.
    events.sort(key=lambda event: (event["ts"], event["ph"] in "sf"))
    return names + events


def save(path: Path, timeline: Timeline, ledger: Ledger) -> None:
    """Write the trace of an episode; the file appears whole or not at all."""
    document = {"displayTimeUnit": "ms", "traceEvents": trace(timeline, ledger)}
    with whole(path) as partial, partial.open("w", encoding="utf-8") as file:
        json.dump(document, file, separators=(",", ":"))


def _names(engine: int, track: Track) -> Iterator[TraceEvent]:
    name = f"engine {engine}: {track.engine.role}, {track.engine.hardware}"
    pid = _place(engine, _STEPS)["pid"]
    yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}}
    yield {"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": engine}}
    for thread, says in enumerate(_THREADS):
        place = _place(engine, thread)
        yield {"ph": "M", "name": "thread_name", **place, "args": {"name": says}}
        yield {"ph": "M", "name": "thread_sort_index", **place, "args": {"sort_index": thread}}


def _steps(engine: int, track: Track) -> Iterator[TraceEvent]:
    place = _place(engine, _STEPS)
    for began, ended, phase, steps, sequences, prompt_tokens in track.spans:
        arguments = {"steps": steps, "sequences": sequences, "prompt_tokens": prompt_tokens}
        yield _slice(began, ended) | {"name": phase, "cat": "step", **place, "args": arguments}
    counter = {"ph": "C", "name": f"KV blocks of {track.capacity_blocks}", "pid": place["pid"]}
    for time, blocks in zip(track.level_times, track.levels, strict=True):
        yield {**counter, "ts": _microseconds(time), "args": {"used": blocks}}


def _moves(engine: int, track: Track, arrows: int) -> Iterator[TraceEvent]:
    place = _place(engine, _KV_OUT)
    for arrow, move in enumerate(track.moves, start=arrows):
        arguments = {
            "turn": move.turn,
            "tokens": move.tokens,
            "to_engine": move.target,
            "waited_ms": (move.began - move.sent) * 1e3,
        }
        name = f"conversation {move.conversation}"
        slice_ = _slice(move.began, move.ended)
        yield slice_ | {"name": name, "cat": "kv", **place, "args": arguments}
        both = {"name": "KV", "cat": "kv", "id": arrow}
        yield {"ph": "s", "ts": slice_["ts"], **both, **place}
        arrives = _microseconds(move.ended)
        yield {"ph": "f", "bp": "e", "ts": arrives, **both, **_place(move.target, _STEPS)}


def _turns(events: Iterable[Event]) -> Iterator[TraceEvent]:
    for event in events:
        if isinstance(event, Placed):
            engine, says = event.decode_at, "placed"
            arguments = {"turn": event.turn, "prefill_at": event.prefill_at}
        elif isinstance(event, FirstToken):
            engine, says = event.engine, "first token"
            arguments = {"turn": event.turn}
        else:
            continue
        yield {
            "ph": "i",
            "s": "t",
            "ts": _microseconds(event.time),
            "name": f"{says}: conversation {event.conversation}",
            "cat": "turn",
            **_place(engine, _TURNS),
            "args": arguments,
        }


def _place(engine: int, thread: int) -> TraceEvent:
    # From 1 on: Perfetto takes process 0 and thread 0 for the kernel's own.
    pid = engine + 1
    return {"pid": pid, "tid": 10 * pid + thread}


def _slice(began: float, ended: float) -> TraceEvent:
    """Return phase and times of a slice; one that is under way has no end."""
    ts = _microseconds(began)
    if ended == math.inf:
        return {"ph": "B", "ts": ts}
    # The difference of what is written, so that slices that touch do not overlap by rounding.
    return {"ph": "X", "ts": ts, "dur": round(_microseconds(ended) - ts, 3)}


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 3)
