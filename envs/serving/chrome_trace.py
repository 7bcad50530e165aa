"""A timeline as a Chrome trace, the JSON that ui.perfetto.dev and chrome://tracing open.

Format: "Trace Event Format", Google, JSON object form. One process an engine, with a thread for
its steps, one for the turns that it decodes, as many for the KV that it sends as there were moves
at once, and a counter of KV blocks. An arrow leads from a move of KV to what its target was doing
when it arrived, or did next.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeAlias

from conserve_gym.envs.serving.timeline import Move, Timeline, Track
from conserve_gym.files import whole
from conserve_gym.ledger import Event, FirstToken, Ledger, Placed

TraceEvent: TypeAlias = dict[str, Any]

_STEPS, _TURNS, _KV_SENT = range(3)  # threads; lanes of KV sent go on from the last


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
        moves = sorted(track.moves, key=attrgetter("began"))
        lanes = _lanes(moves)
        names += _names(engine, track, max(lanes, default=0) + 1)
        events += _steps(engine, track)
        for move, lane in zip(moves, lanes, strict=True):
            place = _place(engine, _KV_SENT + lane)
            events += _move(move, place, arrows, timeline.tracks[move.target])
            arrows += 1
    events += _turns(ledger)
    # At one time, slices come before the arrows that end in them: sorting keeps their order.
    events.sort(key=lambda event: (event["ts"], event["ph"] in "sf"))
    return names + events


def save(path: Path, timeline: Timeline, ledger: Ledger) -> None:
    """Write the trace of an episode; the file appears whole or not at all."""
    document = {"displayTimeUnit": "ms", "traceEvents": trace(timeline, ledger)}
    with whole(path) as partial, partial.open("w", encoding="utf-8") as file:
        json.dump(document, file, separators=(",", ":"))


def _names(engine: int, track: Track, lanes: int) -> Iterator[TraceEvent]:
    name = f"engine {engine}: {track.engine.role}, {track.engine.hardware}"
    pid = _place(engine, _STEPS)["pid"]
    yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}}
    yield {"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": engine}}
    more_lanes = (f"KV sent {lane}" for lane in range(2, lanes + 1))
    for thread, says in enumerate(("steps", "turns decoded here", "KV sent", *more_lanes)):
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
        yield {**counter, "ts": _microseconds(time), "args": {"held": blocks}}


def _lanes(moves: Sequence[Move]) -> list[int]:
    """Return for each move, in order of beginning, the first lane that is free then."""
    free_from: list[float] = []
    lanes = []
    for move in moves:
        began = _microseconds(move.began)  # as written: slices of one thread may not overlap
        lane = next((i for i, free in enumerate(free_from) if free <= began), len(free_from))
        free_from[lane : lane + 1] = [_microseconds(move.ended)]
        lanes.append(lane)
    return lanes


def _move(move: Move, place: TraceEvent, arrow: int, target: Track) -> Iterator[TraceEvent]:
    arguments = {"turn": move.turn, "tokens": move.tokens, "to_engine": move.target}
    name = f"conversation {move.conversation}"
    slice_ = _slice(move.began, move.ended)
    yield slice_ | {"name": name, "cat": "kv", **place, "args": arguments}
    # An arrow ends in a slice. Nothing may run when KV arrives: its turn may find no place in the
    # batch, because of turns whose own KV is still on its way.
    following = bisect_right(target.spans, move.ended, key=attrgetter("ended"))
    if following < len(target.spans):
        arrives = _microseconds(max(move.ended, target.spans[following].began))
        both = {"name": "KV", "cat": "kv", "id": arrow}
        yield {"ph": "s", "ts": slice_["ts"], **both, **place}
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
    # Perfetto wants no thread of one process to have the number of another's: Cantor's pairing
    # function gives every pair its own.
    both = engine + thread
    return {"pid": engine + 1, "tid": both * (both + 1) // 2 + thread + 1}


def _slice(began: float, ended: float) -> TraceEvent:
    """Return phase and times of a slice; one that is under way has no end."""
    ts = _microseconds(began)
    if ended == math.inf:
        return {"ph": "B", "ts": ts}
    # The difference of what is written, so that slices that touch do not overlap by rounding.
    return {"ph": "X", "ts": ts, "dur": round(_microseconds(ended) - ts, 3)}


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 3)
