"""Traces against the rules of the format, for random episodes."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from examples import NO_RESERVATION, cluster_of, conversation, engine, play
from hypothesis import HealthCheck, given, settings
from random_episodes import Episode, episodes

from conserve_gym.envs.serving import chrome_trace
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.timeline import Timeline
from conserve_gym.fleet import Role
from conserve_gym.ledger import FirstToken, KvMoved, Placed
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


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
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
    assert drawn["i"] == told[Placed] + told[FirstToken]
    for index, track in enumerate(timeline.tracks):
        steps = [e for e in events if e["pid"] == index + 1 and e.get("cat") == "step"]
        assert [event["name"] for event in steps] == [span.phase for span in track.spans]
        assert sum(event["dur"] for event in steps) == pytest.approx(
            1e6 * sum(span.ended - span.began for span in track.spans)
        )
        levels = [e for e in events if e["pid"] == index + 1 and e["ph"] == "C"]
        assert [event["args"]["used"] for event in levels] == track.levels


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
    spec = cluster_of(engine(Role.MIXED))
    timeline = Timeline(spec.deployed(NO_RESERVATION))
    conversations = [conversation(0.0, (80, 80, 90, 0.0)), conversation(0.1, (20, 20, 2, 0.0))]
    cluster = Cluster(spec, NO_RESERVATION, conversations, timeline)
    cluster.advance()
    cluster.place(Placement(0, 0))
    cluster.advance()
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
