"""Conversations that the policy holds at the door."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conserve_gym import rules
from conserve_gym.actions import actions_of
from conserve_gym.deployment import Deployment, Reservation
from conserve_gym.envs.configuration import load_scenario
from conserve_gym.envs.placement_env import JointPlacementEnv
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.workloads.workload import draw_episode
from conserve_gym.ledger import ConversationEnded, Placed
from conserve_gym.placement import HOLD

HOLDING = Deployment(may_hold=True)
BUSY = ["arrivals.rate=3", "workload.conversations=24", "workload.max_turns=2"]


def cluster(deployment: Deployment, seed: int = 0) -> Cluster:
    scenario = load_scenario(BUSY)
    drawn = draw_episode(scenario.workload, scenario.arrivals, np.random.default_rng(seed))
    return Cluster(scenario.cluster, deployment, drawn)


def test_a_held_conversation_is_asked_about_again_when_something_has_happened() -> None:
    one = cluster(HOLDING)
    assert one.advance()
    first = one.observe().conversation
    one.place(rules.place(one.observe(), disaggregate=False))
    assert one.advance()
    held, since, events = one.observe().conversation, one.now, len(one.ledger)
    assert held != first
    one.place(HOLD)
    assert one.advance()
    assert one.now > since
    assert len(one.ledger) > events
    assert one.observe().conversation > held  # the next arrival comes before it


def test_holding_needs_leave_and_something_under_way() -> None:
    for deployment, why in ((Deployment(), "may_hold is false"), (HOLDING, "nothing is under way")):
        one = cluster(deployment)
        one.advance()
        with pytest.raises(ValueError, match=why):
            one.place(HOLD)
        one.place(rules.place(one.observe(), disaggregate=False))  # it is still at the door


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 5),
    st.integers(0, 2**32 - 1),
    st.sampled_from([Reservation.NONE, Reservation.PER_TURN]),
    st.booleans(),
)
def test_whoever_is_held_however_often_all_are_served(
    seed: int, choices: int, reservation: Reservation, every_turn: bool
) -> None:
    deployment = Deployment(
        all_mixed=True, reservation=reservation, decides_every_turn=every_turn, may_hold=True
    )
    one = cluster(deployment, seed)
    actions = actions_of("joint", one.fleet, may_hold=True)
    rng = np.random.default_rng(choices)
    while one.advance():
        observation = one.observe()
        mask = actions.mask(observation)
        assert mask[-1] == (observation.engine_field("turns_in_flight").sum() > 0)
        hold = mask[-1] and rng.random() < 0.7
        action = len(mask) - 1 if hold else rng.choice(np.flatnonzero(mask[:-1]))
        one.place(actions.placement(observation, int(action)))
    ended = [event for event in one.ledger if isinstance(event, ConversationEnded)]
    placed = [event for event in one.ledger if isinstance(event, Placed)]
    assert len(ended) == len(one.conversations)
    turns = sum(len(conversation.turns) for conversation in one.conversations)
    assert len(placed) == (turns if every_turn else len(ended))


def test_the_last_joint_action_holds() -> None:
    env = JointPlacementEnv([*BUSY, "deployment.may_hold=true"])
    env.reset(seed=0)
    assert env.actions.meanings[-1] == "hold at the door"
    hold = np.int64(len(env.actions.meanings) - 1)
    assert not env.action_masks()[hold]  # nothing is under way
    env.step(np.int64(0))
    assert env.action_masks()[hold]
    assert env.placements()[hold, :2].tolist() == [-1, -1]
    before = env.cluster.now
    _, _, terminated, _, info = env.step(hold)
    assert not terminated
    assert info["dt"] == env.cluster.now - before > 0.0
