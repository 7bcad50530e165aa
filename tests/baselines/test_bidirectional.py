"""Bidirectional KV: what moves, and when."""

from __future__ import annotations

from turn_observations import D, P, toy_site, turn_at_door

from conserve_gym.baselines.registry import make_baseline
from conserve_gym.envs.configuration import load_scenario
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.profile import site
from conserve_gym.envs.workloads.conversation import Conversation, Turn
from conserve_gym.ledger import KvMoved, Prefilled
from conserve_gym.placement import Placement


def test_every_turn_goes_through_the_prefiller_which_pulls_its_history() -> None:
    turns = (Turn(9000, 9000, 20, 0.0), Turn(9031, 11, 20, 1.0))
    spec = load_scenario().cluster
    policy = make_baseline("bidirectional", site(spec))
    cluster = Cluster(spec, policy.deployment, [Conversation(0.0, turns)])
    while cluster.advance():
        cluster.place(policy.decide(cluster.observe()))
    moves = [(e.turn, e.source, e.target) for e in cluster.ledger if isinstance(e, KvMoved)]
    # The first move home is P to D; the prefiller still has the prompt and pulls the output.
    assert moves == [(0, 0, 1), (1, 1, 0), (1, 0, 1)]
    computed = [e.tokens - e.cached_tokens for e in cluster.ledger if isinstance(e, Prefilled)]
    assert computed[0] == 9000
    assert computed[1] < 11 + 16 + 1  # the new tokens, and what is left of a block


def test_below_a_threshold_turns_may_stay() -> None:
    policy = make_baseline("bidirectional", toy_site(P, D), {"tokens": 200})
    for new, prefill_at in ((199, 1), (200, 0)):
        seen = turn_at_door(P, D, prompt=5000, new=new, turn=1, home=1)
        assert policy.decide(seen) == Placement(prefill_at, 1)
    seen = turn_at_door(P, D, prompt=5000, new=0, turn=1, home=1)
    assert make_baseline("bidirectional", toy_site(P, D)).decide(seen) == Placement(0, 1)
