"""What a cluster is made of: engines with roles and tiers, and the network between them."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

from pydantic import NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from conserve_gym.costs import MoveCosts
from conserve_gym.deployment import Deployment
from conserve_gym.envs.fields import STRICT, Positive
from conserve_gym.envs.serving.hardware import Hardware
from conserve_gym.envs.serving.network_spec import NetworkSpec
from conserve_gym.envs.serving.power_cap import capped
from conserve_gym.envs.serving.step_profile import costs_of
from conserve_gym.errors import ConServeGymError
from conserve_gym.fleet import Fleet, Role

_CAP_RULE = "cap by a rule measured on an A40 at 300 to 200 W"


class ClusterError(ConServeGymError):
    """A cluster that cannot serve its workload."""


@dataclass(frozen=True, config=STRICT)
class EngineSpec:
    """``count`` engines of one kind.

    Attributes:
        role: What they are deployed for.
        hardware: Name of their tier in ``ClusterSpec.hardware``.
        count: How many.
        token_budget: Tokens that a step may carry (``max_num_batched_tokens``).
        max_sequences: Turns that may run at once (``max_num_seqs``).
        kv_capacity_tokens: Size of the KV pool, in whole blocks.
        block_tokens: Tokens in a KV block.
        node: Number of the node that they stand in.
        cap_w: Power cap in watts, between base power and cap of the tier; None for the tier's own.
    """

    role: Role
    hardware: str
    count: PositiveInt
    token_budget: PositiveInt
    max_sequences: PositiveInt
    kv_capacity_tokens: PositiveInt
    block_tokens: PositiveInt
    node: NonNegativeInt = 0
    cap_w: Positive | None = None


@dataclass(frozen=True, config=STRICT)
class ClusterSpec:
    """A cluster.

    Attributes:
        name: How it is called in tables.
        hardware: Tiers by name.
        engines: Groups of engines, in the order of their indices.
        network: What carries KV between engines.
        mixed_token_budget: Token budget of every engine where an arm makes all of them mixed.
        standalone: Tier whose lone engine normalises latencies.

    Raises:
        ValueError: A tier has no entry in ``hardware`` or runs another model than the others, a
            power cap does not fit its tier, a pool is not made of whole blocks, no engine decodes,
            or the network does not fit the engines.
    """

    name: str
    hardware: dict[str, Hardware]
    engines: tuple[EngineSpec, ...]
    network: NetworkSpec
    mixed_token_budget: PositiveInt
    standalone: str

    def __post_init__(self) -> None:
        """Check the parts against each other."""
        tiers = {f"engines.{i}.hardware": engine.hardware for i, engine in enumerate(self.engines)}
        for field, name in {"standalone": self.standalone, **tiers}.items():
            if name not in self.hardware:
                known = ", ".join(self.hardware)
                raise ValueError(f"cluster.{field}={name!r} is none of the tiers: {known}")
        for i, engine in enumerate(self.engines):
            self._check_model(f"cluster.engines.{i}", engine)
            try:
                self.tier(engine)
            except ValueError as error:
                raise ValueError(f"cluster.engines.{i}.{error}") from None
            if engine.kv_capacity_tokens % engine.block_tokens:
                raise ValueError(
                    f"cluster.engines.{i}.kv_capacity_tokens={engine.kv_capacity_tokens} is not a "
                    f"whole number of blocks of {engine.block_tokens} tokens"
                )
        if not any(engine.role.decodes for engine in self.engines):
            roles = [str(engine.role) for engine in self.engines]
            raise ValueError(
                f"no engine decodes: engines have roles {roles}; at least one must be 'decode' "
                "or 'mixed'"
            )
        self._check_network()

    def __deepcopy__(self, memo: dict[int, Any]) -> ClusterSpec:
        """Return itself: it never changes, and copies of a cluster share it."""
        return self

    def _check_model(self, key: str, engine: EngineSpec) -> None:
        own, others = self.hardware[engine.hardware], self.hardware[self.standalone]
        model = own.model, own.figures.kv_bytes_per_token
        expected = others.model, others.figures.kv_bytes_per_token
        if model != expected:
            raise ValueError(
                f"{key}.hardware={engine.hardware!r} runs {model[0]} with {model[1]:g} KV bytes a "
                f"token, but cluster.standalone={self.standalone!r} runs {expected[0]} with "
                f"{expected[1]:g}: the engines of a cluster share one model"
            )

    def _check_network(self) -> None:
        nodes = self.nodes
        named: set[tuple[int, int]] = set()
        for i, pair in enumerate(self.network.pairs):
            key, ends = f"cluster.network.pairs.{i}", (pair.source, pair.target)
            for end, engine in zip(("source", "target"), ends, strict=True):
                if engine >= len(nodes):
                    raise ValueError(f"{key}.{end}={engine} is none of the {len(nodes)} engines")
            if pair.source == pair.target:
                raise ValueError(f"{key}.target={pair.target} is the source too")
            if ends in named:
                raise ValueError(
                    f"{key}: source={pair.source}, target={pair.target} is named twice"
                )
            named.add(ends)
        for ends in permutations(range(len(nodes)), 2):
            source, target = (nodes[end] for end in ends)
            wires = "same_node" if source == target else "cross_node"
            if ends not in named and getattr(self.network, wires) is None:
                raise ValueError(
                    f"cluster.network.{wires}=None, but engines {ends[0]} and {ends[1]} stand in "
                    f"nodes {source} and {target}"
                )

    def deployed(self, deployment: Deployment) -> list[EngineSpec]:
        """Return one entry an engine, with the roles that an arm gives them."""
        engines = [replace(group, count=1) for group in self.engines for _ in range(group.count)]
        if not deployment.all_mixed:
            return engines
        return [
            replace(engine, role=Role.MIXED, token_budget=self.mixed_token_budget)
            for engine in engines
        ]

    def tier(self, engine: EngineSpec) -> Hardware:
        """Return the tier of an engine under the engine's power cap."""
        hardware = self.hardware[engine.hardware]
        return hardware if engine.cap_w is None else capped(hardware, engine.cap_w)

    def fleet(self, deployment: Deployment) -> Fleet:
        """Return what a router knows of the engines."""
        engines = self.deployed(deployment)
        return Fleet(
            tuple(engine.role for engine in engines),
            tuple(engine.kv_capacity_tokens for engine in engines),
            tuple(costs_of(self.tier(engine), engine.token_budget) for engine in engines),
            self._move_costs(),
            tuple(not group.role.decodes for group in self.engines for _ in range(group.count)),
        )

    def _move_costs(self) -> MoveCosts:
        """Return the mean over the first engine's wires."""
        nodes = self.nodes
        links = [self.network.link(0, target, nodes) for target in range(1, len(nodes))]
        if not links:
            return MoveCosts()
        latency = sum(link.exposed_s(0.0) for link in links) / len(links)
        token = sum(link.exposed_s(self.kv_bytes_per_token) for link in links) / len(links)
        return MoveCosts(latency, token - latency)

    @property
    def caveats(self) -> tuple[str, ...]:
        """What of the hardware was not measured; stands wherever results do."""
        tiers = dict.fromkeys([*(engine.hardware for engine in self.engines), self.standalone])
        derived = [
            f"derived hardware: {name}" for name in tiers if self.hardware[name].provenance.derived
        ]
        parts = {name: self.hardware[name].provenance.carried for name in tiers}
        by_tier = " and ".join(f"{', '.join(of)} ({name})" for name, of in parts.items() if of)
        carried = [f"carried over, not measured there: {by_tier}"] if by_tier else []
        caps = [
            f"{_CAP_RULE}: {engine.hardware} at {engine.cap_w:g} W"
            for engine in self.engines
            if engine.cap_w is not None
            and engine.cap_w < self.hardware[engine.hardware].power.cap_w
        ]
        return tuple(dict.fromkeys(derived + carried + caps))

    @property
    def nodes(self) -> tuple[int, ...]:
        """Node of each engine."""
        return tuple(group.node for group in self.engines for _ in range(group.count))

    @property
    def kv_bytes_per_token(self) -> float:
        """Size of a token in the KV cache; one model runs on every engine."""
        return self.hardware[self.standalone].figures.kv_bytes_per_token
