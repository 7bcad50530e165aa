"""The record of what engines did: by hand, and against the engines' own counts."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace

import pytest
from examples import NO_RESERVATION, cluster_of, conversation, decoding, engine, play
from hypothesis import given
from random_episodes import FEW, Episode, episodes
from test_invariants import after_every_event

from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.timeline import Span, Timeline
from conserve_gym.fleet import Role
from conserve_gym.ledger import KvMoved
from conserve_gym.placement import Placement


def exactly(*seconds: float) -> object:
    return pytest.approx(seconds, rel=1e-12, abs=1e-12)


def times(spans: list[Span]) -> list[float]:
    return [time for span in spans for time in (span.began, span.ended)]


def contents(spans: list[Span]) -> list[tuple[str, int, int, int]]:
    return [(span.phase, span.steps, span.sequences, span.prompt_tokens) for span in spans]


def test_two_conversations_on_one_engine() -> None:
    spec = cluster_of(engine(Role.MIXED))
    deployment = replace(NO_RESERVATION, prefix_caching=False)
    timeline = Timeline(spec.deployed(deployment))
    play(
        spec,
        deployment,
        [conversation(0.0, (80, 80, 3, 0.0)), conversation(0.012, (150, 150, 3, 0.0))],
        [Placement(0, 0), Placement(0, 0)],
        timeline,
    )
    (track,) = timeline.tracks
    # The second comes during the first's prefill; the first ends with the second's prompt.
    first = 0.0132
    second = first + 0.0259005
    third = second + 0.0226495
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


@pytest.mark.parametrize("caching", [True, False])
def test_kv_that_moves_at_once_is_in_order_of_arrival(caching: bool) -> None:
    spec = cluster_of(engine(Role.PREFILL), engine(Role.PREFILL), engine(Role.DECODE))
    deployment = replace(NO_RESERVATION, prefix_caching=caching)
    timeline = Timeline(spec.deployed(deployment))
    play(
        spec,
        deployment,
        [
            conversation(0.0, (21, 21, 2, 0.0)),
            conversation(0.001, (40, 40, 2, 0.0)),
            conversation(0.001, (20, 20, 2, 0.0)),
        ],
        [Placement(0, 2)] * 3,
        timeline,
    )
    prefill, unused, decode = timeline.tracks
    # A prompt of 2 + 2.1 + 0.2205 ms, then two in one step of 2 + 6 + 1 ms.
    first = 0.0043205
    second = first + 0.009
    assert contents(prefill.spans) == [("prefill", 1, 0, 21), ("prefill", 1, 0, 60)]
    assert times(prefill.spans) == exactly(0.0, first, first, second)
    # Alone 4 + 2.1 ms. Two together share the port: the shorter takes 4 + 2 * 2 ms, and the rest
    # of the longer another 2 ms.
    arrive = (first + 0.0061, second + 0.008, second + 0.010)
    assert [move[:4] for move in prefill.moves] == [(0, 0, 2, 21), (2, 0, 2, 20), (1, 0, 2, 40)]
    assert [move.began for move in prefill.moves] == exactly(first, second, second)
    assert [move.ended for move in prefill.moves] == exactly(*arrive)
    assert prefill.moves_arrived(second, second + 0.009) == prefill.moves[1:2]
    # What has been sent is not held any more, though it may stay in the pool.
    assert prefill.level_times == exactly(0.0, first, *arrive)
    assert prefill.levels == [2, 7, 5, 3, 0]
    assert unused.spans == unused.moves == decode.moves == []
    assert unused.levels == [0]
    # Set aside before the prompts are computed, for all but their last tokens.
    assert decode.level_times[:2] == exactly(0.0, first)
    assert decode.levels[:2] == [2, 7]


def test_history_is_pulled_by_a_prefill_engine() -> None:
    spec = cluster_of(engine(Role.PREFILL), engine(Role.DECODE))
    timeline = Timeline(spec.deployed(NO_RESERVATION))
    play(
        spec,
        NO_RESERVATION,
        [conversation(0.0, (50, 50, 40, 0.0), (100, 10, 2, 1.0))],
        [Placement(0, 1, 0.0)],
        timeline,
    )
    prefill, decode = timeline.tracks
    # Its decoder holds 89 tokens, of which 5 whole blocks are used again. The prefill engine has 3
    # blocks of the first prompt, and lacks 32 tokens of the 80. After the new 20, it sends those.
    assert [move[:4] for move in prefill.moves] == [(0, 0, 1, 50), (0, 1, 1, 20)]
    (pulled,) = decode.moves
    assert pulled[:4] == (0, 1, 0, 32)
    # No prefill hides a part of it: 4 + 32 * 0.2 ms.
    assert pulled.ended - pulled.began == pytest.approx(0.0104, rel=1e-9)
    assert prefill.spans[1].began == pulled.ended
    assert prefill.spans[1].prompt_tokens == 20
    # 100 tokens, from the time at which the pull begins until they have been sent.
    assert prefill.levels[-2:] == [7, 0]
    assert prefill.level_times[-2] == pulled.began


def test_what_is_under_way_has_no_end() -> None:
    timeline, _ = decoding()
    (track,) = timeline.tracks
    assert track.spans[0].ended == pytest.approx(0.0132)
    assert track.spans[1] == (track.spans[0].ended, float("inf"), "decode", 0, 1, 0)
    assert track.spans_between(0.05, 0.1) == track.spans[1:]
    assert track.spans_between(0.0, 0.01) == track.spans[:1]


@FEW
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


@FEW
@given(episodes())
def test_levels_are_those_of_the_pool(episode: Episode) -> None:
    timeline = Timeline(episode.spec.deployed(episode.deployment))
    cluster = Cluster(episode.spec, episode.deployment, episode.conversations, timeline)
    held: list[dict[float, int]] = [{} for _ in timeline.tracks]

    def sample() -> None:
        for track, one, samples in zip(timeline.tracks, cluster.engines, held, strict=True):
            samples[cluster.now] = one.kv.capacity_blocks - one.kv.available_blocks
            assert track.levels[-1] == samples[cluster.now]

    after_every_event(cluster, sample)
    while cluster.advance():
        cluster.place(episode.choose(cluster.observe()))
        sample()
    for track, samples in zip(timeline.tracks, held, strict=True):
        assert track.level_times == sorted(set(track.level_times))
        assert max(track.levels) <= track.capacity_blocks
        assert samples == {
            now: track.levels[bisect_right(track.level_times, now) - 1] for now in samples
        }
        assert track.levels[-1] == 0


@FEW
@given(episodes())
def test_moves_are_those_of_the_ledger(episode: Episode) -> None:
    timeline = Timeline(episode.spec.deployed(episode.deployment))
    cluster = episode.play(timeline=timeline)
    for source, track in enumerate(timeline.tracks):
        assert track.moves == [
            (
                told.conversation,
                told.turn,
                told.target,
                told.tokens,
                told.time - told.seconds,
                told.time,
            )
            for told in cluster.ledger
            if isinstance(told, KvMoved) and told.source == source
        ]
        arrivals = [move.ended for move in track.moves]
        assert arrivals == sorted(arrivals)


@FEW
@given(episodes())
def test_a_record_changes_nothing(episode: Episode) -> None:
    recorded = episode.play(timeline=Timeline(episode.spec.deployed(episode.deployment)))
    assert recorded.ledger.digest() == episode.play().ledger.digest()
