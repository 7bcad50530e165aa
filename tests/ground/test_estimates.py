"""Estimates of what placements cost."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_gym import estimates as estimates_module
from conserve_gym.actions import Actions, JointActions, TurnActions
from conserve_gym.costs import EngineCosts, MoveCosts
from conserve_gym.estimates import COLUMNS, LARGEST, READS, TABLE_COLUMNS, Estimates
from conserve_gym.fleet import Fleet, Role
from conserve_gym.observation import FIELDS, FIELDS_OF, Field, FloatArray, Observation, Scaler

COSTS = EngineCosts(1e-3, 0.0, 0.0, 0.01, 0.0, 0.0)  # 1 ms a prompt token, 10 ms a decode step
INDEX = {column.name: i for i, column in enumerate(COLUMNS)}
ENGINE = {field.name: i for i, field in enumerate(FIELDS_OF["engines"])}


def fleet(n: int, apart: tuple[bool, ...] = ()) -> Fleet:
    return Fleet(
        (Role.MIXED,) * n, (10_000,) * n, (COSTS,) * n, MoveCosts(0.5, 0.0), apart or (False,) * n
    )


def observed(
    of: Fleet,
    *,
    prompt: float = 1000.0,
    new: float = 1000.0,
    turn: int = 0,
    home: int = -1,
    **engines: float | list[float],
) -> Observation:
    n = len(of.roles)
    rows = np.zeros((n, len(FIELDS_OF["engines"])))
    for name, values in engines.items():
        rows[:, ENGINE[name]] = values
    door = {"prompt": prompt, "new": new, "turn": float(turn)}
    conversation = [door.get(field.name, 0.0) for field in FIELDS_OF["conversation"]]
    raw = np.concatenate([np.zeros(len(FIELDS_OF["cluster"])), conversation, rows.ravel()])
    everywhere = np.ones(n, dtype=np.bool_)
    return Observation(0.0, 0, turn, of, raw, np.full(n, 10_000.0), everywhere, home)


def estimate(observation: Observation, prefill_at: int, decode_at: int) -> dict[str, float]:
    estimates = Estimates(observation.fleet)
    ends = estimates.ends(np.array([prefill_at]), np.array([decode_at]), observation.home)
    row = estimates(observation, ends)
    return {
        column.name: float(value) * column.scale
        for column, value in zip(COLUMNS, row[0], strict=True)
    }


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: f"{field.group}.{field.name}")
def test_they_are_made_of_the_fields_that_they_read(field: Field) -> None:
    busy = {"pinned": 4.0, "decoding": 2.0, "kv_known": 0.9, "turns_in_flight": 5.0}
    of = replace(
        fleet(2), costs=(COSTS._replace(kv_token_s=1e-6),) * 2
    )  # pinned matters for KV read
    before = observed(of, new=600.0, prompt_in_flight=[900.0, 10.0], **busy)
    raw = before.raw.copy()
    (at,) = (i for i, name in enumerate(Scaler(2).names) if name == _name(field))
    raw[at] = 0.7 * raw[at] + 0.3
    tables = [
        JointActions(before.fleet, may_hold=True).table(replace(before, raw=each))
        for each in (before.raw, raw)
    ]
    assert np.array_equal(*tables) is not (f"{field.group}.{field.name}" in READS)


def _name(field: Field) -> str:
    """Return the name of a field, of the first engine where it is an engine's."""
    group = "engines[0]" if field.group == "engines" else field.group
    return f"{group}.{field.name}"


def test_time_to_the_first_token_is_queue_prompt_and_moves() -> None:
    of = fleet(2)
    idle = estimate(observed(of), 0, 0)
    assert idle["ttft"] == pytest.approx(math.log(1.0 + 0.01), abs=1e-5)
    behind = observed(of, prompt_in_flight=[2000.0, 0.0], turns_in_flight=[1.0, 0.0])
    assert estimate(behind, 0, 0)["ttft"] == pytest.approx(math.log(3.0 + 0.01), abs=1e-5)
    assert estimate(behind, 1, 1)["ttft"] == pytest.approx(idle["ttft"], abs=1e-5)
    moved = estimate(observed(of), 0, 1)
    assert moved["ttft"] == pytest.approx(math.log(1.5 + 0.01), abs=1e-5)
    assert moved["away"] == pytest.approx(1.0)
    assert moved["away_later"] == idle["away"] == 0.0


def test_an_engine_that_lacks_the_history_waits_for_it() -> None:
    later = observed(fleet(2), prompt=5000.0, new=1000.0, turn=3, home=0, holds=[4000.0, 0.0])
    home, other = estimate(later, 0, 0), estimate(later, 1, 1)
    assert home["ttft"] == pytest.approx(math.log(1.01), abs=1e-5)
    assert other["ttft"] == pytest.approx(math.log(1.51), abs=1e-5)
    assert (home["leaves_home"], other["leaves_home"]) == (0.0, 1.0)
    assert other["leaves_home_lacking"] == pytest.approx(math.log1p(5000.0), rel=1e-5)
    assert estimate(later, 1, 0)["away_later"] == 1.0


