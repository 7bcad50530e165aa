"""The router's configuration, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from conserve_gym.costs import UNKNOWN, EngineCosts, MoveCosts
from conserve_gym.fleet import Fleet, Role

_STRICT = ConfigDict(extra="forbid")
Port = Annotated[int, Field(ge=0, le=65535)]


@dataclass(frozen=True, config=_STRICT)
class EngineSpec:
    """One engine.

    Attributes:
        name: How receipts, metrics and logs call it.
        url: Its address, without ``/v1``.
        role: What it is deployed for.
        adapter: How it is spoken to.
        kv_tokens: Size of its KV pool.
        api_key: What it wants to see.
        costs: What work costs on it, as ``observation.fleet.costs`` of an exported policy has it.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    url: str
    role: Role
    adapter: Literal["llamacpp", "vllm_nixl", "openai"]
    kv_tokens: PositiveInt
    api_key: str | None = None
    costs: EngineCosts | None = None

    def __post_init__(self) -> None:
        """Check the address."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise ValueError(f"url={self.url!r} is no http address")


@dataclass(frozen=True, config=_STRICT)
class Limits:
    """What the router bears.

    Attributes:
        body_bytes: Largest body of a request.
        header_bytes: Longest header of a request.
        at_door: Conversations that may wait for room; more are refused.
        door_s: How long one waits before it is placed where there is none.
        first_token_s: How long an engine may be silent before its first token.
        next_token_s: How long it may be silent between tokens.
        connect_s: How long a connection may take.
        idle_s: When a silent conversation is given up.
        conversations: Live conversations; beyond, the one silent longest is given up.
    """

    body_bytes: PositiveInt = 16 * 2**20
    header_bytes: PositiveInt = 16 * 2**10
    at_door: PositiveInt = 1024
    door_s: PositiveFloat = 30.0
    first_token_s: PositiveFloat = 120.0
    next_token_s: PositiveFloat = 30.0
    connect_s: PositiveFloat = 3.0
    idle_s: PositiveFloat = 1800.0
    conversations: PositiveInt = 100_000


@dataclass(frozen=True, config=_STRICT)
class Health:
    """How engines are watched.

    Attributes:
        period_s: How often each is asked.
        timeout_s: When it counts as silent.
        failures: Failures in a row before it is down.
        pause_s: How long one that let a request wait in vain stays down at least.
    """

    period_s: PositiveFloat = 1.0
    timeout_s: PositiveFloat = 3.0
    failures: PositiveInt = 3
    pause_s: NonNegativeFloat = 10.0


@dataclass(frozen=True, config=_STRICT)
class RouterSpec:
    """A router.

    Attributes:
        engines: What it may speak to; nothing else.
        move: What moving KV between two engines costs.
        policy: Exported policy by name or path, or a rule as evaluations name it; none leaves
            decisions to the rule that stands behind every policy.
        preference: How much energy counts, from 0 to 1, in a policy that has the knob.
        shadow: A candidate beside it: an exported policy by name or path.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        api_key: What clients have to show.
        slot_folder: The llama.cpp engines' ``--slot-save-path``.
        log: Folder of the decision log; none keeps no log, and a restart forgets.
        log_segment_bytes: Size of a file of it.
        log_segments: Number of files to keep.
        reload_s: How often the policies' files are looked at.
        tokens_per_character: Of prompts, until engines have told.
        limits: What the router bears.
        health: How engines are watched.

    Raises:
        ValueError: The engines do not make a fleet.
    """

    engines: tuple[EngineSpec, ...]
    move: MoveCosts = MoveCosts()
    policy: str | dict[str, dict[str, Any]] | None = None
    preference: float | None = None
    shadow: str | None = None
    host: str = "127.0.0.1"
    port: Port = 8000
    api_key: str | None = None
    slot_folder: Path | None = None
    log: Path | None = None
    log_segment_bytes: PositiveInt = 64 * 2**20
    log_segments: PositiveInt = 16
    reload_s: PositiveFloat = 2.0
    tokens_per_character: PositiveFloat = 0.25
    limits: Limits = Limits()
    health: Health = Health()

    def __post_init__(self) -> None:
        """Check what belongs together."""
        names = [engine.name for engine in self.engines]
        if len(set(names)) != len(names):
            raise ValueError(f"engines have names {names}, and one stands twice")
        if self.slot_folder is None and any(one.adapter == "llamacpp" for one in self.engines):
            raise ValueError("slot_folder is needed for llama.cpp: its --slot-save-path")
        if any(one.role is Role.PREFILL and one.adapter == "openai" for one in self.engines):
            raise ValueError("an engine with adapter=openai cannot prefill for others")
        if len({one.adapter for one in self.engines}) > 1:
            raise ValueError("all engines need the same adapter: KV does not go between makes")
        self.fleet(all_mixed=False)

    def fleet(self, *, all_mixed: bool) -> Fleet:
        """Return the engines as policies see them.

        Of a make that hands nothing over, an engine prefills for itself alone.

        Args:
            all_mixed: Every engine prefills and decodes, whatever its role.
        """

        def role(engine: EngineSpec) -> Role:
            if engine.adapter == "openai":
                return Role.DECODE
            return Role.MIXED if all_mixed else engine.role

        return Fleet(
            tuple(map(role, self.engines)),
            tuple(one.kv_tokens for one in self.engines),
            tuple(one.costs or UNKNOWN for one in self.engines) if self.knows_costs else (),
            self.move,
            tuple(not one.role.decodes for one in self.engines),
        )

    @property
    def knows_costs(self) -> bool:
        """Whether some engine's costs are given."""
        return any(one.costs is not None for one in self.engines)
