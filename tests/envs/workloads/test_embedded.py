"""Embedded workloads draw what their recordings have, without them."""

from __future__ import annotations

import numpy as np
import pytest

from conserve_gym.envs.configuration import load_scenario
from conserve_gym.envs.workloads.samples import Samples

# p50, p95 and p99 of the recordings; tests/envs/workloads/test_profile.py has them from the files.
RECORDED = {
    "claude_code": {
        "turns": (42, 117, 149),
        "first_input": (18_385, 25_439, 30_418),
        "later_new": (252, 6919, 30_628),
        "output": (204, 1344, 3626),
        "gap_s": (8, 378, 3006),
    },
    "chat": {
        "turns": (1, 4, 7),
        "first_input": (6326, 39_421, 89_755),
        "later_new": (32, 7437, 17_083),
        "output": (354, 718, 1207),
        "gap_s": (125, 632, 1576),
    },
    "tau_airline": {
        "turns": (11, 23, 30),
        "first_input": (3870, 3890, 3898),
        "later_new": (38, 363, 982),
        "output": (43, 179, 280),
    },
}
EPISODES = {"claude_code": 15, "chat": 200, "tau_airline": 30}


@pytest.mark.parametrize("name", RECORDED)
def test_draws_have_the_recordings_medians_and_tails(name: str) -> None:
    workload = load_scenario([f"workload={name}"]).workload
    assert workload.name == name
    rng = np.random.default_rng(1)
    drawn = Samples.of(turns for _ in range(EPISODES[name]) for turns in workload.draw(rng))
    marginals = drawn.marginals()
    for quantity, (median, p95, p99) in RECORDED[name].items():
        found = np.percentile(marginals[quantity], (50, 95, 99))
        # 5 %, at p99 10 %, and for the noise of these draws half as much again.
        assert found[:2] == pytest.approx((median, p95), rel=0.075), quantity
        assert found[2] == pytest.approx(p99, rel=0.15), quantity


def test_claude_code_idles_rewrites_and_keeps_below_its_context() -> None:
    workload = load_scenario(["workload=claude_code"]).workload
    drawn = Samples.of(workload.draw(np.random.default_rng(0)))
    assert drawn.peak.max() <= 131_072
    assert 0.004 < drawn.rewrites.mean() < 0.012
    assert set(drawn.kinds) == {"tool", "user", "mixed"}
    by_kind = {name: np.median(drawn.gap_s[drawn.kind == i]) for i, name in enumerate(drawn.kinds)}
    assert by_kind["tool"] < 10 < 80 < by_kind["user"]
    assert drawn.gap_s.max() <= 3600


def test_tau_has_no_gaps() -> None:
    workload = load_scenario(["workload=tau_airline"]).workload
    drawn = Samples.of(workload.draw(np.random.default_rng(0)))
    assert set(drawn.gap_s) == {0.0}
    assert drawn.turns.size == 200
