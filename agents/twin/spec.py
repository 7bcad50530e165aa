"""What a twin is asked to do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass

from conserve_gym.envs.fields import STRICT
from conserve_gym.envs.serving.network_spec import LinkSpec
from conserve_gym.fleet import Role


@dataclass(frozen=True, config=STRICT)
class RunningEngine:
    """An engine that is running already.

    Attributes:
        name: What it is called.
        url: Its address, without ``/v1``.
        role: What it is deployed for.
        adapter: How the router speaks to it.
        kv_tokens: Size of its KV pool.
    """

    name: str
    url: str
    role: Role
    adapter: Literal["llamacpp", "vllm_nixl", "openai"]
    kv_tokens: PositiveInt


@dataclass(frozen=True, config=STRICT)
class StartedEngines:
    """llama.cpp servers that are started with a tiny model, one a role.

    Attributes:
        roles: What each is deployed for; the n-th is pinned to core n, counted around.
        context_tokens: Tokens that a slot holds.
    """

    roles: tuple[Role, ...]
    context_tokens: PositiveInt


@dataclass(frozen=True, config=STRICT)
class Tuning:
    """How the policy ``tuned`` comes about: by the simulator alone.

    Attributes:
        disaggregate_from: Lengths of a first prompt from which it may disaggregate, in tokens.
        seeds: Episodes that each is tried on; none of those that are played.
        metric: What shall be low.
    """

    disaggregate_from: Annotated[tuple[Annotated[float, Field(ge=0.0)], ...], Field(min_length=1)]
    seeds: PositiveInt
    metric: str


@dataclass(frozen=True, config=STRICT)
class TwinSpec:
    """A twin.

    Attributes:
        engines: What is compared with the simulator: engines to start, or running ones.
        token_budget: Tokens that a step of theirs carries.
        max_sequences: Sequences that each runs at once.
        link: Law of KV moves; None measures it, by the slots of llama.cpp.
        slot_folder: The engines' ``--slot-save-path``; for those that are started, None makes one.
        policies: ``colocate``, ``conserve``, ``tuned``, or exported policies by path.
        tuning: How ``tuned`` comes about.
        calibrated: Folder of an earlier twin whose calibration is taken; None measures.
        output: Folder to write to.
    """

    engines: StartedEngines | tuple[RunningEngine, ...]
    token_budget: PositiveInt
    max_sequences: PositiveInt
    link: LinkSpec | None
    slot_folder: Path | None
    policies: Annotated[tuple[str, ...], Field(min_length=1)]
    tuning: Tuning
    calibrated: Path | None
    output: Path

    @property
    def roles(self) -> tuple[Role, ...]:
        """Role of each engine."""
        if isinstance(self.engines, StartedEngines):
            return self.engines.roles
        return tuple(engine.role for engine in self.engines)

    @property
    def kv_tokens(self) -> tuple[int, ...]:
        """Size of each engine's KV pool."""
        if isinstance(self.engines, StartedEngines):
            return (self.engines.context_tokens * self.max_sequences,) * len(self.roles)
        return tuple(engine.kv_tokens for engine in self.engines)
