"""SMetric on observations made by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hand_made import M, observed

from conserve_gym.baselines.smetric import Backlog, PrefillCost, SMetric
from conserve_gym.envs.configuration import load_scenario
from conserve_gym.envs.serving.profile import site
from conserve_gym.observation import Observation

SITE = site(load_scenario().cluster)
CAPACITY = 100_000


class Profile:
    """0.1 ms a token and 1 ns an attended one: 16,000 tokens take 1.728 s."""

    def prefill_s(self, new_tokens: int, context_tokens: int) -> float:
        return new_tokens * (1e-4 + 1e-9 * (context_tokens + new_tokens / 2))

    def step_s(self, *_: int) -> float:
        raise NotImplementedError


def policy(n_engines: int = 4, **changes: float) -> SMetric:
    return SMetric(
        [Profile()] * n_engines, **{"overload": 2.0, "hit_ratio": 0.5, "slack": 1.0, **changes}
    )


def seen(
    *,
    prompt: float = 16_000,
    turn: int = 1,
    holds: Sequence[float] = (0, 0, 0, 0),
    held: Sequence[float] = (0, 0, 0, 0),
    queued: Sequence[float] = (0, 0, 0, 0),
) -> Observation:
    return observed(
        (M,) * 4,
        capacity=CAPACITY,
        free=[CAPACITY - tokens for tokens in held],
        fields={"prompt": prompt, "turn": turn},
        holds=holds,
        prompt_in_flight=queued,
    )


def test_the_cost_has_the_profile_s_coefficients() -> None:
    cost = PrefillCost(Profile())
    assert cost(16_000, 0) == pytest.approx(1.6 + 0.128)
    assert cost(16_000, 15_000) == pytest.approx(0.1 + 1e-6 * 15_500)
    assert cost(16_000, 16_000) == 0.0


@pytest.mark.parametrize(("prompt", "cached"), [(8000, 0), (16_000, 0), (40_000, 32_000)])
def test_the_cost_is_near_real_engines_profiles(prompt: int, cached: int) -> None:
    for profile in SITE.engines:
        measured = profile.prefill_s(prompt - cached, cached)
        assert PrefillCost(profile)(prompt, cached) == pytest.approx(measured, rel=0.15)


def test_the_backlog_is_of_the_youngest_prompts() -> None:
    backlog = Backlog()
    for tokens, seconds in ((100, 1.0), (50, 2.0), (30, 4.0)):
        backlog.add(tokens, seconds)
    assert backlog.seconds(180) == 7.0
    assert backlog.seconds(80) == 6.0
    assert backlog.seconds(79) == 6.0  # of that prompt a part is left, or it was counted otherwise
    assert backlog.seconds(30) == 4.0
    assert backlog.seconds(0) == 0.0


@pytest.mark.parametrize(
    ("observation", "engine"),
    [
        (seen(turn=0, held=[9, 5, 7, 8]), 1),  # a new session: the least loaded
        (seen(turn=0, held=[9, 5, 7, 8], queued=[0, 5, 0, 0]), 2),  # prompts that wait count twice
        (seen(holds=[0, 0, 15_000, 0], held=[0, 9, 20, 11]), 2),  # load 20 is twice the mean
        (seen(holds=[0, 0, 15_000, 0], held=[0, 9, 20, 10]), 0),  # and here it is more
        (seen(holds=[0, 0, 8001, 0], held=[5, 5, 6, 4]), 2),
        (seen(holds=[0, 0, 8000, 0], held=[5, 5, 6, 4]), 3),  # half of it is gone
        (seen(holds=[0, 0, 15_000, 0]), 2),  # all idle
    ],
)
def test_a_session_stays_while_its_engine_holds_it_and_is_not_overloaded(
    observation: Observation, engine: int
) -> None:
    assert policy().decide(observation)[:2] == (engine, engine)


def test_a_session_leaves_an_engine_that_would_answer_too_late() -> None:
    """The SLO of 16,000 tokens is 2 s; of the turn's own, 1,000 tokens take 0.116 s."""
    follow_up = dict(holds=[0, 0, 15_000, 0], held=[5, 5, 6, 4])
    for waiting, engine in ((16_000, 2), (17_600, 3)):  # 1.728 and 1.915 s
        router = policy(overload=9.0)
        first = seen(prompt=waiting, turn=0, held=[9, 9, 0, 9])
        assert router.decide(first).decode_at == 2
        turn = seen(**follow_up, queued=[0, 0, waiting, 0])
        assert router.decide(turn).decode_at == engine
        assert policy(overload=9.0, slack=2.0).decide(turn).decode_at == 2


def test_where_all_would_answer_too_late_it_stays() -> None:
    router = policy(overload=9.0, slack=0.01)
    assert router.decide(seen(holds=[0, 0, 14_000, 0], held=[5, 5, 6, 4])).decode_at == 2


def test_of_equally_loaded_engines_each_is_taken_in_turn() -> None:
    router = policy()
    assert [router.decide(seen(turn=0)).decode_at for _ in range(5)] == [0, 1, 2, 3, 0]
    router.reset(0)
    assert router.decide(seen(turn=0)).decode_at == 0
