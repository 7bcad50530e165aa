"""Differences are paired by seed, and p-values are corrected."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from small_benchmark import rows

from conserve_gym.agents.benchmark.comparisons import bootstrapped, holm, p_values, pairs, table
from conserve_gym.agents.benchmark.winners import METRIC, ranking, winners


def test_holm_by_hand() -> None:
    # 0.005 x 4, 0.01 x 3, 0.03 x 2, then 0.04 x 1 raised to the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])


def test_what_has_no_p_does_not_count() -> None:
    corrected = holm([math.nan, 0.01, 0.02])
    assert math.isnan(corrected[0])
    assert corrected[1:] == pytest.approx([0.02, 0.02])


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12))
def test_holm_lies_between_nothing_and_bonferroni(p: list[float]) -> None:
    corrected = holm(p)
    assert (corrected >= np.array(p)).all()
    assert (corrected <= np.minimum(np.array(p) * len(p), 1.0) + 1e-12).all()
    assert (np.diff(corrected[np.argsort(p, kind="stable")]) >= 0.0).all()


def test_bootstrapped_intervals_are_those_of_scipy_and_the_same_again() -> None:
    sample = np.array([[1.0, 2.0, 4.0, 3.0, 9.0], [2.0, 2.0, 2.0, 2.0, 2.0]])
    low, high = bootstrapped(sample)
    expected = stats.bootstrap(
        (sample[0],),
        np.mean,
        n_resamples=2000,
        batch=100,
        method="BCa",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    assert (low[0], high[0]) == (expected.low, expected.high)
    assert (low[1], high[1]) == (2.0, 2.0)
    assert low[0] < sample[0].mean() < high[0]
    assert np.array_equal(bootstrapped(sample), (low, high))


def test_one_seed_has_neither_interval_nor_p() -> None:
    sample = np.array([[1.0]])
    assert np.isnan(bootstrapped(sample)).all()
    assert np.isnan(p_values(sample)).all()


def test_p_is_that_of_the_paired_t_test() -> None:
    first, second = np.array([90.0, 91.0, 95.0]), np.array([80.0, 85.0, 88.0])
    p = p_values((first - second)[None])
    assert p[0] == pytest.approx(stats.ttest_rel(first, second).pvalue)
    assert p_values(np.zeros((1, 3))) == [1.0]


def test_equal_differences_are_no_proof() -> None:
    """The t test would say p = 0 of two or three alike; their signs say much less."""
    assert p_values(np.full((1, 3), 2.0)) == [0.25]
    assert p_values(np.full((1, 10), -0.4)) == [2.0**-9]


def test_intervals_are_students() -> None:
    found = rows({"a": {1.0: [10, 50, 90, 30]}, "b": {1.0: [5, 45.5, 84.5, 25]}})
    (lead,) = pairs(found, "a", ["b"], METRIC).itertuples()
    expected = stats.ttest_1samp([5, 4.5, 5.5, 5], 0.0).confidence_interval(0.95)
    assert (lead.ci95_low, lead.ci95_high) == pytest.approx(expected)
    assert lead.ci95_low < lead.bootstrap_low < lead.bootstrap_high < lead.ci95_high


def test_differences_are_paired_by_seed() -> None:
    # Seeds differ far more than policies: unpaired, nothing could be told.
    found = rows({"a": {1.0: [10, 50, 90, 30]}, "b": {1.0: [5, 45.5, 84.5, 25]}})
    compared = table(found, {("four", "talk"): {"best": "a"}})
    one = compared[(compared["metric"] == METRIC) & (compared["policy"] == "b")].iloc[0]
    assert one["difference"] == pytest.approx(-5.0)
    assert one["ci95_high"] < 0.0
    assert one["p_holm"] < 0.001
    assert set(compared["policy"]) == {"b", "best_in_hindsight"}  # not with itself
    assert (compared["against"] == "a").all()


def test_the_lead_of_the_first() -> None:
    found = rows({"a": {1.0: [4, 6], 2.0: [1, 3]}, "b": {1.0: [1, 3], 2.0: [1, 3]}})
    lead = pairs(found, "a", ["b"], METRIC).set_index("rate")
    assert lead["difference"].to_dict() == {1.0: 3.0, 2.0: 0.0}


def test_winners_and_who_cannot_be_told_from_them() -> None:
    noisy = [80, 90, 70, 85, 75]
    found = rows(
        {
            "ahead": {1.0: [90, 91, 89, 90, 92], 2.0: noisy},
            "level": {1.0: [50, 52, 49, 51, 50], 2.0: [79, 91, 70, 84, 75]},
            "clairvoyant": {1.0: [99] * 5, 2.0: [99] * 5},
        },
        future=["clairvoyant"],
    )
    easy, hard = winners(found)
    assert (easy.rate, easy.policy, easy.next, easy.level) == (1.0, "ahead", "level", ())
    assert easy.clear and easy.p < 0.01 and easy.low > 30.0
    assert hard.level == ("level",) and not hard.clear
    assert ranking(found) == ["ahead", "level"]


def test_a_lone_policy_wins_without_a_lead() -> None:
    (only,) = winners(rows({"a": {1.0: [50, 60]}}))
    assert only.policy == "a" and not only.next and not only.clear
