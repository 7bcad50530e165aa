"""The runtime at work: its log replays and restores, policies change under way, engines go."""

from __future__ import annotations

import builtins
import json
import math
import socket
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_policy

from conserve_gym.agents.runtime.artifact import ArtifactError
from conserve_gym.agents.runtime.log import DecisionLog, LogError, latest, read, segments
from conserve_gym.agents.runtime.policy_file import PolicyFile
from conserve_gym.agents.runtime.replay import by_checksum, replay
from conserve_gym.agents.runtime.runtime import Runtime
from conserve_gym.agents.runtime.scheduler import Scheduler
from conserve_gym.deployment import DEFAULT_DEPLOYMENT
from conserve_gym.fleet import Fleet, Role
from conserve_gym.ledger import (
    ConversationEnded,
    FirstToken,
    KvMoved,
    Metered,
    Prefilled,
    TurnArrived,
    TurnFinished,
)
from conserve_gym.placement import Placement

FLEET = Fleet((Role.PREFILL, Role.DECODE, Role.DECODE), (100_000,) * 3)


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return tiny_policy.write(tmp_path / "policy", FLEET, 500)


def opened(runtime: Runtime, conversation: int, tokens: int) -> Placement:
    runtime.record(TurnArrived, conversation, 0, tokens, tokens)
    decision = runtime.decide(conversation)
    assert decision is not None
    return decision.placement


def served(runtime: Runtime, conversation: int, tokens: int, *, turns: int = 1) -> Placement:
    """Serve a conversation whose turns follow each other at once."""
    placement = opened(runtime, conversation, tokens)
    at, to, _ = placement
    for turn in range(turns):
        if turn:
            tokens += 30
            runtime.record(TurnArrived, conversation, turn, tokens, 30)
        elif at != to:
            runtime.record(Prefilled, conversation, 0, at, tokens, 0, 0.0)
            runtime.record(KvMoved, conversation, 0, at, to, tokens, 0.01)
        runtime.record(FirstToken, conversation, turn, to)
        runtime.record(TurnFinished, conversation, turn, to, tokens, 0, 20)
    return placement


def traffic(runtime: Runtime, conversations: range) -> None:
    rng = np.random.default_rng(conversations.start)
    for conversation in conversations:
        tokens, turns = int(rng.integers(10, 2000)), int(rng.integers(1, 4))
        served(runtime, conversation, tokens, turns=turns)
        if rng.random() < 0.8:
            runtime.record(ConversationEnded, conversation, turns)


