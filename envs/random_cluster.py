"""Clusters drawn at random: size, roles, tiers, network and power caps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Literal, TypeAlias

import numpy as np
from pydantic import AfterValidator, Field, PositiveInt
from pydantic.dataclasses import dataclass

from conserve_gym.envs.fields import STRICT, NotNegative, Range, Share
from conserve_gym.envs.random_choice import chosen, weights_of
from conserve_gym.envs.serving.cluster_spec import ClusterSpec, EngineSpec
from conserve_gym.envs.serving.hardware import Hardware
from conserve_gym.envs.serving.network_spec import NetworkSpec
from conserve_gym.envs.serving.power_cap import lowest_cap_w
from conserve_gym.envs.serving.step_profile import StepProfile
from conserve_gym.fleet import Role

Layout: TypeAlias = Literal["split", "mixed", "part_mixed"]
"""Prefill beside decode engines, mixed engines alone, or mixed beside decode engines."""

_BLOCK_TOKENS = 16
_MAX_SEQUENCES = 1024
_PREFILL_BUDGET = 8192  # nobody decodes there who would be stalled
# What an engine does not keep KV in, as in conf/cluster/h100_1p3d.yaml.
_MEMORY_SHARE = 0.9
_ACTIVATIONS_GB = 2.0


def _several(engines: tuple[int, int]) -> tuple[int, int]:
    if not 2 <= engines[0] <= engines[1]:
        raise ValueError(f"{list(engines)} must rise, from 2 at least")
    return engines


@dataclass(frozen=True, config=STRICT)
class RandomCluster:
    """What may be drawn.

    Attributes:
        engines: Fewest and most engines.
        layouts: Weight of each layout of roles.
        prefill_share: Share of the engines that prefill for others, in a cluster that is not all
            mixed; at least one does in a split cluster, and two in a part-mixed one.
        tiers: What GPUs there are, by name; a cluster has those of one model.
        unequal_share: Share of the clusters that have two tiers, each engine one of them.
        capped_share: Share of the kinds of engine (role and tier) that run under a power cap.
        networks: What joins engines, by name.
        engines_a_node: Engines that a node has room for, where the network joins nodes.
        kv_share: KV pool over what the tier's memory has room for.
        token_budgets: Token budgets of engines that decode; a cluster has one of them.

    Raises:
        ValueError: Something is empty or out of range.
    """

    engines: Annotated[tuple[PositiveInt, PositiveInt], AfterValidator(_several)]
    layouts: Annotated[dict[Layout, NotNegative], AfterValidator(weights_of)]
    prefill_share: Range
    tiers: Annotated[dict[str, Hardware], Field(min_length=1)]
    unequal_share: Share
    capped_share: Share
    networks: Annotated[dict[str, NetworkSpec], Field(min_length=1)]
    engines_a_node: PositiveInt
    kv_share: Range
    token_budgets: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]

    def draw(self, rng: np.random.Generator) -> ClusterSpec:
        """Return a cluster; latencies are normalised by the slower of its tiers."""
        roles = self._roles(int(rng.integers(*self.engines, endpoint=True)), rng)
        tiers = self._tiers(rng)
        network = list(self.networks)[rng.integers(len(self.networks))]
        nodes = self._nodes(network, len(roles), rng)
        budget = self.token_budgets[rng.integers(len(self.token_budgets))]
        kv_share = rng.uniform(*self.kv_share)
        kinds = {
            (role, tier): EngineSpec(
                role,
                tier,
                1,
                budget if role.decodes else _PREFILL_BUDGET,
                _MAX_SEQUENCES,
                self._pool(tier, kv_share),
                _BLOCK_TOKENS,
                cap_w=self._cap_w(tier, rng),
            )
            for role in sorted(set(roles))
            for tier in tiers
        }
        which = rng.integers(len(tiers), size=len(roles))
        engines = tuple(
            replace(kinds[role, tiers[i]], node=node)
            for role, i, node in zip(roles, which.tolist(), nodes, strict=True)
        )
        used = {engine.hardware: self.tiers[engine.hardware] for engine in engines}
        slowest = max(used, key=lambda tier: _long_prompt_s(used[tier]))
        name = f"{_shape(roles)} of {' and '.join(used)}, {network}"
        return ClusterSpec(name, used, engines, self.networks[network], budget, slowest)

    def roles(self) -> Iterator[tuple[Role, ...]]:
        """Yield the roles of every cluster that may be drawn."""
        for engines in range(self.engines[0], self.engines[1] + 1):
            for layout, weight in self.layouts.items():
                if weight:
                    low, high = (_prefilling(layout, engines, s) for s in self.prefill_share)
                    for prefilling in range(low, high + 1):
                        yield _roles(layout, engines, prefilling)

    def _roles(self, engines: int, rng: np.random.Generator) -> tuple[Role, ...]:
        layout = chosen(self.layouts, rng)
        prefilling = _prefilling(layout, engines, rng.uniform(*self.prefill_share))
        return _roles(layout, engines, prefilling)

    def _tiers(self, rng: np.random.Generator) -> list[str]:
        names = list(self.tiers)
        first = names[rng.integers(len(names))]
        model = self.tiers[first].model, self.tiers[first].figures.kv_bytes_per_token
        others = [
            name
            for name, tier in self.tiers.items()
            if name != first and (tier.model, tier.figures.kv_bytes_per_token) == model
        ]
        unequal, which = rng.random() < self.unequal_share, rng.random()
        return [first, others[int(which * len(others))]] if unequal and others else [first]

    def _nodes(self, network: str, engines: int, rng: np.random.Generator) -> list[int]:
        """Return the node of each engine: as few nodes as there may be, or up to twice as many."""
        spec = self.networks[network]
        fewest = -(-engines // self.engines_a_node)
        nodes = int(rng.integers(fewest, min(2 * fewest, engines), endpoint=True))
        if spec.cross_node is None:
            nodes = 1
        if spec.same_node is None:
            nodes = engines
        return [int(place) % nodes for place in rng.permutation(engines)]

    def _cap_w(self, tier: str, rng: np.random.Generator) -> float | None:
        hardware = self.tiers[tier]
        capped, cap_w = rng.random(), rng.uniform(lowest_cap_w(hardware), hardware.power.cap_w)
        return cap_w if capped < self.capped_share else None

    def _pool(self, tier: str, share: float) -> int:
        """Return how many KV tokens an engine holds, in whole blocks."""
        hardware = self.tiers[tier]
        room_gb = _MEMORY_SHARE * hardware.limits.memory_gb - _ACTIVATIONS_GB
        room_gb -= hardware.figures.weights_gb
        blocks = share * room_gb * 1e9 / hardware.figures.kv_bytes_per_token / _BLOCK_TOKENS
        return int(blocks) * _BLOCK_TOKENS


def _prefilling(layout: Layout, engines: int, share: float) -> int:
    """Return how many engines prefill for others."""
    fewest = 2 if layout == "part_mixed" else 1
    return engines if layout == "mixed" else max(min(round(share * engines), engines - 1), fewest)


def _roles(layout: Layout, engines: int, prefilling: int) -> tuple[Role, ...]:
    prefills = Role.PREFILL if layout == "split" else Role.MIXED
    return (prefills,) * prefilling + (Role.DECODE,) * (engines - prefilling)


def _shape(roles: tuple[Role, ...]) -> str:
    """Return roles as ``1P3D``, with M for mixed engines."""
    counts = {role: roles.count(role) for role in dict.fromkeys(roles)}
    return "".join(f"{count}{role.value[0].upper()}" for role, count in counts.items())


def _long_prompt_s(hardware: Hardware) -> float:
    return StepProfile(hardware, _PREFILL_BUDGET).prefill_s(_PREFILL_BUDGET, 0)
