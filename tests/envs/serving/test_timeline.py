"""The record of what engines did: by hand, and against the engines' own counts."""

from __future__ import annotations

from collections import Counter

import pytest
from examples import NO_RESERVATION, cluster_of, conversation, engine, play
from hypothesis import HealthCheck, given, settings
from random_episodes import Episode, episodes
from test_invariants import after_every_event

from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.link import Link
from conserve_gym.envs.serving.timeline import Move, Span, Timeline
from conserve_gym.fleet import Role
from conserve_gym.ledger import KvMoved
from conserve_gym.placement import Placement

EXAMPLES = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))


def exactly(*seconds: float) -> object:
    return pytest.approx(seconds, rel=1e-12, abs=1e-12)


def times(spans: list[Span]) -> list[float]:
    return [time for span in spans for time in (span.began, span.ended)]


def contents(spans: list[Span]) -> list[tuple[str, int, int, int]]:
    return [(span.phase, span.steps, span.sequences, span.prompt_tokens) for span in spans]


def test_two_conversations_on_one_engine() -> None:
    spec = cluster_of(engine(Role.MIXED))
    timeline = Timeline(spec.deployed(NO_RESERVATION))
    play(
        spec,
        NO_RESERVATION,
        [conversation(0.0, (80, 80, 3, 0.0)), conversation(0.012, (150, 150, 3, 0.0))],
        [Placement(0, 0), Placement(0, 0)],
        timeline,
    )
    (track,) = timeline.tracks
    # The second comes during the first's prefill; the first ends with the second's prompt.
    first = 0.0132
    second = first + 0.0258005
    third = second + 0.0225495
    # Decodes that read 150 and 151 tokens: 3 + 1 + 7.5 ms, 50 us more.
    last = third + 0.0115 + 0.01155
    assert contents(track.spans) == [
        ("prefill", 1, 0, 80),
        ("mixed", 1, 1, 99),
        ("mixed", 1, 1, 51),
        ("decode", 2, 1, 0),
    ]
    assert times(track.spans) == exactly(0.0, first, first, second, second, third, third, last)
    # 80 tokens are 5 blocks; 81 and 150 are 6 and 10.
    assert track.level_times == exactly(0.0, first, third, last)
    assert track.levels == [5, 16, 10, 0]
    assert track.capacity_blocks == 100


def test_kv_moves_and_waits_for_the_link() -> None:
    spec = cluster_of(engine(Role.PREFILL), engine(Role.PREFILL), engine(Role.DECODE))
    timeline = Timeline(spec.deployed(NO_RESERVATION))
    play(
        spec,
        NO_RESERVATION,
        [conversation(0.0, (21, 21, 2, 0.0)), conversation(0.0, (21, 21, 2, 0.0))],
        [Placement(0, 2), Placement(0, 2)],
        timeline,
    )
    prefill, unused, decode = timeline.tracks
    # A prompt takes the floor of 5 ms, its move 4 + 2.1 ms: the second waits for the first.
    assert contents(prefill.spans) == [("prefill", 1, 0, 21), ("prefill", 1, 0, 21)]
    assert [move[:4] for move in prefill.moves] == [(0, 0, 2, 21), (1, 0, 2, 21)]
    assert [time for move in prefill.moves for time in move[4:]] == exactly(
        *(0.005, 0.005, 0.0111), *(0.010, 0.0111, 0.0172)
    )
    assert prefill.level_times == exactly(0.0, 0.005, 0.0111, 0.0172)
    assert prefill.levels == [2, 4, 2, 0]
    assert unused.spans == unused.moves == decode.moves == []
    assert unused.levels == [0]
    # Steps of one decode and of two take the floor; the run of the first ends for the second.
    assert contents(decode.spans) == [("decode", 1, 1, 0), ("decode", 1, 2, 0), ("decode", 1, 1, 0)]
    assert times(decode.spans) == exactly(0.0111, 0.0213, 0.0213, 0.0317, 0.0317, 0.0419)
    # Set aside before the prompts are computed, for all but their last tokens.
    assert decode.level_times[:2] == exactly(0.0, 0.005)
    assert decode.levels[:2] == [2, 4]