def test_a_prompt_stalls_those_that_decode_where_it_is_computed() -> None:
    busy = observed(fleet(2), decoding=[8.0, 0.0], turns_in_flight=[8.0, 0.0])
    assert estimate(busy, 0, 0)["stall"] == pytest.approx(math.log1p(80.0), rel=1e-5)
    assert estimate(busy, 1, 0)["stall"] == 0.0
    assert estimate(busy, 0, 0)["turns"] == pytest.approx(math.log1p(8.0), rel=1e-5)


def test_memory_after_the_placement() -> None:
    full = observed(fleet(2), kv_known=[0.85, 0.2])
    assert estimate(full, 0, 0)["kv"] == pytest.approx(0.95)
    assert estimate(full, 0, 0)["kv_full"] == pytest.approx(0.15, abs=1e-6)
    assert estimate(full, 0, 1)["kv_full"] == 0.0


def test_engines_set_apart_count_unless_all_are() -> None:
    apart = observed(fleet(2, (True, False)))
    assert estimate(apart, 0, 1)["apart_prefill"] == estimate(apart, 0, 0)["apart_decode"] == 1.0
    assert estimate(apart, 0, 0)["apart_prefill"] == estimate(apart, 1, 1)["apart_decode"] == 0.0
    every = observed(fleet(2, (True, True)))
    assert estimate(every, 0, 1)["apart_prefill"] == 0.0


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    n = draw(st.integers(1, 6))
    highs = [field.high for field in FIELDS_OF["engines"]]
    rows = {
        field.name: [draw(st.floats(0.0, high)) for _ in range(n)]
        for field, high in zip(FIELDS_OF["engines"], highs, strict=True)
    }
    prompt = draw(st.floats(1.0, 262_144.0))
    new = draw(st.floats(1.0, prompt))
    home = draw(st.integers(-1, n - 1))
    return observed(fleet(n), prompt=prompt, new=new, turn=home + 1, home=home, **rows)


@given(observations())
def test_estimates_are_finite_within_bounds_and_follow_their_engines(seen: Observation) -> None:
    n = len(seen.fleet.roles)
    actions = JointActions(seen.fleet)
    table = actions.table(seen)
    assert table.shape == (n * n, TABLE_COLUMNS)
    assert table.dtype == np.float32
    assert np.isfinite(table).all()
    assert (np.abs(table[:, 3:]) <= LARGEST).all()
    # Engines in the opposite order give the same rows, in another order.
    rows: FloatArray = seen.raw.copy()
    engines = rows[-n * len(FIELDS_OF["engines"]) :].reshape(n, -1)
    engines[:] = engines[::-1].copy()
    home = n - 1 - seen.home if seen.home >= 0 else -1
    turned = Observation(
        seen.time, 0, seen.turn, seen.fleet, rows, seen.free_kv_tokens, seen.open_to, home
    )
    others = actions.table(turned)
    where = {(int(p), int(d)): i for i, (p, d) in enumerate(others[:, :2])}
    for row in table:
        other = others[where[n - 1 - int(row[0]), n - 1 - int(row[1])]]
        np.testing.assert_allclose(other[3:], row[3:], rtol=1e-4, atol=1e-4)


@given(observations(), st.booleans())
def test_weighted_sums_are_those_of_the_table(seen: Observation, may_hold: bool) -> None:
    weights = np.random.default_rng(0).normal(size=len(COLUMNS)).astype(np.float32)
    kinds: list[Actions] = [JointActions(seen.fleet, may_hold=may_hold)]
    if seen.fleet.can_disaggregate:
        kinds.append(TurnActions(seen.fleet))
    for actions in kinds:
        expected = actions.table(seen)[:, 3:] @ weights
        np.testing.assert_allclose(actions.weighted(seen, weights), expected, atol=1e-3)


def test_kv_once_placed_is_what_is_held_and_what_is_lacking() -> None:
    of = fleet(2)
    seen = observed(of, new=200.0, turn=1, home=0, kv_known=[0.5, 0.5], holds=[800.0, 0.0])
    assert estimate(seen, 0, 0)["kv"] == pytest.approx(0.5 + 200.0 / 10_000, abs=1e-5)
    assert estimate(seen, 1, 1)["kv"] == pytest.approx(0.5 + 1000.0 / 10_000, abs=1e-5)


@given(observations())
def test_few_engines_are_computed_as_many_are(seen: Observation) -> None:
    few = JointActions(seen.fleet, may_hold=True).table(seen)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimates_module, "FEW", 0)
        many = JointActions(seen.fleet, may_hold=True).table(seen)
    np.testing.assert_allclose(few, many, rtol=1e-5, atol=1e-5)
