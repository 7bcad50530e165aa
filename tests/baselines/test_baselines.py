"""What each heuristic decides on observations whose right answer is known."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from conserve_gym.baselines.colocate import Colocate
from conserve_gym.baselines.conserve import ConServe
from conserve_gym.baselines.full_disagg import FullDisagg
from conserve_gym.baselines.random_choice import RandomChoice
from conserve_gym.baselines.registry import BASELINES, make_baseline
from conserve_gym.deployment import Deployment, Reservation
from conserve_gym.envs.configuration import load_scenario
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.profile import site
from conserve_gym.envs.workloads.conversation import Conversation, Turn
from conserve_gym.errors import ConServeGymError
from conserve_gym.fleet import Fleet, Role
from conserve_gym.ledger import KvMoved
from conserve_gym.observation import Observation, Scaler
from conserve_gym.placement import Placement
from conserve_gym.policy import Policy

SITE = site(load_scenario().cluster)
# Every turn to an engine at once, where its KV may be or not.
PLAIN_ROUTER = Deployment(
    all_mixed=True, reservation=Reservation.NONE, decides_every_turn=True, pulls_history=False
)

P, D, M = Role.PREFILL, Role.DECODE, Role.MIXED


def observation(
    roles: tuple[Role, ...],
    *,
    free: list[float],
    waiting: list[float] | None = None,
    closed: tuple[int, ...] = (),
) -> Observation:
    """An observation with free KV and prompt tokens in flight for each engine."""
    fleet = Fleet(roles, (1000,) * len(roles))
    open_to = np.array([role.decodes and i not in closed for i, role in enumerate(roles)])
    seen = Observation(1.0, 0, 0, fleet, np.zeros(Scaler(len(roles)).size), np.array(free), open_to)
    seen.engine_field("prompt_in_flight")[:] = waiting or [0.0] * len(roles)
    return seen


@pytest.mark.parametrize(
    ("seen", "engine"),
    [
        (observation((P, D, D, D), free=[900, 100, 300, 200]), 2),  # a prefill engine is none
        (observation((P, D, D, D), free=[900, 300, 100, 300]), 1),  # of equals the first
        (observation((P, D, D, D), free=[0, 900, 300, 200], closed=(1,)), 2),
        (observation((M, M), free=[10, 20]), 1),
        (observation((M,), free=[10]), 0),
        (observation((D, D), free=[-50, -20]), 1),  # more is known to be held than there is
    ],
)
def test_colocate_takes_the_open_engine_with_most_free_kv(seen: Observation, engine: int) -> None:
    assert Colocate().decide(seen) == Placement(engine, engine, math.inf)


@pytest.mark.parametrize(
    ("seen", "placement"),
    [
        (observation((P, D, D), free=[900, 100, 300]), (0, 2)),
        (observation((P, P, D), free=[0, 0, 9], waiting=[500, 400, 0]), (1, 2)),
        (observation((P, P, D), free=[0, 0, 9], waiting=[400, 400, 0]), (0, 2)),
        # A mixed engine prefills for others, but not for itself.
        (observation((M, M, M), free=[1, 9, 5], waiting=[50, 0, 60]), (0, 1)),
        (observation((M, D), free=[1, 9], waiting=[99, 0]), (0, 1)),
        (observation((P, D, D), free=[0, 9, 5], closed=(1,)), (0, 2)),
    ],
)
def test_conserve_takes_that_decoder_and_the_least_loaded_prefiller(
    seen: Observation, placement: tuple[int, int]
) -> None:
    assert ConServe().decide(seen) == Placement(*placement, math.inf)


@pytest.mark.parametrize("name", ["conserve", "conserve_offload", "full_disagg"])
def test_the_only_prefiller_colocates_what_it_decodes(name: str) -> None:
    policy = make_baseline(name, SITE)
    own = policy.decide(observation((M, D, D), free=[9, 1, 5]))
    assert (own.prefill_at, own.decode_at) == (0, 0)
    assert not own.offloads(False, 10**6)
    other = policy.decide(observation((M, D, D), free=[1, 9, 5]))
    assert (other.prefill_at, other.decode_at) == (0, 1)


@pytest.mark.parametrize("roles", [(D, D), (D,), (M,)])
def test_where_nobody_prefills_for_another_disaggregating_is_an_error(
    roles: tuple[Role, ...],
) -> None:
    names = re.escape(str([str(role) for role in roles]))
    with pytest.raises(ConServeGymError, match=f"cannot disaggregate: .*{names} none prefills"):
        ConServe().decide(observation(roles, free=[1] * len(roles)))


def test_full_disagg_sends_every_turn_through_the_prefiller() -> None:
    seen = observation((P, D, D), free=[900, 100, 300])
    policy = FullDisagg()
    assert policy.decide(seen) == Placement(0, 2, 0.0)
    assert policy.deployment.decides_every_turn


def test_conserve_offload_sends_long_appends_through_the_prefiller() -> None:
    placement = make_baseline("conserve_offload", SITE).decide(
        observation((P, P, D, D), free=[9, 9, 100, 300], waiting=[5, 4, 0, 0])
    )
    assert placement == Placement(1, 3, 512)
    assert placement.offloads(True, 1)
    assert [placement.offloads(False, new_tokens) for new_tokens in (511, 512)] == [False, True]


def test_conserve_offload_pulls_history_to_the_prefiller_and_conserve_does_not() -> None:
    turns = (Turn(9000, 9000, 20, 0.0), Turn(9531, 511, 20, 1.0), Turn(10_063, 512, 20, 1.0))
    moves = {}
    for name in ("conserve", "conserve_offload"):
        policy = make_baseline(name, SITE)
        spec = load_scenario().cluster
        cluster = Cluster(spec, policy.deployment, [Conversation(0.0, turns)])
        while cluster.advance():
            cluster.place(policy.decide(cluster.observe()))
        moves[name] = [
            (event.turn, event.source, event.target)
            for event in cluster.ledger
            if isinstance(event, KvMoved)
        ]
    assert moves == {
        "conserve": [(0, 0, 1)],
        "conserve_offload": [(0, 0, 1), (2, 1, 0), (2, 0, 1)],
    }


def choices(policy: Policy, seed: int, count: int) -> list[Placement]:
    seen = observation((P, D, D), free=[900, 100, 300])
    policy.reset(seed)
    return [policy.decide(seen) for _ in range(count)]


def test_random_tosses_a_fair_coin() -> None:
    placements = choices(RandomChoice(), 0, 4000)
    assert set(placements) == {Placement(2, 2), Placement(0, 2)}
    heads = sum(placement.disaggregates for placement in placements)
    assert abs(heads - 2000) < 4.0 * math.sqrt(4000) / 2.0


def test_random_is_reproducible_and_touches_no_other_stream() -> None:
    policy = RandomChoice()
    first = choices(policy, 3, 50)
    np.random.seed(1)
    before = np.random.get_state()[1]
    assert choices(policy, 3, 50) == first == choices(RandomChoice(), 3, 50)
    assert choices(policy, 4, 50) != first
    assert (np.random.get_state()[1] == before).all()


@pytest.mark.parametrize(
    ("name", "deployment"),
    [
        ("cache_aware", PLAIN_ROUTER),
        ("colocate", Deployment(all_mixed=True)),
        ("colocate_oracle", Deployment(all_mixed=True, reservation=Reservation.ORACLE_PEAK)),
        ("conserve", Deployment()),
        ("conserve_offload", Deployment()),
        ("conserve_oracle", Deployment(reservation=Reservation.ORACLE_PEAK)),
        ("decoding_prefiller", Deployment(all_mixed=True)),
        ("disaggregate", Deployment(decides_every_turn=True, pulls_history=False)),
        ("freeness", Deployment(all_mixed=True)),
        ("full_disagg", Deployment(decides_every_turn=True, prefix_caching=False)),
        ("least_outstanding", Deployment(all_mixed=True)),
        ("lmetric", PLAIN_ROUTER),
        ("load_switch", Deployment(all_mixed=True)),
        ("random", Deployment()),
        ("round_robin", Deployment(all_mixed=True, reservation=Reservation.NONE)),
        ("smetric", PLAIN_ROUTER),
        ("splitwise", PLAIN_ROUTER),
    ],
)
def test_the_registry(name: str, deployment: Deployment) -> None:
    policy = make_baseline(name, SITE)
    assert policy.name == name
    assert policy.deployment == deployment
    assert policy.deployment.sees_future == name.endswith("_oracle")
    policy.reset(0)
    assert policy is not make_baseline(name, SITE)


def test_every_baseline_is_named_here() -> None:
    assert set(BASELINES) == {
        "ampd_cost",
        "ampd_emulation",
        "bidirectional",
        "cache_aware",
        "colocate",
        "colocate_oracle",
        "conserve",
        "conserve_hold",
        "conserve_offload",
        "conserve_oracle",
        "decoding_prefiller",
        "disaggregate",
        "dynamo_classic",
        "dynamo_isl",
        "dynamo_isl_or_load",
        "dynamo_load",
        "freeness",
        "full_disagg",
        "kairos",
        "kairos_exports",
        "least_outstanding",
        "llm_d",
        "lmetric",
        "load_switch",
        "ppd",
        "predicted_output",
        "random",
        "round_robin",
        "smetric",
        "splitwise",
    }


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(KeyError, match="fifo"):
        make_baseline("fifo", SITE)
