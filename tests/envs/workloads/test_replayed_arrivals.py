"""Recorded arrivals: scaled, in order, and refused where there are none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conserve_gym.envs.configuration import ConfigurationError, load_scenario
from conserve_gym.envs.workloads.conversation import Turn, WorkloadError
from conserve_gym.envs.workloads.replayed_arrivals import Replay
from conserve_gym.envs.workloads.workload import draw_episode

RNG = np.random.default_rng(0)


class Recorded:
    """A workload whose conversations are told by their length."""

    name = "recorded"

    def __init__(self, arrivals_s: list[float]) -> None:
        self.arrivals_s = arrivals_s

    def draw(self, rng: np.random.Generator) -> list[tuple[Turn, ...]]:
        return [(Turn(i + 1, i + 1, 1, 0.0),) for i in range(len(self.arrivals_s))]


def test_conversations_come_when_and_in_the_order_they_were_recorded() -> None:
    episode = draw_episode(Recorded([30.0, 10.0, 12.5, 10.0]), Replay(), RNG)
    assert [one.arrival_s for one in episode] == [0.0, 0.0, 2.5, 20.0]
    assert [one.turns[0].input_tokens for one in episode] == [2, 4, 3, 1]


@settings(max_examples=100, deadline=None)
@given(
    # Of microseconds: a scaled difference far below them is lost in rounding.
    st.lists(st.integers(0, 10**12).map(lambda us: us * 1e-6), min_size=2, max_size=50),
    st.floats(0.01, 100.0),
)
def test_load_divides_times_and_a_rate_is_kept(recorded_s: list[float], factor: float) -> None:
    times = Replay().draw(RNG, [1] * len(recorded_s), recorded_s)
    dense = Replay(load=factor).draw(RNG, [1] * len(recorded_s), recorded_s)
    assert dense == pytest.approx([time / factor for time in times])
    assert min(times) == 0.0
    span_s = max(times)
    if span_s > 1e-3:
        scaled = Replay(rate=factor).draw(RNG, [1] * len(recorded_s), recorded_s)
        assert (len(scaled) - 1) / max(scaled) == pytest.approx(factor)
        assert (
            np.argsort(scaled, kind="stable").tolist() == np.argsort(times, kind="stable").tolist()
        )


def test_one_conversation_cannot_be_scaled_to_a_rate() -> None:
    assert Replay().draw(RNG, [1], [7.0]) == [0.0]
    with pytest.raises(WorkloadError, match=r"rate=2: all 1 conversations .* one time"):
        Replay(rate=2.0).draw(RNG, [1], [7.0])


def test_a_workload_without_recorded_times_is_refused() -> None:
    scenario = load_scenario(["arrivals=replay"])
    with pytest.raises(WorkloadError, match=r"arrivals=replay: the workload is drawn"):
        draw_episode(scenario.workload, scenario.arrivals, RNG)
    with pytest.raises(WorkloadError, match="2 of the workload's 3 conversations"):
        draw_episode(Recorded([math.nan, 1.0, math.nan]), Replay(), RNG)


def test_names_say_what_arrives() -> None:
    assert Replay().name == "recorded arrivals"
    assert Replay(load=1.5).name == "recorded arrivals, 1.5 × the load"
    assert Replay(rate=1.5).name == "recorded arrivals, scaled to 1.5 conversations/s"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["arrivals.rate=0"], "arrivals.rate=0: .* greater than 0"),
        (["arrivals.load=-2"], "arrivals.load=-2: .* greater than 0"),
        (["arrivals.load=2", "arrivals.rate=2"], "rate=2 and load=2: give one of them"),
    ],
)
def test_what_cannot_be_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_scenario(["arrivals=replay", *overrides])
