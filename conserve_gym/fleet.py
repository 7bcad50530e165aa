"""What a router knows of its engines beforehand: roles, sizes of KV pools, costs of work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

from conserve_gym.costs import UNKNOWN, EngineCosts, MoveCosts

_LONG_PROMPT = 8192  # tokens; what a prefill engine of the paper takes in one step
_FULL_BATCH = 32  # turns; long prompts of so many fill four fifths of an A40's pool there


class Role(StrEnum):
    """What an engine is deployed for.

    A prefill engine serves prompts for others and never decodes. A decode engine decodes the
    conversations pinned to it and prefills what they append, or a first turn that is colocated
    there. A mixed engine does both.
    """

    PREFILL = "prefill"
    DECODE = "decode"
    MIXED = "mixed"

    @property
    def decodes(self) -> bool:
        """Whether conversations can be pinned to the engine."""
        return self is not Role.PREFILL

    @property
    def prefills_for_others(self) -> bool:
        """Whether the engine prefills conversations that decode elsewhere."""
        return self is not Role.DECODE


@dataclass(frozen=True)
class Fleet:
    """What is known of the engines beforehand, in the cluster's order.

    Fleets that differ in costs alone are equal: observations and estimates tell the costs.

    Attributes:
        roles: Role of each engine.
        kv_capacity_tokens: KV cache of each engine, in tokens.
        costs: What work costs on each engine; given none, all are alike.
        move: What moving KV between two engines costs.
        apart: Whether the cluster sets each engine apart for prefill, whatever role it has now;
            given none, those with that role.

    Raises:
        ValueError: No engine decodes, or the lengths differ.
    """

    roles: tuple[Role, ...]
    kv_capacity_tokens: tuple[int, ...]
    costs: tuple[EngineCosts, ...] = field(default=(), compare=False)
    move: MoveCosts = field(default=MoveCosts(), compare=False)
    apart: tuple[bool, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        """Check that conversations can run somewhere."""
        if not self.costs:
            object.__setattr__(self, "costs", (UNKNOWN,) * len(self.roles))
        if not self.apart:
            apart = tuple(not role.decodes for role in self.roles)
            object.__setattr__(self, "apart", apart)
        given = {"KV capacities": self.kv_capacity_tokens, "costs": self.costs, "apart": self.apart}
        for name, values in given.items():
            if len(values) != len(self.roles):
                raise ValueError(f"{len(self.roles)} roles for {len(values)} {name}")
        if not self.decoders:
            raise ValueError(
                f"no engine decodes: roles are {[str(role) for role in self.roles]}; "
                "at least one must be 'decode' or 'mixed'"
            )

    @cached_property
    def prefill_speeds(self) -> tuple[float, ...]:
        """Speed of a long prompt alone on each engine, as a share of the fastest's."""
        return _speeds([costs.prefill_s(_LONG_PROMPT, 0) for costs in self.costs])

    @cached_property
    def decode_speeds(self) -> tuple[float, ...]:
        """Speed of a full batch of decodes on each engine, as a share of the fastest's."""
        full = _FULL_BATCH, _FULL_BATCH * _LONG_PROMPT
        return _speeds([costs.decode_step_s(*full) for costs in self.costs])

    @cached_property
    def decoders(self) -> tuple[int, ...]:
        """Engines to which conversations can be pinned."""
        return tuple(i for i, role in enumerate(self.roles) if role.decodes)

    @property
    def can_disaggregate(self) -> bool:
        """Whether every conversation, wherever it decodes, finds another engine to prefill it."""
        return all(self.prefillers_for(decode_at) for decode_at in self.decoders)

    def prefillers_for(self, decode_at: int) -> tuple[int, ...]:
        """Engines other than ``decode_at`` that prefill for others."""
        return tuple(i for i in self._prefillers if i != decode_at)

    @cached_property
    def _prefillers(self) -> tuple[int, ...]:
        return tuple(i for i, role in enumerate(self.roles) if role.prefills_for_others)

    def to_json(self) -> dict[str, Any]:
        """Return the fleet as plain lists."""
        return {
            "roles": [str(role) for role in self.roles],
            "kv_capacity_tokens": list(self.kv_capacity_tokens),
            "costs": [costs._asdict() for costs in self.costs],
            "move": self.move._asdict(),
            "apart": list(self.apart),
        }

    @classmethod
    def from_json(
        cls,
        roles: Sequence[str],
        kv_capacity_tokens: Sequence[int],
        costs: Sequence[Mapping[str, float]],
        move: Mapping[str, float],
        apart: Sequence[bool],
    ) -> Fleet:
        """Build a fleet from plain lists."""
        return cls(
            tuple(Role(role) for role in roles),
            tuple(int(capacity) for capacity in kv_capacity_tokens),
            tuple(EngineCosts(**each) for each in costs),
            MoveCosts(**move),
            tuple(bool(each) for each in apart),
        )


def _speeds(seconds: Sequence[float]) -> tuple[float, ...]:
    fastest = min(seconds)
    return tuple(fastest / each for each in seconds)
