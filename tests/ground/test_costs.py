"""Costs that are fitted to profiles."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_gym.costs import EngineCosts, fitted
from conserve_gym.envs.configuration import load_scenario
from conserve_gym.envs.serving.profile import site


class LinearProfile:
    """Step times that are exactly of the form that is fitted."""

    token_budget = 8192

    def __init__(self, costs: EngineCosts) -> None:
        self._costs = costs

    def step_s(
        self, prompt_tokens: int, context_tokens: int, sequences: int = 0, kv_tokens: int = 0
    ) -> float:
        if prompt_tokens:
            return self._costs.prefill_s(prompt_tokens, context_tokens)
        return self._costs.decode_step_s(sequences, kv_tokens)

    def prefill_s(self, new_tokens: int, context_tokens: int) -> float:
        return self._costs.prefill_s(new_tokens, context_tokens)


@given(
    st.floats(1e-6, 1e-3),
    st.floats(1e-11, 1e-8),
    st.floats(1e-3, 0.1),
    st.floats(1e-6, 1e-3),
    st.floats(1e-8, 1e-6),
)
def test_costs_of_the_fitted_form_are_found_again(
    token: float, attention: float, step: float, sequence: float, kv_token: float
) -> None:
    costs = EngineCosts(token, attention, token, step, sequence, kv_token)
    found = fitted(LinearProfile(costs))
    assert found.least_s == LinearProfile(costs).step_s(1, 0)
    assert tuple(found._replace(least_s=token)) == pytest.approx(tuple(costs), rel=1e-4)


@pytest.mark.parametrize("cluster", ["a40_1p3d", "h100_prefill_a100_decode"])
def test_costs_stand_for_the_calibrated_laws(cluster: str) -> None:
    for profile in site(load_scenario([f"cluster={cluster}"]).cluster).engines:
        costs = fitted(profile)
        assert min(costs) >= 0.0
        for new, context in ((2048, 0), (16_384, 0), (16_384, 65_536)):
            estimate = costs.prefill_s(new, context)
            assert estimate == pytest.approx(profile.prefill_s(new, context), rel=0.2)
        for turns, held in ((8, 100_000), (32, 300_000)):
            estimate = costs.decode_step_s(turns, held)
            assert estimate == pytest.approx(profile.step_s(0, 0, turns, held), rel=0.2)