def test_decisions_of_many_threads_replay_alike(tmp_path: Path, policy: Path) -> None:
    log = DecisionLog(tmp_path / "log")
    runtime = Runtime(Scheduler.load(policy), FLEET, log=log)
    runtime.begin_segment()
    threads = [
        threading.Thread(target=traffic, args=(runtime, range(100 * i, 100 * i + 100)))
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    replayed = list(replay(tmp_path / "log", by_checksum([Scheduler.load(policy)])))
    assert len(replayed) == 400
    assert all(one.same for one in replayed)
    assert {one.online.disaggregates for one in replayed} == {True, False}
    other = Scheduler.load(tiny_policy.write(tmp_path / "other", FLEET, 1000))
    acting = Scheduler.load(policy).checksum
    wrong = list(replay(tmp_path / "log", {acting: other}))
    assert 10 < sum(not one.same for one in wrong) < 390
    with pytest.raises(LogError, match="checksum"):
        list(replay(tmp_path / "log", by_checksum([])))


def test_deciding_touches_neither_files_nor_sockets(
    tmp_path: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = DecisionLog(tmp_path / "log")
    runtime = Runtime(Scheduler.load(policy), FLEET, log=log)
    runtime.begin_segment()
    log.flush()
    here = threading.current_thread()

    def refuse(*args: object, **options: object) -> None:
        assert threading.current_thread() is not here, "waits for the outside"

    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr(json, "dumps", lambda *a, **k: refuse() or "{}")
    monkeypatch.setattr(socket, "socket", refuse)
    traffic(runtime, range(20))
    log.close()


def test_another_policy_takes_over_and_the_log_still_replays(tmp_path: Path, policy: Path) -> None:
    log = DecisionLog(tmp_path / "log")
    runtime = Runtime(Scheduler.load(policy), FLEET, log=log)
    runtime.begin_segment()
    other = tiny_policy.write(tmp_path / "other", FLEET, math.inf, name="never")
    traffic(runtime, range(50))
    runtime.load(other)
    assert runtime.scheduler.name == "never"
    assert not opened(runtime, 100, 5000).disaggregates
    traffic(runtime, range(200, 250))
    log.close()
    policies = by_checksum([Scheduler.load(policy), Scheduler.load(other)])
    replayed = list(replay(tmp_path / "log", policies))
    assert len(replayed) == 101
    assert all(one.same for one in replayed)


def test_a_policy_that_is_garbage_leaves_the_acting_one(tmp_path: Path, policy: Path) -> None:
    log = DecisionLog(tmp_path / "log")
    runtime = Runtime(Scheduler.load(policy), FLEET, log=log)
    runtime.begin_segment()
    acting = runtime.scheduler
    watched = PolicyFile(policy)
    assert not watched.changed()
    (policy / "weights.safetensors").write_bytes(b"garbage")
    assert watched.changed() and not watched.changed()
    with pytest.raises(ArtifactError, match=r"weights\.safetensors"):
        runtime.load(policy)
    everywhere = replace(DEFAULT_DEPLOYMENT, prefix_caching=False)
    tiny_policy.write(tmp_path / "deployed", FLEET, 500, deployment=everywhere)
    with pytest.raises(ArtifactError, match="start the router again"):
        runtime.load(tmp_path / "deployed")
    smaller = Fleet(FLEET.roles[:2], FLEET.kv_capacity_tokens[:2])
    tiny_policy.write(tmp_path / "smaller", smaller, 500)
    with pytest.raises(ArtifactError, match="does not serve these engines"):
        runtime.load(tmp_path / "smaller")
    assert runtime.scheduler is acting
    assert opened(runtime, 0, 5000).disaggregates
    log.close()
    refused = [record["refused"] for record in latest(tmp_path / "log") if "refused" in record]
    assert len(refused) == 3 and "weights.safetensors" in refused[0]


def test_a_candidate_in_the_shadow_changes_nothing(tmp_path: Path, policy: Path) -> None:
    log = DecisionLog(tmp_path / "log")
    runtime = Runtime(Scheduler.load(policy), FLEET, log=log)
    runtime.begin_segment()
    runtime.load_shadow(tiny_policy.write(tmp_path / "candidate", FLEET, 1000))
    for conversation, tokens in enumerate((100, 600, 700, 2000)):
        assert served(runtime, conversation, tokens).disaggregates == (tokens >= 500)
    assert runtime.shadow is not None
    assert (runtime.shadow.decisions, runtime.shadow.disagreements) == (4, 2)
    runtime.load_shadow(None)
    served(runtime, 9, 600)
    log.close()
    shadows = [r["shadow"] for r in latest(tmp_path / "log") if "shadow" in r]
    assert len(shadows) == 2
    for shadow in shadows:
        assert shadow["decision"][0] == shadow["decision"][1]
        assert shadow["score_gain"] > 0.0
    assert all(one.same for one in replay(tmp_path / "log", by_checksum([runtime.scheduler])))


def test_engines_that_are_down_get_no_conversation(tmp_path: Path, policy: Path) -> None:
    log = DecisionLog(tmp_path / "log")
    runtime = Runtime(Scheduler.load(policy), FLEET, log=log)
    runtime.begin_segment()
    runtime.set_up(1, False)
    assert opened(runtime, 0, 1000) == Placement(0, 2)
    runtime.set_up(0, False)
    runtime.record(TurnArrived, 1, 0, 1000, 1000)
    decision = runtime.decide(1)
    assert decision is not None
    assert (decision.placement, decision.fallback) == (Placement(2, 2), "engine 0 is down")
    runtime.set_up(0, True)
    runtime.set_up(1, True)
    assert opened(runtime, 2, 1000) == Placement(0, 1)
    log.close()
    assert all(one.same for one in replay(tmp_path / "log", by_checksum([runtime.scheduler])))


def test_a_conversation_waits_while_no_engine_that_is_up_has_room(policy: Path) -> None:
    runtime = Runtime(Scheduler.load(policy), FLEET)
    assert opened(runtime, 0, 90_000).decode_at == 1
    runtime.record(TurnArrived, 1, 0, 20_000, 20_000)
    runtime.set_up(2, False)
    assert runtime.decide(1, wait=True) is None
    runtime.set_up(2, True)
    decision = runtime.decide(1, wait=True)
    assert decision is not None and decision.placement.decode_at == 2


@pytest.mark.parametrize("cut", [0, 37])
def test_a_restored_runtime_goes_on(tmp_path: Path, policy: Path, cut: int) -> None:
    log = DecisionLog(tmp_path / "log", keep=2)
    first = Runtime(Scheduler.load(policy), FLEET, log=log)
    for _ in range(3):
        first.begin_segment()
    traffic(first, range(30))
    first.note({"key": "of 30"})
    first.begin_segment([{"key": "of 30"}])
    traffic(first, range(100, 110))
    first.record(TurnArrived, 200, 0, 700, 700)  # at the door
    opened(first, 201, 700)  # waits for its first token
    first.note({"key": "of 201"})
    stopped = first.record(Metered, 0.0).time
    log.close()
    assert len(segments(tmp_path / "log")) == 2
    newest = segments(tmp_path / "log")[-1]
    newest.write_bytes(newest.read_bytes()[:-cut] if cut else newest.read_bytes())

    second_log = DecisionLog(tmp_path / "log", keep=3)
    second = Runtime(Scheduler.load(policy), FLEET, log=second_log)
    notes = second.restore(latest(tmp_path / "log"))
    second.begin_segment()
    assert notes[0] == {"key": "of 30"}
    if not cut:
        assert notes[-1] == {"key": "of 201"}
        assert second.now() >= stopped
        before, after = first.summary(), second.summary()
        assert after["cluster"]["live_conversations"] == before["cluster"]["live_conversations"]
        assert after["engines"]["pinned"] == before["engines"]["pinned"]
        assert after["engines"]["turns_in_flight"] == [0, 0, 0]
        assert after["cluster"]["at_door"] == 0
    traffic(second, range(300, 320))
    second_log.close()
    assert all(one.same for one in replay(tmp_path / "log", by_checksum([second.scheduler])))
    other = Runtime(Scheduler(None), Fleet(FLEET.roles, (5,) * 3))
    with pytest.raises(LogError, match="another fleet"):
        other.restore(latest(tmp_path / "log"))


def test_a_segment_without_a_whole_head_is_passed_over(tmp_path: Path, policy: Path) -> None:
    log = DecisionLog(tmp_path / "log")
    runtime = Runtime(Scheduler.load(policy), FLEET, log=log)
    runtime.begin_segment()
    traffic(runtime, range(5))
    log.close()
    (whole,) = segments(tmp_path / "log")
    torn = whole.with_name("ledger-00000002.jsonl")
    torn.write_bytes(whole.read_bytes()[:100])
    assert len(list(latest(tmp_path / "log"))) > 20
    with pytest.raises(LogError, match="line 1"):
        list(read(torn))
    whole.write_text(whole.read_text().replace("placed", "pl\nced", 1))
    with pytest.raises(LogError, match="not of a decision log"):
        list(read(whole))


def test_a_log_that_cannot_be_written_stops_nobody(
    tmp_path: Path, policy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = DecisionLog(tmp_path / "log")
    runtime = Runtime(Scheduler.load(policy), FLEET, log=log)
    (tmp_path / "log").rmdir()
    runtime.begin_segment()
    traffic(runtime, range(5))
    log.close()
    assert log.dropped > 20
    assert caplog.text.count("decision log") == 1


def test_a_full_segment_asks_for_another(tmp_path: Path, policy: Path) -> None:
    log = DecisionLog(tmp_path / "log", segment_bytes=10_000)
    runtime = Runtime(Scheduler.load(policy), FLEET, log=log)
    runtime.begin_segment()
    traffic(runtime, range(50))
    log.flush()
    assert runtime.wants_segment
    runtime.begin_segment()
    log.flush()
    assert not runtime.wants_segment
    log.close()
