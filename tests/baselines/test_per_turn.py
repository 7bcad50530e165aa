"""What holds for every rule that decides each turn."""

from __future__ import annotations

import copy

import pytest
from turn_observations import D, M, P, toy_site, turn_at_door

from conserve_gym.baselines.registry import BASELINES, make_baseline
from conserve_gym.observation import EngineExport, Observation
from conserve_gym.placement import Placement
from conserve_gym.policy import Reads

RULES = (
    "ampd_cost",
    "ampd_emulation",
    "bidirectional",
    "dynamo_classic",
    "dynamo_isl",
    "dynamo_isl_or_load",
    "dynamo_load",
    "kairos",
    "kairos_exports",
    "llm_d",
    "ppd",
    "predicted_output",
)
IDLE = (EngineExport(0, 1_000_000, 0, 0),) * 3


@pytest.mark.parametrize("name", RULES)
def test_where_nobody_prefills_for_others_it_colocates(name: str) -> None:
    seen = turn_at_door(D, D, D, prompt=9000, free=[1.0, 3.0, 2.0], exports=IDLE)
    assert make_baseline(name, toy_site(D, D, D)).decide(seen) == Placement(1, 1)


@pytest.mark.parametrize("name", RULES)
def test_the_only_prefiller_colocates_what_it_decodes(name: str) -> None:
    seen = turn_at_door(M, D, D, prompt=9000, new=9, turn=1, home=0, exports=IDLE)
    assert make_baseline(name, toy_site(M, D, D)).decide(seen) == Placement(0, 0)


@pytest.mark.parametrize("name", RULES)
def test_a_later_turn_is_decoded_where_its_kv_is_while_there_is_room(name: str) -> None:
    def seen(closed: tuple[int, ...]) -> Observation:
        return turn_at_door(
            P, D, D, prompt=9000, new=9, turn=1, home=2, closed=closed, exports=IDLE
        )

    policy = make_baseline(name, toy_site(P, D, D))
    assert policy.decide(seen(())).decode_at == 2
    assert policy.decide(seen((2,))).decode_at == 1


@pytest.mark.parametrize("name", RULES)
def test_it_says_what_it_reads_and_can_be_copied(name: str) -> None:
    policy = make_baseline(name, toy_site(P, D, D))
    deployment = policy.deployment
    assert deployment.decides_every_turn
    assert deployment.prefix_caching
    assert not deployment.sees_future
    reads = Reads.EXPORTS if deployment.engine_exports else Reads.BOOKKEEPING
    assert BASELINES[name].reads is reads
    seen = turn_at_door(P, D, D, prompt=9000, exports=IDLE)
    policy.reset(0)
    policy.decide(seen)
    later = turn_at_door(P, D, D, prompt=9050, new=20, turn=1, home=1, exports=IDLE)
    assert copy.deepcopy(policy).decide(later) == policy.decide(later)
