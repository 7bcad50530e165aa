"""The load switch on observations made by hand."""

import pytest
from hand_made import M, observed

from conserve_gym.baselines.load_switch import LoadSwitch
from conserve_gym.observation import Observation


def switch(prefillers: tuple[int, ...] = (0,), **changes: object) -> LoadSwitch:
    values = {"measure": "kv", "arrivals": 0.34, "kv": 0.5, "hysteresis": 0.0, **changes}
    return LoadSwitch(prefillers, **values)  # type: ignore[arg-type]


def arriving(rate: float) -> Observation:
    return observed((M,) * 4, free=[900, 500, 800, 700], fields={"arrivals_recent": rate})


def holding(tokens: float) -> Observation:
    """Four engines of 1,000 tokens: the first holds none, the second a little more than others."""
    others = tokens / 3
    return observed((M,) * 4, free=[1000, 1000 - others - 1, 1000 - others, 1001 - others])


@pytest.mark.parametrize(
    ("per_engine", "placement"),
    [
        (0.0, (0, 0)),  # colocated with most free KV, the prefill engine as good as any
        (0.339, (0, 0)),
        (0.341, (0, 2)),  # the prefill engine only prefills
        (5.0, (0, 2)),
    ],
)
def test_the_paper_s_crossover_of_arrivals(per_engine: float, placement: tuple[int, int]) -> None:
    policy = switch(measure="arrivals")
    assert policy.decide(arriving(4 * per_engine))[:2] == placement


@pytest.mark.parametrize(("tokens", "placement"), [(1990, (0, 0)), (2010, (0, 3))])
def test_half_of_all_kv(tokens: float, placement: tuple[int, int]) -> None:
    assert switch().decide(holding(tokens))[:2] == placement


def test_hysteresis_holds_on_to_disaggregation() -> None:
    policy = switch(measure="arrivals", hysteresis=0.25)
    chosen = [policy.decide(arriving(4 * rate)) for rate in (0.3, 0.35, 0.3, 0.26, 0.25, 0.3)]
    assert [placement.disaggregates for placement in chosen] == [
        False,
        True,
        True,
        True,
        False,
        False,
    ]
    policy.decide(arriving(9.0))
    policy.reset(0)
    assert not policy.decide(arriving(4 * 0.3)).disaggregates


def test_prompts_go_to_the_prefill_engine_that_waits_least() -> None:
    policy = switch((0, 1), kv=0.0)
    seen = observed((M,) * 4, free=[900, 900, 300, 500], prompt_in_flight=[500, 400, 0, 0])
    assert policy.decide(seen)[:2] == (1, 3)


def test_a_prefill_engine_decodes_where_the_others_are_full() -> None:
    policy = switch(kv=0.0)
    seen = observed((M,) * 3, free=[500, 10, 20], closed=(1, 2))
    assert policy.decide(seen)[:2] == (0, 0)
    assert switch((0, 1), kv=0.0).decide(seen)[:2] == (1, 0)


def test_without_engines_apart_each_prefills_for_the_others() -> None:
    policy = switch((0, 1, 2), kv=0.0)
    seen = observed((M,) * 3, free=[500, 900, 100], prompt_in_flight=[50, 0, 60])
    assert policy.decide(seen)[:2] == (0, 1)


def test_where_nobody_prefills_for_another_it_colocates() -> None:
    assert switch((), kv=0.0).decide(observed((M, M), free=[1, 9]))[:2] == (1, 1)
