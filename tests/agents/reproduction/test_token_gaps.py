"""Gaps between tokens of last turns against a batch worked out by hand, and what must add up."""

from __future__ import annotations

import numpy as np
import pytest
from examples import NO_RESERVATION, cluster_of, conversation, engine, play
from hypothesis import assume, given
from random_episodes import EXAMPLES, Episode, episodes

from conserve_gym.agents.reproduction.token_gaps import last_turn_gaps
from conserve_gym.envs.serving.timeline import Timeline
from conserve_gym.fleet import Role
from conserve_gym.ledger import ConversationEnded, FirstToken, TurnFinished
from conserve_gym.placement import Placement


def test_the_gaps_of_two_conversations_by_hand() -> None:
    # The second prompt comes at 0.1 s, in the first one's ninth step of decodes (13.2 + 9 x 10.2
    # ms). It is computed beside the tenth token: 2 + 2.1 + 0.2 + 8.9 + 1 ms. Both decode in the
    # next step: 3 + 2 x 1 + 0.05 (90 + 20) ms. Alone again, the first one reads 91 tokens of KV
    # and one more a step; from 124 on they take longer than the floor of 10.2 ms.
    spec = cluster_of(engine(Role.MIXED))
    timeline = Timeline(spec.deployed(NO_RESERVATION))
    both = [conversation(0.0, (80, 80, 90, 0.0)), conversation(0.1, (20, 20, 2, 0.0))]
    cluster = play(spec, NO_RESERVATION, both, [Placement(0, 0)] * 2, timeline)
    gaps = last_turn_gaps(cluster.ledger, timeline, [1.0, 1.0])
    rest = [max(10.2, 4.0 + 0.05 * (91 + step)) for step in range(78)]
    assert len(gaps) == 1 + 89  # whoever ends first comes first
    assert gaps[0] == pytest.approx(10.5e-3)
    assert gaps[1:12] == pytest.approx([10.2e-3] * 9 + [14.2e-3, 10.5e-3])
    # Steps of one run count as equally long.
    assert gaps[12:] == pytest.approx([sum(rest) / 78 * 1e-3] * 78)

    assert last_turn_gaps(cluster.ledger, timeline, [0.01, 0.5]) == pytest.approx(
        np.concatenate([gaps[:1] / 0.5, gaps[1:] / 0.01])
    )
    assert last_turn_gaps(cluster.ledger, timeline, [0.01, 0.0]) == pytest.approx(gaps[1:] / 0.01)


@EXAMPLES
@given(episodes())
def test_gaps_are_one_fewer_than_tokens_and_add_up_to_their_time(episode: Episode) -> None:
    timeline = Timeline(episode.spec.deployed(episode.deployment))
    cluster = episode.play(timeline=timeline)
    assume(not any(engine.preemptions for engine in cluster.engines))
    first: dict[int, float] = {}
    finished: dict[int, TurnFinished] = {}
    expected: list[tuple[int, int, float]] = []  # conversation, gaps, seconds
    for event in cluster.ledger:
        if isinstance(event, FirstToken):
            first[event.conversation] = event.time
        elif isinstance(event, TurnFinished):
            finished[event.conversation] = event
        elif isinstance(event, ConversationEnded):
            one = event.conversation
            last = finished[one]
            expected.append((one, last.output_tokens - 1, last.time - first[one]))
    count = len(cluster.conversations)
    for one, number, seconds in expected:
        alone = [float(place == one) for place in range(count)]
        gaps = last_turn_gaps(cluster.ledger, timeline, alone)
        assert len(gaps) == number
        assert gaps.sum() == pytest.approx(seconds, abs=1e-9)
    assert len(last_turn_gaps(cluster.ledger, timeline, [1.0] * count)) == sum(
        number for _, number, _ in expected
    )
