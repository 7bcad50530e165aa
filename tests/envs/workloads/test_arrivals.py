"""Arrival processes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from conserve_gym.envs.configuration import ConfigurationError, load_scenario
from conserve_gym.envs.workloads.arrivals import Gamma, Poisson, RecordedPrefiller


@pytest.mark.parametrize("rate", [0.2, 1.634, 50.0])
def test_poisson_gaps_are_exponential_with_the_rate(rate: float) -> None:
    count = 20_000
    times = Poisson(rate).draw(np.random.default_rng(0), [1] * count)
    gaps = np.diff(times, prepend=0.0)
    error = 1.0 / (rate * np.sqrt(count))
    assert abs(gaps.mean() - 1.0 / rate) < 4.0 * error
    assert gaps.std() * rate == pytest.approx(1.0, abs=0.05)
    assert (gaps > 1.0 / rate).mean() == pytest.approx(np.exp(-1.0), abs=0.02)
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 5.0 / np.sqrt(count)


def test_an_episode_may_draw_its_rate() -> None:
    arrivals = Poisson(1.0, 3.0)
    rng = np.random.default_rng(0)
    rates = np.array([2000 / arrivals.draw(rng, [1] * 2000)[-1] for _ in range(200)])
    assert rates.mean() == pytest.approx(2.0, abs=0.2)
    assert 0.9 < rates.min() < 1.1
    assert 2.9 < rates.max() < 3.2


@pytest.mark.parametrize("rate", [0.2, 1.634, 50.0])
@pytest.mark.parametrize("cv", [0.5, 1.0, 2.3])
def test_gamma_gaps_have_the_rate_and_the_variation(rate: float, cv: float) -> None:
    count = 200_000
    times = Gamma(rate, cv).draw(np.random.default_rng(0), [1] * count)
    gaps = np.diff(times, prepend=0.0) * rate
    assert abs(gaps.mean() - 1.0) < 4.0 * cv / np.sqrt(count)
    # A gamma's fourth central moment is (3 + 6 cv^2) cv^4, so this is the variance's error.
    error = np.sqrt((2.0 + 6.0 * cv**2) * cv**4 / count)
    assert abs(gaps.var() - cv**2) < 4.0 * error
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 5.0 / np.sqrt(count)
    late = np.mean(gaps > 1.0 + 3.0 * cv)
    assert late == pytest.approx(stats.gamma(cv**-2, scale=cv**2).sf(1.0 + 3.0 * cv), rel=0.1)


def test_gamma_gaps_with_a_variation_of_1_are_those_of_poisson() -> None:
    times = [
        process.draw(np.random.default_rng(3), [1] * 100)
        for process in (Gamma(2.0, 1.0), Poisson(2.0))
    ]
    assert times[0] == pytest.approx(times[1], rel=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 2**32),
    st.floats(0.1, 20.0),
    st.lists(st.integers(1, 60_000), min_size=1, max_size=100),
)
def test_a_recorded_prefiller_is_never_faster_than_its_service(
    seed: int, rate: float, first_inputs: list[int]
) -> None:
    arrivals = RecordedPrefiller(rate, base_ms=11.6, token_us=14.92, square_ns=1.363)
    starts = arrivals.draw(np.random.default_rng(seed), first_inputs)
    offered = Poisson(rate).draw(np.random.default_rng(seed), first_inputs)
    tokens = np.array(first_inputs, dtype=np.float64)
    service_s = 11.6e-3 + 14.92e-6 * tokens + 1.363e-9 * tokens**2
    # Each prompt begins when it has come and the one before it is done, and not later.
    expected = [offered[0]]
    for i in range(1, len(starts)):
        expected.append(max(offered[i], expected[-1] + service_s[i - 1]))
    assert starts == pytest.approx(expected, rel=1e-12)
    assert (np.diff(starts) >= service_s[:-1] * (1.0 - 1e-12)).all()


def test_a_saturated_prefiller_makes_arrivals_regular() -> None:
    arrivals = RecordedPrefiller(1e6, base_ms=100.0, token_us=0.0, square_ns=0.0)
    starts = arrivals.draw(np.random.default_rng(0), [1] * 100)
    assert np.diff(starts) == pytest.approx([0.1] * 99)


def test_draws_are_reproducible() -> None:
    recorded = RecordedPrefiller(2.0, 1.0, 1.0, 1.0)
    for arrivals in (Poisson(2.0), Poisson(2.0, 4.0), Gamma(2.0, 3.0), recorded):
        draws = [arrivals.draw(np.random.default_rng(seed), [100] * 50) for seed in (1, 1, 2)]
        assert draws[0] == draws[1] != draws[2]
        assert draws[0] == sorted(draws[0])


def test_names_say_what_arrives() -> None:
    assert Poisson(1.5).name == "Poisson, 1.5 conversations/s"
    assert Poisson(1.5, 3.0).name == "Poisson, 1.5 to 3 conversations/s"
    assert Gamma(1.5, 2.3).name == "gamma gaps with CV 2.3, 1.5 conversations/s"
    assert "recorded through one prefiller" in RecordedPrefiller(2.0, 1.0, 1.0, 1.0).name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["arrivals.rate=0"], "arrivals.rate=0: .* greater than 0"),
        (["arrivals.rate=-1.5"], "arrivals.rate=-1.5: .* greater than 0"),
        (["arrivals.rate=1e999"], "arrivals.rate=inf: .* finite"),
        (["arrivals.rate=often"], "arrivals.rate='often': .* valid number"),
        (["arrivals.rate_high=0.5"], "rate_high=0.5 is below rate=1.25"),
        (["+arrivals.burst=2"], "arrivals.burst=2: Unexpected"),
        (["arrivals=bursty", "arrivals.cv=0"], "arrivals.cv=0: .* greater than 0"),
        (["arrivals=bursty", "arrivals.rate=-1"], "arrivals.rate=-1: .* greater than 0"),
        (
            ["arrivals=paper_saturation", "arrivals.base_ms=-1"],
            "arrivals.base_ms=-1: .* equal to 0",
        ),
    ],
)
def test_what_cannot_be_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_scenario(overrides)
