"""Arrivals whose rate changes: their mean, their bursts, and the hours of a day."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conserve_gym.envs.configuration import ConfigurationError, load_scenario
from conserve_gym.envs.workloads.arrivals import Poisson
from conserve_gym.envs.workloads.modulated_arrivals import Diurnal, OnOff

CURVE = (1.0, 3.0, 0.0, 4.0)


def drawn(process: OnOff | Diurnal, seed: int, count: int) -> np.ndarray:
    return np.array(process.draw(np.random.default_rng(seed), [1] * count))


processes = st.one_of(
    st.builds(
        OnOff,
        rate=st.floats(0.01, 100.0),
        on_s=st.floats(1.0, 100.0),
        off_s=st.floats(1.0, 100.0),
        off_share=st.floats(0.0, 1.0),
    ),
    st.builds(
        Diurnal,
        rate=st.floats(0.01, 100.0),
        speed_up=st.floats(1.0, 1e5),
        start_h=st.none() | st.floats(0.0, 24.0, exclude_max=True),
        relative_rates=st.lists(st.floats(0.0, 10.0), min_size=1, max_size=48).filter(
            lambda rates: sum(rates) > 0.1
        ),
    ),
)


@settings(max_examples=200, deadline=None)
@given(processes, st.integers(0, 2**32), st.integers(1, 200))
def test_times_never_fall_and_follow_from_the_seed(
    process: OnOff | Diurnal, seed: int, count: int
) -> None:
    times = drawn(process, seed, count)
    assert times.shape == (count,)
    assert np.isfinite(times).all()
    assert times[0] >= 0.0
    assert (np.diff(times) >= 0.0).all()
    assert times.tolist() == drawn(process, seed, count).tolist()
    assert times.tolist() != drawn(process, seed + 1, count).tolist()


@pytest.mark.parametrize("rate", [0.2, 1.634, 50.0])
@pytest.mark.parametrize("off_share", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("on_s", "off_s"), [(4.0, 13.2), (30.0, 10.0)])
def test_on_off_has_the_rate_and_the_dispersion_of_its_closed_form(
    rate: float, off_share: float, on_s: float, off_s: float
) -> None:
    process = OnOff(rate, on_s, off_s, off_share)
    # Heffes and Lucantoni 1986: variance over mean of the counts in windows of w seconds.
    high, low = process.on_rate, process.on_rate * off_share
    leaves_on, leaves_off = 1.0 / on_s, 1.0 / off_s
    both, window = leaves_on + leaves_off, 20.0
    limit = 2.0 * leaves_on * leaves_off * (high - low) ** 2
    limit /= both**2 * (high * leaves_off + low * leaves_on)
    dispersion = 1.0 + limit * (1.0 - (1.0 - math.exp(-both * window)) / (both * window))
    ratios, rates = [], []
    for seed in range(10):
        times = drawn(process, seed, int(rate * window * 200))
        counts = np.bincount((times // window).astype(int))[:-1]  # the last is cut off
        ratios.append(counts.var(ddof=1) / counts.mean())
        rates.append(counts.mean() / window)
    for values, expected in ((ratios, dispersion), (rates, rate)):
        error = np.std(values, ddof=1) / math.sqrt(len(values))
        assert abs(np.mean(values) - expected) < 4.0 * error + 0.02 * expected


def test_on_off_with_one_rate_is_poisson() -> None:
    process = OnOff(2.0, 3.0, 5.0, off_share=1.0)
    expected = Poisson(2.0).draw(np.random.default_rng(3), [1] * 500)
    assert drawn(process, 3, 500) == pytest.approx(expected, rel=1e-9)


def test_on_off_begins_in_either_state_as_long_as_it_is_in_it() -> None:
    process = OnOff(10.0, on_s=10.0, off_s=30.0, off_share=0.0)
    began_on = np.mean([drawn(process, seed, 1)[0] < 0.25 for seed in range(4000)])
    assert began_on == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("start_h", [0.0, 7.5, 23.9])
@pytest.mark.parametrize("speed_up", [1.0, 360.0])
def test_a_day_has_its_mean_and_its_curve(start_h: float, speed_up: float) -> None:
    day_s, count = 86_400.0 / speed_up, 40_000
    process = Diurnal(count / 20.0 / day_s, speed_up, start_h, CURVE)  # twenty days
    times = drawn(process, 0, count)
    assert times[-1] == pytest.approx(20.0 * day_s, rel=0.03)
    hours = (times / day_s * 24.0 + start_h) % 24.0
    shares = np.histogram(hours, bins=4, range=(0.0, 24.0))[0] / count
    assert shares == pytest.approx([1 / 8, 3 / 8, 0.0, 4 / 8], abs=0.012)
    # Within a part of the day nothing but chance orders them.
    assert np.mean(hours[hours < 6.0]) == pytest.approx(3.0, abs=0.15)


def test_a_flat_day_is_poisson() -> None:
    process = Diurnal(2.0, 60.0, 5.0, (7.0,))
    expected = Poisson(2.0).draw(np.random.default_rng(3), [1] * 500)
    assert drawn(process, 3, 500) == pytest.approx(expected, rel=1e-9)


def test_episodes_at_random_hours_have_the_mean_rate() -> None:
    process = Diurnal(1.0, 60.0, None, CURVE)
    within = [np.sum(drawn(process, seed, 400) < 60.0) for seed in range(800)]
    assert np.mean(within) / 60.0 == pytest.approx(1.0, abs=0.1)
    assert np.std(within) > 3.0 * math.sqrt(60.0)  # the hours differ far more than chance


def test_load_scales_with_the_rate() -> None:
    for option in ("on_off", "diurnal"):
        for rate in (0.5, 4.0):
            process = load_scenario([f"arrivals={option}", f"arrivals.rate={rate}"]).arrivals
            spans = [process.draw(np.random.default_rng(i), [1] * 2000)[-1] for i in range(40)]
            assert 2000 / np.mean(spans) == pytest.approx(rate, rel=0.1)


def test_names_say_what_arrives() -> None:
    name = "on/off, 2 conversations/s on average: 5/s for 10 s, 1/s for 30 s (means)"
    assert OnOff(2.0, 10.0, 30.0, 0.2).name == name
    name = "diurnal, 2 conversations/s on average over a day that passes 60 × as fast, from "
    assert Diurnal(2.0, 60.0, None, CURVE).name == name + "a random hour"
    assert Diurnal(2.0, 60.0, 7.5, CURVE).name == name + "7.5 h"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["arrivals=on_off", "arrivals.rate=0"], "arrivals.rate=0: .* greater than 0"),
        (["arrivals=on_off", "arrivals.on_s=-1"], "arrivals.on_s=-1: .* greater than 0"),
        (["arrivals=on_off", "arrivals.off_share=1.5"], "arrivals.off_share=1.5: .* equal to 1"),
        (["arrivals=on_off", "arrivals.on_s=1e-9", "arrivals.off_s=1e-9"], "on_s=1e-09.*at least"),
        (["arrivals=on_off", "arrivals.off_s=1e308", "arrivals.rate=9"], "off_s=1e.308"),
        (["arrivals=on_off", "arrivals.on_s=1e-308"], "on_s=1e-308 is too short"),
        (["arrivals=diurnal", "arrivals.speed_up=0"], "arrivals.speed_up=0: .* greater than 0"),
        (["arrivals=diurnal", "arrivals.start_h=24"], "arrivals.start_h=24: .* less than 24"),
        (["arrivals=diurnal", "arrivals.relative_rates=[]"], "relative_rates=.. need a sum"),
        (["arrivals=diurnal", "arrivals.relative_rates=[0,0]"], "relative_rates=.*need a sum"),
        (["arrivals=diurnal", "arrivals.relative_rates=[1,-1]"], "relative_rates.1=-1: .* equal"),
    ],
)
def test_what_cannot_be_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_scenario(overrides)
