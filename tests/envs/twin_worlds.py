"""Worlds that share a past and differ in every hidden quantity of their futures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from conserve_gym.envs.workloads.conversation import Conversation, Turn
from conserve_gym.ledger import Event


def another_future(
    conversation: Conversation, from_turn: int, rng: np.random.Generator
) -> Conversation:
    """Return a conversation that differs in every hidden quantity from a turn's answer on."""
    played = list(conversation.turns[:from_turn])
    turn = conversation.turns[from_turn]
    played.append(turn._replace(output_tokens=int(turn.output_tokens + rng.integers(1, 3000))))
    for _ in range(int(rng.integers(0, 4))):
        new = int(rng.integers(1, 4000))
        context = played[-1].input_tokens + played[-1].output_tokens
        gap = float(rng.uniform(0.0, 5.0))
        played.append(Turn(context + new, new, int(rng.integers(1, 400)), gap))
    return conversation._replace(turns=tuple(played))


def twin_of(
    episode: Sequence[Conversation], changed: int, rng: np.random.Generator
) -> list[Conversation]:
    """Return an episode in which some conversations, each from some turn on, go another way."""
    twin = list(episode)
    for index in rng.choice(len(twin), size=changed, replace=False):
        from_turn = int(rng.integers(len(twin[index].turns)))
        twin[index] = another_future(twin[index], from_turn, rng)
    return twin


def shared_past(one: Sequence[Event], other: Sequence[Event]) -> int:
    """Return how many events come before the first that differs."""
    shared = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        shared += 1
    return shared