def test_what_is_under_way_has_no_end() -> None:
    spec = cluster_of(engine(Role.MIXED))
    timeline = Timeline(spec.deployed(NO_RESERVATION))
    conversations = [conversation(0.0, (80, 80, 90, 0.0)), conversation(0.1, (20, 20, 2, 0.0))]
    cluster = Cluster(spec, NO_RESERVATION, conversations, timeline)
    cluster.advance()
    cluster.place(Placement(0, 0))
    cluster.advance()
    (track,) = timeline.tracks
    assert track.spans[0].ended == pytest.approx(0.0132)
    assert track.spans[1] == (track.spans[0].ended, float("inf"), "decode", 0, 1, 0)
    assert track.spans_between(0.05, 0.1) == track.spans[1:]
    assert track.spans_between(0.0, 0.01) == track.spans[:1]


@EXAMPLES
@given(episodes())
def test_spans_are_the_steps_and_the_time_that_engines_were_busy(episode: Episode) -> None:
    timeline = Timeline(episode.spec.deployed(episode.deployment))
    cluster = episode.play(timeline=timeline)
    for track, one in zip(timeline.tracks, cluster.engines, strict=True):
        edges = times(track.spans)
        assert edges == sorted(edges)
        assert sum(span.steps for span in track.spans) == one.steps
        joules = one.energy_j()
        idle_s = joules.pop("idle") / episode.spec.hardware[track.engine.hardware].power.idle_w
        busy_s = sum(span.ended - span.began for span in track.spans)
        assert busy_s + idle_s == pytest.approx(cluster.now)
        assert {span.phase for span in track.spans} == {p for p, used in joules.items() if used}
        for span in track.spans:
            assert span.began < span.ended <= cluster.now
            assert (span.prompt_tokens == 0) == (span.phase == "decode")
            assert (span.sequences == 0) == (span.phase == "prefill")
            assert span.steps == 1 or span.phase == "decode"


@EXAMPLES
@given(episodes())
def test_levels_are_those_of_the_pool(episode: Episode) -> None:
    timeline = Timeline(episode.spec.deployed(episode.deployment))
    checked = Counter[str]()

    def check(cluster: Cluster) -> None:
        for track, one in zip(timeline.tracks, cluster.engines, strict=True):
            if one.is_idle or track.spans[-1].phase != "decode":
                assert track.levels[-1] == one.kv.used_blocks
                checked["exact"] += 1
            assert track.levels[-1] <= one.kv.used_blocks <= track.capacity_blocks

    cluster = episode.play(
        before=lambda cluster: after_every_event(cluster, lambda: check(cluster)),
        timeline=timeline,
    )
    check(cluster)
    assert checked["exact"]
    for track in timeline.tracks:
        assert track.level_times == sorted(set(track.level_times))
        assert track.levels[-1] == 0


@EXAMPLES
@given(episodes())
def test_moves_are_those_of_the_ledger_one_at_a_time(episode: Episode) -> None:
    timeline = Timeline(episode.spec.deployed(episode.deployment))
    cluster = episode.play(timeline=timeline)
    link = Link(episode.spec.link)
    told = [event for event in cluster.ledger if isinstance(event, KvMoved)]
    recorded: list[tuple[int, Move]] = []
    for source, track in enumerate(timeline.tracks):
        recorded += [(source, move) for move in track.moves]
        free = 0.0
        for move in track.moves:
            assert move.began == max(move.sent, free)
            assert move.ended - move.began == pytest.approx(link.seconds(move.tokens))
            free = move.ended
    assert Counter(
        KvMoved(m.ended, m.conversation, m.turn, source, m.target, m.tokens, 0.0)
        for source, m in recorded
    ) == Counter(event._replace(seconds=0.0) for event in told)
    waits = {(event.conversation, event.turn): event.seconds for event in told}
    for _, move in recorded:
        assert move.sent + waits[move.conversation, move.turn] == move.ended


@EXAMPLES
@given(episodes())
def test_a_record_changes_nothing(episode: Episode) -> None:
    recorded = episode.play(timeline=Timeline(episode.spec.deployed(episode.deployment)))
    assert recorded.ledger.digest() == episode.play().ledger.digest()
