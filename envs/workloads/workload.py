"""What every workload offers, and how an episode is drawn from it."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from conserve_gym.envs.workloads.arrivals import Arrivals
from conserve_gym.envs.workloads.conversation import Conversation, Turn


class Workload(Protocol):
    """A source of conversations.

    Attributes:
        name: How it is called in tables.
    """

    name: str

    def draw(self, rng: np.random.Generator) -> list[tuple[Turn, ...]]:
        """Return the turns of every conversation of an episode."""


def draw_episode(
    workload: Workload, arrivals: Arrivals, rng: np.random.Generator
) -> list[Conversation]:
    """Draw an episode before it begins, so that no policy can shift what another would see.

    Lengths and arrival times come from streams of their own.
    """
    length_rng, arrival_rng = rng.spawn(2)
    turns = workload.draw(length_rng)
    times = arrivals.draw(arrival_rng, [conversation[0].input_tokens for conversation in turns])
    return [Conversation(time, played) for time, played in zip(times, turns, strict=True)]
