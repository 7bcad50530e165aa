"""One constant of a cluster's calibration, made larger or smaller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.envs.serving.hardware import Hardware
from conserve_gym.envs.serving.network_spec import LinkSpec, NetworkSpec, PairSpec


def _prefill(hardware: Hardware, factor: float) -> Hardware:
    law = hardware.prefill
    return replace(
        hardware,
        prefill=replace(
            law,
            base_ms=law.base_ms * factor,
            weights_ms=law.weights_ms * factor,
            token_us=law.token_us * factor,
            attention_ns=law.attention_ns * factor,
            scan_us=law.scan_us * factor,
        ),
        # Mixed steps read KV by the prefill's attention; their penalty is a constant of its own.
        mixed=replace(hardware.mixed, tile_queries=hardware.mixed.tile_queries / factor),
    )


def _decode_floor(hardware: Hardware, factor: float) -> Hardware:
    law = hardware.decode
    return replace(
        hardware,
        decode=replace(
            law,
            floor_ms=law.floor_ms * factor,
            floor_sequence_us=law.floor_sequence_us * factor,
        ),
    )


def _decode_slope(hardware: Hardware, factor: float) -> Hardware:
    law = hardware.decode
    return replace(
        hardware,
        decode=replace(law, kv_us=law.kv_us * factor, sequence_us=law.sequence_us * factor),
    )


def _mixed_penalty(hardware: Hardware, factor: float) -> Hardware:
    mixed = hardware.mixed
    return replace(hardware, mixed=replace(mixed, tile_queries=mixed.tile_queries * factor))


def _power(hardware: Hardware, factor: float) -> Hardware:
    law = hardware.power
    return replace(
        hardware,
        power=replace(
            law,
            joule_per_gb=law.joule_per_gb * factor,
            joule_per_tflop=law.joule_per_tflop * factor,
        ),
    )


_OF_A_TIER: dict[str, Callable[[Hardware, float], Hardware]] = {
    "prefill": _prefill,
    "decode floor": _decode_floor,
    "decode slope": _decode_slope,
    "mixed penalty": _mixed_penalty,
    "power": _power,
}

CONSTANTS = (*_OF_A_TIER, "transfer")
"""What can be scaled: times of prompts, of launch-bound and of memory-bound decode steps, what
decodes cost beside a prompt, KV moves, joules a byte and a FLOP."""


def scaled(spec: ClusterSpec, constant: str, factor: float) -> ClusterSpec:
    """Return a cluster with one of ``CONSTANTS`` scaled in all its tiers, or on all its wires."""
    if constant == "transfer":
        return replace(spec, network=_slower(spec.network, factor))
    of_a_tier = _OF_A_TIER[constant]
    tiers = {name: of_a_tier(hardware, factor) for name, hardware in spec.hardware.items()}
    return replace(spec, hardware=tiers)


def _slower(network: NetworkSpec, factor: float) -> NetworkSpec:
    def link(spec: LinkSpec) -> LinkSpec:
        return replace(spec, latency_ms=spec.latency_ms * factor, gb_per_s=spec.gb_per_s / factor)

    return replace(
        network,
        same_node=network.same_node and link(network.same_node),
        cross_node=network.cross_node and link(network.cross_node),
        pairs=tuple(PairSpec(p.source, p.target, link(p.link)) for p in network.pairs),
    )
