"""The recorded prefiller run: whose times every arm replays."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from examples import cluster_of, engine
from hypothesis import given, settings
from hypothesis import strategies as st
from settings import tiny

from conserve_gym.agents.reproduction.cells import paper_scenario
from conserve_gym.agents.reproduction.recording import Draw, draw, prefills, with_joined_texts
from conserve_gym.agents.reproduction.spec import WorkloadSpec
from conserve_gym.envs.workloads.conversation import Turn
from conserve_gym.fleet import Role

SPEC = cluster_of(engine(Role.PREFILL), engine(Role.DECODE))


def of_prompts(*prompts: tuple[float, int]) -> Draw:
    """Return a draw of (start, tokens)."""
    starts = tuple(start for start, _ in prompts)
    turns = tuple((Turn(tokens, tokens, 1, 0.0),) for _, tokens in prompts)
    return Draw(tuple(range(len(prompts))), turns, starts, starts, 42)


@pytest.mark.parametrize(("called", "offered"), [(1.634, 2.0), (1.0, 1.0)])
def test_the_papers_own_arrivals(called: float, offered: float) -> None:
    drawn = draw(tiny(), called, 42, redraw=False)
    rng = random.Random(42)
    expected = [0.0]
    while len(expected) < 12:
        expected.append(expected[-1] + rng.expovariate(offered))
    assert list(drawn.offered_s) == expected
    assert drawn.numbers == tuple(range(12))
    assert drawn.starts_s[0] == 0.0


def test_another_seed_has_another_order_and_redrawn_other_arrivals() -> None:
    scenario = tiny()
    ours, other = (draw(scenario, 1.0, seed, redraw=True) for seed in (42, 7))
    assert (ours.drawn_by, other.drawn_by) == (42, 7)
    assert other.offered_s != ours.offered_s
    assert other.numbers != tuple(range(12))
    assert sorted(other.numbers) == list(range(12))
    workload = scenario.workload.draw(np.random.default_rng(7))
    assert other.turns == tuple(workload[number] for number in other.numbers)


def test_a_seed_that_does_not_redraw_keeps_the_artifacts_arrivals(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(
        "conv_id,turn,gap_s,input_tokens,new_tokens,output_tokens\n"
        + "".join(f"c{i},0,,{1000 + i},{1000 + i},5\n" for i in range(9))
    )
    scenario = paper_scenario(WorkloadSpec(trace, 9, 5))  # lengths are not drawn
    ours, other, third = (draw(scenario, 1.0, seed, redraw=False) for seed in (42, 3, 4))
    assert other.offered_s == ours.offered_s
    assert other.drawn_by == ours.drawn_by == 42
    assert len({ours.numbers, other.numbers, third.numbers}) == 3
    assert other.turns == tuple(ours.turns[number] for number in other.numbers)


@settings(max_examples=30)
@given(st.floats(0.1, 20.0), st.integers(0, 1000))
def test_starts_are_as_the_prefiller_allows(rate: float, seed: int) -> None:
    """Each prompt starts when it comes or, if that is later, when the one before is done."""
    drawn = draw(tiny(), rate, seed, redraw=True)
    assert list(drawn.offered_s) == sorted(drawn.offered_s)
    assert drawn.starts_s[0] == drawn.offered_s[0]
    # conf/arrivals/paper_saturation.yaml
    takes = [0.0616 + 14.92e-6 * n + 1.363e-9 * n * n for n in drawn.prompts]
    came = drawn.offered_s[1:]
    for (before, after), seconds, offered in zip(
        pairwise(drawn.starts_s), takes, came, strict=False
    ):
        assert after == pytest.approx(max(before + seconds, offered), rel=1e-12)


def test_prefills_by_hand() -> None:
    # 80 tokens: 2 + 8 + 3.2 ms. 150 tokens, in chunks of 100 and 50: 2 + 10 + 5 and
    # 2 + 5 + 6.25 ms. Moves: 4 ms, and 0.1 ms a token.
    found = prefills(SPEC, of_prompts((0.0, 80), (1.0, 150)))
    assert found.seconds == pytest.approx((0.0132 + 0.012, 0.03025 + 0.019))
    assert found.busy_s == pytest.approx(0.0132 + 0.03025)
    assert found.idle_w == 50.0
    # 100 W; 0.5 J a step for the weights; 4 mJ and 0.5 mJ a token computed; 1 uJ a token attended
    # to; and the second chunk reads 100 tokens of KV at 0.5 mJ.
    work = 3 * 0.5 + 230 * 4.5e-3 + (3200 + 5000 + 6250) * 1e-6 + 100 * 0.5e-3
    assert found.joules == pytest.approx(100.0 * found.busy_s + work)


def test_prefills_run_under_the_prefillers_cap() -> None:
    capped = cluster_of(engine(Role.PREFILL, cap_w=200.0), engine(Role.DECODE))
    drawn = of_prompts((0.0, 80))
    assert prefills(capped, drawn).seconds[0] > prefills(SPEC, drawn).seconds[0]


def test_joined_texts_by_hand() -> None:
    turns = (
        Turn(100, 100, 20, 0.0),
        Turn(130, 10, 30, 0.5),  # the prompt of 100 is cached; output and 10 new ones are not
        Turn(170, 45, 5, 0.0),  # asks for more than that already
        Turn(60, 50, 5, 0.0),  # rewritten
        Turn(95, 30, 9, 0.0),
    )
    expected = [100, 30, 45, 50, 35]
    assert [turn.new_tokens for turn in with_joined_texts(turns, 1)] == expected
    assert [turn.new_tokens for turn in with_joined_texts(turns, 2)] == [100, 10, *expected[2:]]


@given(
    st.lists(
        st.tuples(st.integers(1, 500), st.floats(0.0, 1.0), st.integers(1, 50)),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from((1, 2)),
)
def test_joined_texts_compute_no_less_than_before_and_no_more_than_the_prompt(
    drawn: list[tuple[int, float, int]], first: int
) -> None:
    turns = [Turn(n, max(1, int(share * n)), output, 0.0) for n, share, output in drawn]
    joined = with_joined_texts(turns, first)
    assert len(joined) == len(turns)
    assert list(joined[:first]) == turns[:first]
    for i, (before, after) in enumerate(zip(turns, joined, strict=True)):
        assert after._replace(new_tokens=before.new_tokens) == before
        assert before.new_tokens <= after.new_tokens <= after.input_tokens
        if i >= first:  # what the prompt before does not cover is computed
            covered = after.input_tokens - after.new_tokens
            assert covered <= turns[i - 1].input_tokens
