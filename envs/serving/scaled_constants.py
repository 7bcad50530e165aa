"""One constant of a cluster's calibration, made larger or smaller."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.envs.serving.hardware import Hardware
from conserve_gym.envs.serving.network_spec import LinkSpec, NetworkSpec, PairSpec

Constant = Literal["prefill", "decode floor", "decode slope", "mixed penalty", "transfer", "power"]
"""What can be scaled: times of prompts, of launch-bound and of memory-bound decode steps, what
decodes cost beside a prompt, KV moves, and joules a byte and a FLOP."""

_OF_A_TIER = {
    "prefill": ("prefill", ("base_ms", "weights_ms", "token_us", "attention_ns", "scan_us")),
    "decode floor": ("decode", ("floor_ms", "floor_sequence_us")),
    "decode slope": ("decode", ("sequence_us", "kv_us")),
    "mixed penalty": ("mixed", ("tile_queries",)),
    "power": ("power", ("joule_per_gb", "joule_per_tflop")),
}
"""Law and fields of each constant."""


def scaled(spec: ClusterSpec, constant: str, factor: float) -> ClusterSpec:
    """Return a cluster with a ``Constant`` scaled in all its tiers, or on all its wires."""
    if constant == "transfer":
        return replace(spec, network=_slower(spec.network, factor))
    tiers = {name: _scaled(tier, constant, factor) for name, tier in spec.hardware.items()}
    return replace(spec, hardware=tiers)


def _scaled(hardware: Hardware, constant: str, factor: float) -> Hardware:
    name, fields = _OF_A_TIER[constant]
    law = getattr(hardware, name)
    changed = {field: getattr(law, field) * factor for field in fields}
    hardware = replace(hardware, **{name: replace(law, **changed)})
    if constant == "prefill":
        # Mixed steps read KV by the prefill's attention; their penalty is a constant of its own.
        tile_queries = hardware.mixed.tile_queries / factor
        hardware = replace(hardware, mixed=replace(hardware.mixed, tile_queries=tile_queries))
    return hardware


def _slower(network: NetworkSpec, factor: float) -> NetworkSpec:
    def link(spec: LinkSpec) -> LinkSpec:
        return replace(spec, latency_ms=spec.latency_ms * factor, gb_per_s=spec.gb_per_s / factor)

    return replace(
        network,
        same_node=network.same_node and link(network.same_node),
        cross_node=network.cross_node and link(network.cross_node),
        pairs=tuple(PairSpec(p.source, p.target, link(p.link)) for p in network.pairs),
    )
