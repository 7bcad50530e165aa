"""What every workload offers, and how an episode is drawn from it."""

from __future__ import annotations

from operator import attrgetter
from typing import Protocol

import numpy as np

from conserve_gym.envs.workloads.arrivals import Arrivals
from conserve_gym.envs.workloads.conversation import Conversation, Turn


class Workload(Protocol):
    """A source of conversations.

    One that plays a recording may also have ``arrivals_s``: when each conversation that it draws
    arrived there, in the same order, in seconds; NaN if nobody knows.

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

    Returns:
        The conversations in order of arrival.

    Raises:
        WorkloadError: Recorded arrivals are asked for, and the workload has none.
    """
    length_rng, arrival_rng = rng.spawn(2)
    turns = workload.draw(length_rng)
    first_inputs = [conversation[0].input_tokens for conversation in turns]
    times = arrivals.draw(arrival_rng, first_inputs, getattr(workload, "arrivals_s", None))
    drawn = [Conversation(time, played) for time, played in zip(times, turns, strict=True)]
    return sorted(drawn, key=attrgetter("arrival_s"))  # a recording's file may have another order
