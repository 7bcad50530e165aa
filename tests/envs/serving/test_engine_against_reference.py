"""The engine covers whole runs of steps with one event; the result is that of single steps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import assume, given, settings
from random_episodes import EXAMPLES, Episode, coincidences, episodes
from reference_engine import ReferenceEngine

from conserve_gym.envs.serving.clock import Clock
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.ledger import Event

REAL_FIELDS = {"time", "queued_s", "seconds", "joules"}


def assert_same_event(actual: Event, expected: Event) -> None:
    assert type(actual) is type(expected), f"{actual} instead of {expected}"
    for name, value in expected._asdict().items():
        if name in REAL_FIELDS:
            value = pytest.approx(value, rel=1e-9, abs=1e-9)
        assert getattr(actual, name) == value, f"{name}: {actual} instead of {expected}"


def assert_same_engines(actual: Cluster, expected: Cluster) -> None:
    for i, (one, other) in enumerate(zip(actual.engines, expected.engines, strict=True)):
        for counter in ("steps", "preemptions", "is_idle"):
            assert getattr(one, counter) == getattr(other, counter), f"{counter} of engine {i}"
        for counter in ("allocated_blocks", "freed_blocks", "evicted_blocks", "used_blocks"):
            assert getattr(one.kv, counter) == getattr(other.kv, counter), f"{counter} of {i}"
        joules = other.energy_j()
        assert one.energy_j() == pytest.approx(joules, rel=1e-9, abs=1e-9), f"energy of engine {i}"


def assert_same_run(episode: Episode) -> None:
    def meter(cluster: Cluster) -> None:
        cluster.meter()

    met: list[float] = []
    expected = episode.play(ReferenceEngine, before=lambda c: coincidences(c, met), at_door=meter)
    assume(not met)
    actual = episode.play(at_door=meter)
    for one, other in zip(actual.ledger, expected.ledger, strict=False):
        assert_same_event(one, other)
    assert len(actual.ledger) == len(expected.ledger)
    assert_same_engines(actual, expected)


@settings(EXAMPLES, max_examples=6 * EXAMPLES.max_examples)
@given(episodes())
def test_runs_of_steps_equal_single_steps(episode: Episode) -> None:
    assert_same_run(episode)


@pytest.mark.slow
@settings(EXAMPLES, max_examples=6000)
@given(episodes(most_conversations=20))
def test_runs_of_steps_equal_single_steps_in_larger_episodes(episode: Episode) -> None:
    assert_same_run(episode)


def test_what_meets_is_seen_and_what_follows_at_once_is_not() -> None:
    met: list[float] = []
    clock = Clock()
    coincidences(cast(Cluster, SimpleNamespace(_clock=clock)), met)
    clock.after(0.2, lambda _: clock.after(0.0, lambda _: None))
    clock.after(0.4, lambda _: clock.after(0.1, lambda _: None))
    clock.run(until=1.0)
    assert met == []
    clock.after(0.1, lambda _: clock.after(0.2, lambda _: None))
    clock.after(0.3, lambda _: None)
    clock.run(until=2.0)
    assert met == [pytest.approx(1.3)]
