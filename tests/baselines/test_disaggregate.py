"""Disaggregation of every turn, on observations and clusters made by hand."""

from __future__ import annotations

from hand_made import D, M, P, observed

from conserve_gym.baselines.disaggregate import Disaggregate
from conserve_gym.envs.configuration import load_scenario
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.workloads.conversation import Conversation, Turn
from conserve_gym.ledger import KvMoved, Prefilled


def test_takes_the_shortest_prefill_queue_and_the_least_loaded_decoder() -> None:
    seen = observed((P, P, D, D), free=[9, 9, 100, 300], prompt_in_flight=[500, 400, 0, 0])
    assert Disaggregate().decide(seen)[:2] == (1, 3)
    later = observed(
        (P, P, D, D), free=[9, 9, 300, 100], home=3, fields={"turn": 1}, holds=[0, 90, 0, 99]
    )
    assert Disaggregate().decide(later)[:2] == (0, 2)  # it knows of no conversation


def test_the_only_prefiller_colocates_what_it_decodes() -> None:
    assert Disaggregate().decide(observed((M, D), free=[9, 1]))[:2] == (0, 0)


def test_prompts_are_found_again_where_they_were_computed_and_answers_are_not() -> None:
    turns = (Turn(9600, 9600, 160, 0.0), Turn(9952, 192, 20, 1.0))
    policy = Disaggregate()
    cluster = Cluster(load_scenario().cluster, policy.deployment, [Conversation(0.0, turns)])
    while cluster.advance():
        cluster.place(policy.decide(cluster.observe()))
    computed = [e for e in cluster.ledger if isinstance(e, Prefilled)]
    assert [(e.turn, e.tokens, e.cached_tokens) for e in computed] == [
        (0, 9600, 0),
        (1, 9952, 9600),
    ]
    moved = [e for e in cluster.ledger if isinstance(e, KvMoved)]
    assert all(e.source == 0 for e in moved)  # nothing is pulled back
    assert [e.turn for e in moved] == [0, 1]
