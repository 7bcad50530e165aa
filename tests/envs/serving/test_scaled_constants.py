"""Scaled constants: each changes what it says, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conserve_gym.envs.configuration import load_scenario
from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.envs.serving.network_spec import LinkSpec, PairSpec
from conserve_gym.envs.serving.scaled_constants import Constant, scaled

CLUSTER = load_scenario(["cluster=h100_prefill_l40s_decode"]).cluster
WIRE = LinkSpec(latency_ms=1.0, gb_per_s=10.0, exposed_share=0.5)
SPEC = replace(
    CLUSTER,
    network=replace(CLUSTER.network, cross_node=WIRE, pairs=(PairSpec(0, 1, WIRE),)),
)
CONSTANTS = get_args(Constant)
LINKS = ("same_node", "cross_node", "pairs.0.link")
# What is multiplied; a power of -1 is divided.
EXPECTED: dict[str, dict[str, int]] = {
    "prefill": {
        "prefill.base_ms": 1,
        "prefill.weights_ms": 1,
        "prefill.token_us": 1,
        "prefill.attention_ns": 1,
        "prefill.scan_us": 1,
        "mixed.tile_queries": -1,
    },
    "decode floor": {"decode.floor_ms": 1, "decode.floor_sequence_us": 1},
    "decode slope": {"decode.kv_us": 1, "decode.sequence_us": 1},
    "mixed penalty": {"mixed.tile_queries": 1},
    "power": {"power.joule_per_gb": 1, "power.joule_per_tflop": 1},
    "transfer": {"latency_ms": 1, "gb_per_s": -1},
}


def leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Yield every value in a specification by its path."""
    if is_dataclass(value):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
    elif isinstance(value, dict):
        parts = value
    elif isinstance(value, tuple):
        parts = {str(i): part for i, part in enumerate(value)}
    else:
        yield path, value
        return
    for name, part in parts.items():
        yield from leaves(part, f"{path}.{name}" if path else name)


def prefixes(constant: str) -> list[str]:
    if constant == "transfer":
        return [f"network.{link}." for link in LINKS]
    return [f"hardware.{tier}." for tier in SPEC.hardware]


def test_every_constant_is_tested_on_more_than_one_tier() -> None:
    assert EXPECTED.keys() == set(CONSTANTS)
    assert len(SPEC.hardware) > 1


@given(st.sampled_from(CONSTANTS), st.floats(0.1, 10.0))
def test_a_constant_changes_what_it_says_and_nothing_else(constant: str, factor: float) -> None:
    before, after = dict(leaves(SPEC)), dict(leaves(scaled(SPEC, constant, factor)))
    assert before.keys() == after.keys()
    powers = {
        prefix + name: power
        for prefix in prefixes(constant)
        for name, power in EXPECTED[constant].items()
    }
    assert powers.keys() <= before.keys()
    for path, value in before.items():
        if path in powers:
            assert isinstance(value, float)
            assert after[path] == pytest.approx(value * factor ** powers[path], rel=1e-12), path
        else:
            assert after[path] == value, path


@pytest.mark.parametrize("constant", CONSTANTS)
def test_a_factor_of_one_changes_nothing(constant: str) -> None:
    assert scaled(SPEC, constant, 1.0) == SPEC
    assert scaled(SPEC, constant, 1.5) != SPEC


@given(st.floats(0.1, 10.0))
def test_slower_prompts_leave_the_penalty_of_mixed_steps(factor: float) -> None:
    """What a KV token read costs beside a prompt: hypot(kv, tile attention)."""

    def penalties_us(spec: ClusterSpec) -> list[float]:
        return [
            math.hypot(tier.decode.kv_us, tier.mixed.tile_queries * tier.prefill.attention_ns / 1e3)
            for tier in spec.hardware.values()
        ]

    assert penalties_us(scaled(SPEC, "prefill", factor)) == pytest.approx(
        penalties_us(SPEC), rel=1e-12
    )
    more = penalties_us(scaled(SPEC, "mixed penalty", 2.0))
    assert all(one > other for one, other in zip(more, penalties_us(SPEC), strict=True))


def test_transfers_take_as_many_times_as_long() -> None:
    slower = scaled(SPEC, "transfer", 3.0).network
    assert slower.same_node is not None and SPEC.network.same_node is not None
    for size in (0.0, 1e6, 1e9):
        before = SPEC.network.same_node.exposed_s(size)
        assert slower.same_node.exposed_s(size) == pytest.approx(3.0 * before)


def test_wires_that_are_not_there_stay_away() -> None:
    one_node = load_scenario(["cluster=a40_1p3d"]).cluster
    bare = replace(one_node, network=replace(one_node.network, cross_node=None))
    assert scaled(bare, "transfer", 2.0).network.cross_node is None
