"""Traffic drawn at random: which workloads, and how bursty their arrivals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

import numpy as np
from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from conserve_gym.envs.capacity import Demand
from conserve_gym.envs.fields import STRICT, NotNegative, Range
from conserve_gym.envs.random_choice import chosen, weights_of
from conserve_gym.envs.workloads.arrivals import Arrivals, Gamma, Poisson
from conserve_gym.envs.workloads.conversation import Turn
from conserve_gym.envs.workloads.mixture import MixtureWorkload
from conserve_gym.envs.workloads.modulated_arrivals import OnOff
from conserve_gym.envs.workloads.workload import Workload

Process: TypeAlias = Literal["poisson", "bursty", "on_off"]
"""As the files of ``conf/arrivals`` are called."""


def _parts(shares: tuple[float, float]) -> tuple[float, float]:
    if not shares[1] < 1.0:
        raise ValueError(f"{list(shares)} must stay below 1")
    return shares


@dataclass(frozen=True, config=STRICT)
class RandomArrivals:
    """Arrival processes; their times are told in conversations, so that they fit any rate.

    Attributes:
        processes: Weight of each.
        cv: Coefficient of variation of bursty gaps.
        cycle: Conversations that on and off together bring on average.
        on_share: Share of the time that is on; off is silence.

    Raises:
        ValueError: Nothing can be drawn, or a number is out of range.
    """

    processes: Annotated[dict[Process, NotNegative], AfterValidator(weights_of)]
    cv: Range
    cycle: Range
    on_share: Annotated[Range, AfterValidator(_parts)]

    def draw(self, rate: float, rng: np.random.Generator) -> Arrivals:
        """Return a process with so many conversations a second on average."""
        process = chosen(self.processes, rng)
        cv, cycle, on = (rng.uniform(*ends) for ends in (self.cv, self.cycle, self.on_share))
        if process == "bursty":
            return Gamma(rate, cv)
        if process == "on_off":
            return OnOff(rate, on * cycle / rate, (1.0 - on) * cycle / rate, 0.0)
        return Poisson(rate)


class RandomWorkload:
    """One of several workloads, or a mixture of two.

    Args:
        workloads: By name.
        weights: Of each.
        mixed_share: Share of the draws that are mixtures.
        conversations: Conversations of a mixture.
    """

    def __init__(
        self,
        workloads: Mapping[str, Workload],
        weights: Mapping[str, float],
        mixed_share: float,
        conversations: int,
    ) -> None:
        """Average what the workloads ask for."""
        self._workloads = workloads
        self._weights = weights
        self._mixed_share = mixed_share
        self._conversations = conversations
        self._demands = {name: Demand.of(workload) for name, workload in workloads.items()}

    def draw(self, rng: np.random.Generator) -> tuple[Workload, Demand]:
        """Return a workload and what its conversations ask for."""
        name, other = chosen(self._weights, rng), chosen(self._weights, rng)
        mixed, share = rng.random() < self._mixed_share, rng.uniform(0.1, 0.9)
        if not mixed or name == other:
            return self._workloads[name], self._demands[name]
        parts, shares = (name, other), (share, 1.0 - share)
        mixture = MixtureWorkload(
            {part: self._workloads[part] for part in parts},
            dict(zip(parts, shares, strict=True)),
            self._conversations,
        )
        return mixture, Demand.mixed([self._demands[part] for part in parts], shares)


class FittingWorkload:
    """Conversations cut before they outgrow the smallest KV pool, as an engine would refuse them.

    Args:
        workload: The conversations.
        pool_tokens: Size of the pool.
    """

    def __init__(self, workload: Workload, pool_tokens: int) -> None:
        """Keep the workload's name."""
        self.name = workload.name
        self._workload = workload
        self._pool_tokens = pool_tokens

    def draw(self, rng: np.random.Generator) -> list[tuple[Turn, ...]]:
        """Return the turns of every conversation whose first turn fits."""
        drawn = (self._cut(turns) for turns in self._workload.draw(rng))
        return [turns for turns in drawn if turns]

    def _cut(self, turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
        for i, turn in enumerate(turns):
            if turn.input_tokens + turn.output_tokens > self._pool_tokens:
                return turns[:i]
        return turns
