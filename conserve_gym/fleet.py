"""What a router knows of its engines beforehand: their roles and the size of their KV pools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property


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
    """Roles and KV capacities of the engines, in the cluster's order.

    Attributes:
        roles: Role of each engine.
        kv_capacity_tokens: KV cache of each engine, in tokens.

    Raises:
        ValueError: No engine decodes, or the lengths differ.
    """

    roles: tuple[Role, ...]
    kv_capacity_tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check that conversations can run somewhere."""
        if len(self.roles) != len(self.kv_capacity_tokens):
            raise ValueError(
                f"{len(self.roles)} roles for {len(self.kv_capacity_tokens)} KV capacities"
            )
        if not self.decoders:
            raise ValueError(
                f"no engine decodes: roles are {[str(role) for role in self.roles]}; "
                "at least one must be 'decode' or 'mixed'"
            )

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

    def to_json(self) -> dict[str, list[str] | list[int]]:
        """Return the fleet as plain lists."""
        return {
            "roles": [str(role) for role in self.roles],
            "kv_capacity_tokens": list(self.kv_capacity_tokens),
        }

    @classmethod
    def from_json(cls, roles: Sequence[str], kv_capacity_tokens: Sequence[int]) -> Fleet:
        """Build a fleet from plain lists."""
        return cls(tuple(Role(role) for role in roles), tuple(int(c) for c in kv_capacity_tokens))
