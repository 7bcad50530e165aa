"""Turns at recorded times: never before them, and never while the turn before runs."""

from __future__ import annotations

import copy
import math
import random
from dataclasses import replace
from itertools import pairwise

import pytest
from examples import NO_RESERVATION, cluster_of, conversation, engine, play, times
from hypothesis import given
from hypothesis import strategies as st
from random_episodes import EXAMPLES, FEW, Episode, episodes

from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.standalone import StandaloneEngine
from conserve_gym.envs.workloads.changes.open_loop import OpenLoop
from conserve_gym.envs.workloads.conversation import Conversation, Recording
from conserve_gym.fleet import Role
from conserve_gym.ledger import TurnArrived, TurnFinished
from conserve_gym.placement import Placement


def recorded(conversation: Conversation, rng: random.Random) -> Conversation:
    """Give the turns recorded times, some of which are those of the turn before."""
    turns, sent_s = [conversation.turns[0]._replace(sent_s=0.0)], 0.0
    for turn in conversation.turns[1:]:
        sent_s += rng.choice((0.0, rng.uniform(0.0, 0.02), rng.uniform(0.0, 2.0)))
        turns.append(turn._replace(sent_s=sent_s))
    return conversation._replace(turns=tuple(turns))


def opened(conversation: Conversation) -> Conversation:
    """Let the turns come at their recorded times."""
    (fixed,) = OpenLoop()([Recording("a", "a", 0.0, conversation.turns)])
    return conversation._replace(turns=fixed.turns)


@st.composite
def open_episodes(draw: st.DrawFn) -> Episode:
    episode = draw(episodes())
    rng = random.Random(draw(st.integers(0, 2**32), label="seed of the recorded times"))
    conversations = tuple(opened(recorded(one, rng)) for one in episode.conversations)
    return replace(episode, conversations=conversations)


@EXAMPLES
@given(open_episodes())
def test_a_turn_comes_at_its_time_or_at_the_end_of_the_one_before(episode: Episode) -> None:
    cluster = episode.play()
    arrived, finished = times(cluster, TurnArrived), times(cluster, TurnFinished)
    for i, (arrival_s, turns) in enumerate(episode.conversations):
        for k, turn in enumerate(turns):
            due = arrival_s + turn.sent_s
            if k:
                due = max(due, finished[i, k - 1])
                assert arrived[i, k] >= finished[i, k - 1]
            assert math.isclose(arrived[i, k], due, rel_tol=1e-12)
    moments = [event.time for event in cluster.ledger]
    assert moments == sorted(moments)


@FEW
@given(open_episodes(), st.data())
def test_a_copy_has_the_same_future(episode: Episode, data: st.DataObject) -> None:
    undisturbed = episode.play().ledger.digest()
    cluster = Cluster(episode.spec, episode.deployment, episode.conversations)
    for _ in range(data.draw(st.integers(0, len(episode.conversations)))):
        assert cluster.advance()
        cluster.place(episode.choose(cluster.observe()))
    for one in (copy.deepcopy(cluster), cluster):
        while one.advance():
            one.place(episode.choose(one.observe()))
        assert one.ledger.digest() == undisturbed


@EXAMPLES
@given(episodes(), st.integers(0, 2**32))
def test_recorded_times_mean_nothing_in_a_closed_loop(episode: Episode, seed: int) -> None:
    rng = random.Random(seed)
    timed = tuple(recorded(one, rng) for one in episode.conversations)
    assert replace(episode, conversations=timed).play().ledger.digest() == (
        episode.play().ledger.digest()
    )


@EXAMPLES
@given(open_episodes())
def test_a_conversation_alone_takes_its_standalone_latencies(episode: Episode) -> None:
    lone = episode.conversations[0]
    spec = cluster_of(engine(Role.MIXED, kv_capacity_tokens=16 * 1000))
    cluster = play(spec, NO_RESERVATION, [lone], [Placement(0, 0)])
    expected = StandaloneEngine.of(spec).latencies(lone.turns)
    ended_s = times(cluster, TurnFinished)[0, len(lone.turns) - 1]
    assert ended_s - lone.arrival_s == pytest.approx(expected.e2e_s, rel=1e-9)


def test_an_overloaded_cluster_meets_all_turns_of_a_conversation_in_a_row() -> None:
    turns = ((80, 80, 40, 0.0), (130, 10, 40, 9.0), (180, 10, 40, 9.0))
    late = conversation(1.0, *turns)
    sent = [turn._replace(sent_s=0.001 * i) for i, turn in enumerate(late.turns)]
    spec = cluster_of(engine(Role.MIXED))
    cluster = play(
        spec, NO_RESERVATION, [opened(late._replace(turns=tuple(sent)))], [Placement(0, 0)]
    )
    arrived, finished = times(cluster, TurnArrived), times(cluster, TurnFinished)
    for before, after in pairwise(range(3)):
        assert arrived[0, after] == finished[0, before]
