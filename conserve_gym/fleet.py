"""What a router knows of its engines beforehand: roles, sizes of KV pools, relative speeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
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
    """Roles, KV capacities and relative speeds of the engines, in the cluster's order.

    Fleets that differ in speeds alone are equal: observations tell the speeds.

    Attributes:
        roles: Role of each engine.
        kv_capacity_tokens: KV cache of each engine, in tokens.
        prefill_speeds: Speed of a long prompt alone on each engine, as a share of the fastest's;
            given none, all are 1.
        decode_speeds: Speed of a full batch of decodes, alike.

    Raises:
        ValueError: No engine decodes, the lengths differ, or a speed is no share.
    """

    roles: tuple[Role, ...]
    kv_capacity_tokens: tuple[int, ...]
    prefill_speeds: tuple[float, ...] = field(default=(), compare=False)
    decode_speeds: tuple[float, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        """Check that conversations can run somewhere."""
        for name in ("prefill_speeds", "decode_speeds"):
            speeds = getattr(self, name) or (1.0,) * len(self.roles)
            if len(speeds) != len(self.roles):
                raise ValueError(f"{len(self.roles)} roles for {len(speeds)} {name}")
            if not all(0.0 < speed <= 1.0 for speed in speeds):
                raise ValueError(f"{name}={speeds} are not shares of the fastest engine's")
            object.__setattr__(self, name, speeds)
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

    def to_json(self) -> dict[str, list[str] | list[int] | list[float]]:
        """Return the fleet as plain lists."""
        return {
            "roles": [str(role) for role in self.roles],
            "kv_capacity_tokens": list(self.kv_capacity_tokens),
            "prefill_speeds": list(self.prefill_speeds),
            "decode_speeds": list(self.decode_speeds),
        }

    @classmethod
    def from_json(
        cls,
        roles: Sequence[str],
        kv_capacity_tokens: Sequence[int],
        prefill_speeds: Sequence[float] = (),
        decode_speeds: Sequence[float] = (),
    ) -> Fleet:
        """Build a fleet from plain lists."""
        return cls(
            tuple(Role(role) for role in roles),
            tuple(int(capacity) for capacity in kv_capacity_tokens),
            tuple(float(speed) for speed in prefill_speeds),
            tuple(float(speed) for speed in decode_speeds),
        )
