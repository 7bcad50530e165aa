"""The ledger: order, exact files, and messages that say what is wrong with a file and where."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_gym.ledger import (
    EVENT_TYPES,
    ConversationEnded,
    Event,
    FirstToken,
    KvMoved,
    Ledger,
    LedgerError,
    Metered,
    Placed,
    Prefilled,
    TurnAborted,
    TurnArrived,
    TurnFinished,
)

EVENTS: list[Event] = [
    TurnArrived(0.1, 7, 0, 120, 120),
    Placed(0.1, 7, 0, 0, 1, math.inf),
    Prefilled(0.1 + 0.2, 7, 0, 0, 120, 16, 1e-17),
    KvMoved(1 / 3, 7, 0, 0, 1, 120, 0.03),
    FirstToken(0.5, 7, 0, 1),
    TurnFinished(2.0, 7, 0, 1, 120, 119, 30),
    TurnAborted(2.0, 8, 0),
    ConversationEnded(2.0, 7, 1),
    Metered(1e9, 123456.78901234567),
]


def ledger_of(events: list[Event]) -> Ledger:
    ledger = Ledger()
    for event in events:
        ledger.append(event)
    return ledger


def test_events_keep_their_order() -> None:
    ledger = ledger_of(EVENTS)
    assert list(ledger) == EVENTS
    assert len(ledger) == len(EVENTS)
    assert ledger.since(3) == EVENTS[3:]
    assert ledger.since(len(EVENTS)) == []


def test_an_event_older_than_the_last_one_is_refused() -> None:
    ledger = ledger_of([Metered(2.0, 0.0)])
    with pytest.raises(LedgerError, match=r"time runs back: Metered\(time=1.9.* at 2.0 s"):
        ledger.append(Metered(1.9, 0.0))
    ledger.append(Metered(2.0, 1.0))
    assert len(ledger) == 2


def test_every_event_has_a_name() -> None:
    assert {type(event) for event in EVENTS} == set(EVENT_TYPES.values())


def test_a_saved_ledger_reads_back_exactly(tmp_path: Path) -> None:
    ledger = ledger_of(EVENTS)
    ledger.save(tmp_path / "ledger.jsonl")
    loaded = Ledger.load(tmp_path / "ledger.jsonl")
    assert list(loaded) == EVENTS
    assert [type(event) for event in loaded] == [type(event) for event in EVENTS]
    assert loaded.digest() == ledger.digest()
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.jsonl"]


def events() -> st.SearchStrategy[list[Event]]:
    times = st.floats(0.0, 1e12)
    counts = st.integers(0, 2**53)
    return st.lists(
        st.one_of(
            st.builds(TurnArrived, times, counts, counts, counts, counts),
            st.builds(Placed, times, counts, counts, counts, counts, times | st.just(math.inf)),
            st.builds(KvMoved, times, counts, counts, counts, counts, counts, times),
            st.builds(Metered, times, times),
        )
    ).map(lambda drawn: sorted(drawn, key=lambda event: event.time))


@given(events())
def test_lines_are_exact(drawn: list[Event]) -> None:
    ledger = ledger_of(drawn)
    assert "\n" not in "".join(ledger.lines())
    read = [json.loads(line) for line in ledger.lines()]
    for record, event in zip(read, drawn, strict=True):
        expected = {
            field: None if value == math.inf else value for field, value in event._asdict().items()
        }
        assert record == {"event": record["event"], **expected}
        assert EVENT_TYPES[record["event"]] is type(event)


def test_equal_digests_are_equal_ledgers() -> None:
    digest = ledger_of(EVENTS).digest()
    assert ledger_of(EVENTS).digest() == digest
    assert ledger_of(EVENTS[:-1]).digest() != digest
    moved = EVENTS[3]
    nudged = moved._replace(time=math.nextafter(moved.time, 1.0))
    assert ledger_of([*EVENTS[:3], nudged, *EVENTS[4:]]).digest() != digest


# --- broken files ---


def changed(**changes: Any) -> str:
    record = json.loads(list(ledger_of(EVENTS).lines())[5])
    return json.dumps({k: v for k, v in (record | changes).items() if v != "left out"})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("turn finished", r"not JSON \(Expecting value\)"),
        ("", r"not JSON \(Expecting value\)"),
        ('{"event": "turn_fin', r"not JSON \(Invalid control character"),
        ("[1, 2]", "expected an object, found list"),
        (changed(event="turn_ended"), "event='turn_ended' is none of turn_arrived, placed, "),
        (changed(event=None), "event=None is none of turn_arrived, placed, "),
        (changed(event=["turn_finished"]), r"event=\['turn_finished'\] is none of turn_arrived, "),
        (changed(turn="left out"), r"turn_finished: missing \['turn'\], unknown \[\]"),
        (changed(gpu=1), r"turn_finished: missing \[\], unknown \['gpu'\]"),
        (changed(time=math.nan), "turn_finished: time=nan is not a number"),
        (changed(time=None), "turn_finished: time=None is not a number"),
        (changed(time="2.0"), "turn_finished: time='2.0' is not a number"),
        (changed(output_tokens=True), "turn_finished: output_tokens=True is not a whole number"),
        (changed(output_tokens=30.5), "turn_finished: output_tokens=30.5 is not a whole number"),
        (changed(conversation="7"), "turn_finished: conversation='7' is not a whole number"),
        (changed(conversation=[7]), r"turn_finished: conversation=\[7\] is not a whole number"),
        (changed(time=0.4), r"time runs back: TurnFinished\(time=0.4.* at 0.5 s"),
    ],
)
def test_a_broken_line_is_named_with_what_is_wrong(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "broken.jsonl"
    lines = list(ledger_of(EVENTS).lines())
    lines[5] = line
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(LedgerError, match=rf"broken\.jsonl, line 6: {message}"):
        Ledger.load(path)


def test_a_truncated_file_is_named_with_its_last_line(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger_of(EVENTS).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(LedgerError, match=r"ledger\.jsonl, line 9: not JSON"):
        Ledger.load(path)


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b'{"event": "\xff\xfe"}\n')
    with pytest.raises(LedgerError, match=r"ledger\.jsonl, line 1: not JSON \(.*utf-8"):
        Ledger.load(path)


def test_whole_seconds_may_be_written_as_integers(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"event": "metered", "time": 2, "joules": 5}\n')
    assert list(Ledger.load(path)) == [Metered(2.0, 5.0)]


# --- files that cannot be written ---


def fail_at_line(number: int) -> Callable[[Ledger], Any]:
    def lines(ledger: Ledger) -> Any:
        for i, event in enumerate(ledger):
            if i == number:
                raise OSError("no space left on device")
            yield json.dumps(event._asdict())

    return lines


@pytest.mark.parametrize("before", [None, "what was there\n"])
def test_a_failed_save_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    path = tmp_path / "ledger.jsonl"
    if before is not None:
        path.write_text(before)
    monkeypatch.setattr(Ledger, "lines", fail_at_line(3))
    with pytest.raises(OSError, match="no space left"):
        ledger_of(EVENTS).save(path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ([before] if before else [])
