"""Traces against the rules of the format, for random episodes."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from examples import NO_RESERVATION, cluster_of, conversation, decoding, engine, play
from hypothesis import given
from random_episodes import EXAMPLES, Episode, episodes

from conserve_gym.envs.serving import chrome_trace
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.timeline import Move, Timeline
from conserve_gym.fleet import Role
from conserve_gym.ledger import FirstToken, KvMoved, Ledger, Placed
from conserve_gym.placement import Placement

NEEDED = {
    "M": {"name", "pid", "args"},
    "X": {"name", "cat", "pid", "tid", "ts", "dur", "args"},
    "C": {"name", "pid", "ts", "args"},
    "i": {"name", "cat", "pid", "tid", "ts", "s", "args"},
    "s": {"name", "cat", "pid", "tid", "ts", "id"},
    "f": {"name", "cat", "pid", "tid", "ts", "id", "bp"},
}


def nanoseconds(microseconds: float) -> int:
    """Return a time as a viewer keeps it: whole nanoseconds, which it must be."""
    assert round(microseconds * 1e3) / 1e3 == microseconds
    return round(microseconds * 1e3)


def check_rules(events: list[dict[str, Any]]) -> None:
    assert all(event.keys() >= NEEDED[event["ph"]] for event in events)
    names = {
        (event["name"], event["pid"], event.get("tid"))
        for event in events
        if event["ph"] == "M" and event["args"].get("name")
    }
    threads: dict[int, int] = {}
    slices: dict[int, list[tuple[int, int]]] = defaultdict(list)
    flows: dict[str, dict[int, dict[str, Any]]] = {"s": {}, "f": {}}
    last = 0
    for event in events[sum(event["ph"] == "M" for event in events) :]:
        assert event["ph"] != "M"  # names come first
        now = nanoseconds(event["ts"])
        assert now >= last
        last = now
        assert event["pid"] > 0
        assert ("process_name", event["pid"], None) in names
        if event["ph"] == "C":
            assert all(isinstance(value, int) for value in event["args"].values())
            continue
        assert ("thread_name", event["pid"], event["tid"]) in names
        assert event["tid"] > 0
        assert threads.setdefault(event["tid"], event["pid"]) == event["pid"]
        if event["ph"] == "X":
            on_thread = slices[event["tid"]]
            assert not on_thread or on_thread[-1][1] <= now
            on_thread.append((now, now + nanoseconds(event["dur"])))
        elif event["ph"] in flows:
            assert event["id"] not in flows[event["ph"]]
            flows[event["ph"]][event["id"]] = event
            assert any(began <= now <= ended for began, ended in slices[event["tid"]])
    assert flows["s"].keys() == flows["f"].keys()
    for arrow, leaves in flows["s"].items():
        arrives = flows["f"][arrow]
        assert (leaves["name"], leaves["cat"]) == (arrives["name"], arrives["cat"])
        assert leaves["ts"] <= arrives["ts"]
        assert leaves["pid"] != arrives["pid"]
        assert arrives["bp"] == "e"


@EXAMPLES
@given(episodes())
def test_a_trace_keeps_the_rules_and_leaves_nothing_out(episode: Episode) -> None:
    timeline = Timeline(episode.spec.deployed(episode.deployment))
    cluster = episode.play(timeline=timeline)
    events = chrome_trace.trace(timeline, cluster.ledger)
    assert json.loads(json.dumps(events)) == events
    check_rules(events)
    told = Counter(type(event) for event in cluster.ledger)
    drawn = Counter(event["ph"] for event in events)
    assert drawn["s"] == told[KvMoved]
    sent = Counter(
        (e["pid"] - 1, e["name"], *e["args"].values())
        for e in events
        if e.get("cat") == "kv" and "args" in e
    )
    assert sent == Counter(
        (m.source, f"conversation {m.conversation}", m.turn, m.tokens, m.target)
        for m in cluster.ledger
        if isinstance(m, KvMoved)
    )
    assert drawn["i"] == told[Placed] + told[FirstToken]
    for index, track in enumerate(timeline.tracks):
        steps = [e for e in events if e["pid"] == index + 1 and e.get("cat") == "step"]
        assert [event["name"] for event in steps] == [span.phase for span in track.spans]
        assert sum(event["dur"] for event in steps) == pytest.approx(
            1e6 * sum(span.ended - span.began for span in track.spans)
        )
        levels = [e for e in events if e["pid"] == index + 1 and e["ph"] == "C"]
        assert [event["args"]["held"] for event in levels] == track.levels


def drawn_moves(*moves: tuple[float, float], now: float) -> list[dict[str, Any]]:
    """Return the events of moves from engine 0 to 1, which runs for a second until ``now``."""
    spec = cluster_of(engine(Role.PREFILL), engine(Role.DECODE))
    timeline = Timeline(spec.deployed(NO_RESERVATION))
    sender, target = timeline.tracks
    sender.moves = [Move(i, 0, 1, 50, *move) for i, move in enumerate(moves)]
    sender.moves.sort(key=lambda move: move.ended)
    target.begin(now - 1.0, "decode", 1, 0)
    target.end(now, 1)
    events = chrome_trace.trace(timeline, Ledger())
    check_rules(events)
    return events


def test_moves_at_once_are_on_threads_of_their_own() -> None:
    #         0 #####
    #         1  #          touches what follows on its thread
    #         2   ##
    #         3   #         meets 0 and 2
    #         4      #      finds the first thread free again
    times = [(0.0, 5.0), (1.0, 2.0), (2.0, 4.0), (2.0, 3.0), (5.0, 6.0)]
    events = drawn_moves(*times, now=7.0)
    threads = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert {
        e["name"]: threads[e["tid"]] for e in events if e.get("cat") == "kv" and "dur" in e
    } == {
        "conversation 0": "KV sent",
        "conversation 1": "KV sent 2",
        "conversation 2": "KV sent 3",
        "conversation 3": "KV sent 2",
        "conversation 4": "KV sent",
    }


def test_an_arrow_waits_for_what_its_target_does_next() -> None:
    # The target runs from 9 s to 10 s.
    times = [(0.0, 5.0), (8.0, 9.5), (8.5, 10.0), (9.9, 11.0)]
    arrows = [e for e in drawn_moves(*times, now=10.0) if e["ph"] in ("s", "f")]
    assert [(e["ph"], e["id"], e["ts"]) for e in arrows] == [
        ("s", 0, 0),
        ("s", 1, 8_000_000),
        ("f", 0, 9_000_000),
        ("f", 1, 9_500_000),
    ]


def test_history_that_is_pulled_has_an_arrow_to_the_prompt_that_needs_it() -> None:
    spec = cluster_of(engine(Role.PREFILL), engine(Role.DECODE))
    timeline = Timeline(spec.deployed(NO_RESERVATION))
    conversations = [conversation(1.0, (50, 50, 40, 0.0), (100, 10, 2, 1.0))]
    cluster = play(spec, NO_RESERVATION, conversations, [Placement(0, 1, 0.0)], timeline)
    events = chrome_trace.trace(timeline, cluster.ledger)
    check_rules(events)
    (pulled,) = [e for e in events if e["pid"] == 2 and e.get("cat") == "kv" and e["ph"] == "X"]
    (leaves,) = [e for e in events if e["pid"] == 2 and e["ph"] == "s"]
    (arrives,) = [e for e in events if e["ph"] == "f" and e["id"] == leaves["id"]]
    assert leaves["ts"] == pulled["ts"]
    assert (arrives["pid"], arrives["ts"]) == (1, pulled["ts"] + pulled["dur"])
    prefills = [e["ts"] for e in events if e["name"] == "prefill"]
    assert prefills == [1_000_000, arrives["ts"]]


def test_numbers_of_threads_never_meet() -> None:
    places = [chrome_trace._place(engine, thread) for engine in range(30) for thread in range(60)]
    assert len({place["tid"] for place in places}) == len(places)


def moved_once() -> tuple[Timeline, Cluster]:
    spec = cluster_of(engine(Role.PREFILL), engine(Role.DECODE))
    timeline = Timeline(spec.deployed(NO_RESERVATION))
    conversations = [conversation(1.0, (50, 50, 2, 0.0))]
    return timeline, play(spec, NO_RESERVATION, conversations, [Placement(0, 1)], timeline)


def test_one_conversation_by_hand(tmp_path: Path) -> None:
    timeline, cluster = moved_once()
    chrome_trace.save(tmp_path / "trace.json", timeline, cluster.ledger)
    document = json.loads((tmp_path / "trace.json").read_text())
    events = document["traceEvents"]
    named = {(e["pid"], e["name"]): e["args"] for e in events if e["ph"] == "M"}
    assert named[1, "process_name"] == {"name": "engine 0: prefill, example"}
    assert named[2, "process_name"] == {"name": "engine 1: decode, example"}
    # The prompt: 2 + 5 + 1.25 ms. Its move: 4 + 5 ms. Two decodes at the floor of 10.2 ms.
    slices = [(e["name"], e["pid"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"]
    assert slices == [
        ("prefill", 1, 1_000_000, 8_250),
        ("conversation 0", 1, 1_008_250, 9_000),
        ("decode", 2, 1_017_250, 10_200),
        ("decode", 2, 1_027_450, 10_200),
    ]
    arrow = [(e["ph"], e["pid"], e["ts"]) for e in events if e["ph"] in ("s", "f")]
    assert arrow == [("s", 1, 1_008_250), ("f", 2, 1_017_250)]
    instants = [(e["name"], e["pid"], e["ts"]) for e in events if e["ph"] == "i"]
    assert instants == [
        ("placed: conversation 0", 2, 1_000_000),
        ("first token: conversation 0", 2, 1_027_450),
    ]
    assert events[0]["ph"] == "M"


def test_a_step_under_way_begins_and_does_not_end() -> None:
    timeline, cluster = decoding()
    steps = [e for e in chrome_trace.trace(timeline, cluster.ledger) if e.get("cat") == "step"]
    assert [(event["name"], event["ph"]) for event in steps] == [("prefill", "X"), ("decode", "B")]


def test_the_file_is_the_same_each_time_and_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        timeline, cluster = moved_once()
        chrome_trace.save(tmp_path / name, timeline, cluster.ledger)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(chrome_trace.json, "dump", fail)
    with pytest.raises(OSError, match="no space left"):
        chrome_trace.save(tmp_path / "three", timeline, cluster.ledger)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
