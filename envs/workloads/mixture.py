"""Workloads mixed by weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import PositiveInt, validate_call

from conserve_gym.envs.fields import Positive
from conserve_gym.envs.workloads.conversation import Turn, WorkloadError
from conserve_gym.envs.workloads.workload import Workload


class MixtureWorkload:
    """Draws each conversation of an episode from one of several workloads.

    A part gives as many of its own episodes as are needed, each in an order that is drawn; so a
    recording is used up before it repeats.

    Args:
        parts: The workloads by a name that their weights go by.
        weights: Of each; a part's share of all is its probability.
        conversations: Conversations in an episode.

    Attributes:
        name: What is mixed.

    Raises:
        WorkloadError: Parts and weights do not fit together, or there are none.
    """

    @validate_call
    def __init__(
        self,
        parts: Mapping[str, Any],
        weights: Mapping[str, Positive],
        conversations: PositiveInt,
    ) -> None:
        """Check that every part has a weight, and every weight a part."""
        for name, part in parts.items():
            if not callable(getattr(part, "draw", None)):
                raise WorkloadError(f"workload.parts.{name}={part!r}: no workload")
            if name not in weights:
                raise WorkloadError(f"workload.weights.{name} is needed: workload.parts has {name}")
        for name, weight in weights.items():
            if name not in parts:
                raise WorkloadError(
                    f"workload.weights.{name}={weight:g}: is the weight of no part; there are "
                    f"{', '.join(parts) or 'none'}"
                )
        if not parts:
            raise WorkloadError("workload.parts={}: needs one at least")
        self._parts: list[Workload] = list(parts.values())
        given = np.array([weights[name] for name in parts])
        self._shares = given / given.sum()
        self._conversations = conversations
        said = [
            f"{100.0 * share:.3g} % {part.name}"
            for share, part in zip(self._shares, self._parts, strict=True)
        ]
        self.name = "mixture of " + " and ".join(filter(None, [", ".join(said[:-1]), said[-1]]))

    def draw(self, rng: np.random.Generator) -> list[tuple[Turn, ...]]:
        """Return the turns of every conversation of an episode."""
        chosen = rng.choice(len(self._parts), size=self._conversations, p=self._shares)
        drawn: list[tuple[Turn, ...]] = [()] * self._conversations
        # Each part has a stream of its own, so that it draws the same beside others.
        for i, stream in enumerate(rng.spawn(len(self._parts))):
            places = np.flatnonzero(chosen == i)
            turns: list[tuple[Turn, ...]] = []
            while len(turns) < places.size:
                episode = self._parts[i].draw(stream)
                turns += [episode[k] for k in stream.permutation(len(episode))]
            for place, one in zip(places, turns, strict=False):
                drawn[place] = one
        return drawn
