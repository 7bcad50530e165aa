"""Fleets, and the placements that their roles allow."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from conserve_gym.actions import actions_of
from conserve_gym.costs import UNKNOWN, EngineCosts, MoveCosts
from conserve_gym.fleet import Fleet, Role
from conserve_gym.placement import Placement, as_table, candidates

P, D, M = Role.PREFILL, Role.DECODE, Role.MIXED


def fleet(*roles: Role) -> Fleet:
    return Fleet(roles, (1000,) * len(roles))


def test_roles() -> None:
    assert [role.decodes for role in (P, D, M)] == [False, True, True]
    assert [role.prefills_for_others for role in (P, D, M)] == [True, False, True]


def test_who_decodes_and_who_prefills_for_whom() -> None:
    mixed = fleet(P, D, M)
    assert mixed.decoders == (1, 2)
    assert mixed.prefillers_for(1) == (0, 2)
    assert mixed.prefillers_for(2) == (0,)


@pytest.mark.parametrize(
    ("roles", "can"),
    [((P, D), True), ((M, M), True), ((M, D), False), ((M,), False), ((D, D), False)],
)
def test_disaggregation_needs_another_engine_for_every_decoder(
    roles: tuple[Role, ...], can: bool
) -> None:
    assert fleet(*roles).can_disaggregate is can


def test_a_fleet_without_decoders_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no engine decodes: roles are \['prefill', 'prefill'\]"):
        fleet(P, P)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="2 roles for 1 KV capacities"):
        Fleet((P, D), (1000,))


def test_a_fleet_reads_back_from_json() -> None:
    costs = tuple(EngineCosts(*(i + 0.1 * j for j in range(6))) for i in range(1, 4))
    original = Fleet((P, D, M), (1, 2, 3), costs, MoveCosts(0.1, 0.2), (True, False, True))
    back = Fleet.from_json(**json.loads(json.dumps(original.to_json())))
    assert back == original
    assert back.to_json() == original.to_json()


def test_speeds_are_shares_of_the_fastest_and_equal_if_costs_are_not_given() -> None:
    assert fleet(P, D).prefill_speeds == fleet(P, D).decode_speeds == (1.0, 1.0)
    slow = EngineCosts(*(2 * cost for cost in UNKNOWN))
    unlike = Fleet((P, D), (1, 2), (slow, UNKNOWN))
    assert unlike.prefill_speeds == unlike.decode_speeds == (0.5, 1.0)


def test_costs_and_who_is_apart_must_be_given_for_every_engine() -> None:
    with pytest.raises(ValueError, match="2 roles for 1 costs"):
        Fleet((P, D), (1, 2), costs=(UNKNOWN,))
    with pytest.raises(ValueError, match="2 roles for 1 apart"):
        Fleet((P, D), (1, 2), apart=(True,))
    assert fleet(P, D).apart == (True, False)


def test_candidates_are_colocation_then_every_prefiller_of_each_decoder() -> None:
    assert candidates(fleet(P, D, M)) == (
        Placement(1, 1),
        Placement(0, 1),
        Placement(2, 1),
        Placement(2, 2),
        Placement(0, 2),
    )
    assert candidates(fleet(D)) == (Placement(0, 0),)


def test_candidates_offload_later_turns_only_where_the_first_is_prefilled_away() -> None:
    assert candidates(fleet(P, D), (math.inf, 512.0)) == (
        Placement(1, 1),
        Placement(0, 1),
        Placement(0, 1, 512.0),
    )


def test_placements_as_networks_see_them() -> None:
    table = as_table(candidates(fleet(P, D), (math.inf, 511.0, 0.0)))
    expected = [[1, 1, 1], [0, 1, 1], [0, 1, 0.5], [0, 1, 0]]
    np.testing.assert_allclose(table, expected, atol=1e-6)


def test_actions_of_each_kind() -> None:
    joint = actions_of("joint", fleet(P, D, D), (math.inf, 512.0))
    assert joint.meanings[:3] == (
        "colocate at 1",
        "prefill at 0, decode at 1",
        "prefill at 0, decode at 1; later turns with 512 new tokens or more as well",
    )
    assert len(joint.meanings) == 6
    for kind in ("conversation", "turn"):
        assert len(actions_of(kind, fleet(P, D, D), (math.inf, 512.0)).meanings) == 2
        with pytest.raises(ValueError, match="cannot disaggregate"):
            actions_of(kind, fleet(D, D))
    with pytest.raises(ValueError, match="kind='telepathy'"):
        actions_of("telepathy", fleet(P, D))


@pytest.mark.parametrize(
    ("placement", "offloaded"),
    [
        (Placement(1, 1), [False, False, False]),
        (Placement(1, 1, 0.0), [False, False, False]),
        (Placement(0, 1), [True, False, False]),
        (Placement(0, 1, 512.0), [True, False, True]),
        (Placement(0, 1, 0.0), [True, True, True]),
    ],
)
def test_offloaded_turns(placement: Placement, offloaded: list[bool]) -> None:
    turns = ((True, 5), (False, 511), (False, 512))
    assert [placement.offloads(placed, new_tokens) for placed, new_tokens in turns] == offloaded
    assert placement.disaggregates is (placement.prefill_at != placement.decode_at)


def test_placements_pin_by_default() -> None:
    assert Placement(0, 1).offload_above == math.inf
