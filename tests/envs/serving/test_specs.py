"""A cluster that cannot be is refused with one message that names the key and its value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from examples import HARDWARE, NETWORK, cluster_of, engine
from omegaconf import OmegaConf

from conserve_gym.deployment import Deployment
from conserve_gym.envs.configuration import ConfigurationError, load_scenario, validated
from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.envs.serving.hardware import PowerLaw
from conserve_gym.fleet import Role

TIER = "cluster.hardware.a40_300w"
WIRES = "cluster.network.same_node"


def pairs(*ends: tuple[int, int]) -> str:
    link = "{latency_ms:1,gb_per_s:1,exposed_share:1}"
    specs = (f"{{source:{source},target:{target},link:{link}}}" for source, target in ends)
    return f"+cluster.network.pairs=[{','.join(specs)}]"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (f"{TIER}.prefill.token_us=-1", f"{TIER}.prefill.token_us=-1: .* greater than or equal"),
        (f"{TIER}.limits.gb_per_s=0", f"{TIER}.limits.gb_per_s=0: .* greater than 0"),
        (f"{TIER}.decode.kv_us=fast", f"{TIER}.decode.kv_us='fast': .* valid number"),
        (f"{TIER}.decode.kv_us=null", f"{TIER}.decode.kv_us=None: .* valid number"),
        (f"{TIER}.decode.kv_us=1e999", f"{TIER}.decode.kv_us=inf: .* finite number"),
        (f"{TIER}.mixed.tile_queries=-1", f"{TIER}.mixed.tile_queries=-1: .* or equal to 0"),
        (f"+{TIER}.mixed.kv_factor=1", f"{TIER}.mixed.kv_factor=1: Unexpected"),
        (f"{TIER}.power.idle_w=120", f"{TIER}.power=.*'idle_w': 120, 'base_w': 97.*idle_w <= base"),
        (f"{TIER}.power.cap_w=90", f"{TIER}.power=.*'cap_w': 90.*base_w <= cap_w must hold"),
        (f"{WIRES}.latency_ms=-2", f"{WIRES}.latency_ms=-2: .* or equal to 0"),
        (f"{WIRES}.gb_per_s=0", f"{WIRES}.gb_per_s=0: .* greater than 0"),
        (f"{WIRES}.exposed_share=0", f"{WIRES}.exposed_share=0: .* greater than 0"),
        (f"{WIRES}.exposed_share=1.1", f"{WIRES}.exposed_share=1.1: .* or equal to 1"),
        (
            "cluster.network.same_node=null",
            "cluster.network.same_node=None, but engines 0 and 1 stand in nodes 0 and 0",
        ),
        (
            "network@cluster.network=l40s_pcie +cluster.engines.1.node=2",
            "cluster.network.cross_node=None, but engines 0 and 1 stand in nodes 0 and 2",
        ),
        ("+cluster.engines.0.node=-1", "cluster.engines.0.node=-1: .* or equal to 0"),
        (pairs((0, 1), (4, 0)), r"cluster.network.pairs.1.source=4 is none of the 4 engines"),
        (pairs((0, 5)), r"cluster.network.pairs.0.target=5 is none of the 4 engines"),
        (pairs((-1, 0)), r"cluster.network.pairs.0.source=-1: .* or equal to 0"),
        (pairs((0, 1), (2, 2)), "cluster.network.pairs.1.target=2 is the source too"),
        (
            pairs((0, 1), (1, 0), (0, 1)),
            "cluster.network.pairs.2: source=0, target=1 is named twice",
        ),
        ("cluster.engines.0.role=draft", "cluster.engines.0.role='draft': .*'prefill', 'decode'"),
        (
            "cluster.engines.1.hardware=h100",
            "cluster.engines.1.hardware='h100' is none .* a40_300w",
        ),
        ("cluster.standalone=h100", "cluster.standalone='h100' is none of the tiers: a40_300w"),
        ("cluster.engines.1.role=prefill", r"no engine decodes: .*\['prefill', 'prefill'\]"),
        ("cluster.engines=[]", r"no engine decodes: engines have roles \[\]"),
        ("cluster.engines.0.count=0", "cluster.engines.0.count=0: .* greater than 0"),
        ("cluster.engines.0.token_budget=1.5", "cluster.engines.0.token_budget=1.5: .* integer"),
        (
            "cluster.engines.1.kv_capacity_tokens=100",
            "cluster.engines.1.kv_capacity_tokens=100 is not a whole number of blocks of 16",
        ),
    ],
)
def test_what_cannot_be_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_scenario(override.split(" "))
    assert "\n" not in str(caught.value)


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_scenario([f"{TIER}.prefill.token_us=-1", "cluster.engines.0.role=draft"])
    assert f"{TIER}.prefill.token_us=-1" in str(caught.value)
    assert "cluster.engines.0.role='draft'" in str(caught.value)


def test_a_part_can_be_validated_alone() -> None:
    values = dict(idle_w=50.0, base_w=60.0, cap_w=70.0, joule_per_gb=0.1, joule_per_tflop=1.0)

    def power(section: Mapping[str, Any]) -> PowerLaw:
        return validated(PowerLaw, OmegaConf.create(dict(section)), "power")

    assert power(values) == PowerLaw(**values)
    assert power(values | {"idle_w": 70.0, "base_w": 70.0}).base_w == 70.0
    with pytest.raises(ConfigurationError, match=r"power\.joule_per_gb=-0\.1"):
        power(values | {"joule_per_gb": -0.1})
    with pytest.raises(ConfigurationError, match="idle_w <= base_w <= cap_w must hold"):
        power(values | {"idle_w": 61.0})


def test_the_packaged_clusters_are_valid() -> None:
    for name, roles in {
        "a40_1p3d": "prefill decode decode decode",
        "a40_1p3d_capped_decoders": "prefill decode decode decode",
        "a40_4mixed": "mixed mixed mixed mixed",
    }.items():
        spec = load_scenario([f"cluster={name}"]).cluster
        assert spec.name == name
        assert " ".join(spec.fleet(Deployment()).roles) == roles


@pytest.mark.parametrize(
    ("network", "has_same_node", "has_cross_node"),
    [
        ("a40_pcie", True, True),
        ("a100_dgx", True, True),
        ("h100_dgx", True, True),
        ("l40s_pcie", True, False),
        ("h800_roce", False, True),
    ],
)
def test_the_packaged_networks_are_valid(
    network: str, has_same_node: bool, has_cross_node: bool
) -> None:
    two_engines = ["cluster=a40_4mixed", "cluster.engines.0.count=1"]
    spec = load_scenario([f"network@cluster.network={network}", *two_engines]).cluster.network
    assert (spec.same_node is not None) == has_same_node
    assert (spec.cross_node is not None) == has_cross_node


def test_the_exposed_time_of_the_a40_is_what_was_measured() -> None:
    spec = load_scenario().cluster
    assert spec.network.same_node is not None
    for tokens in (2_000, 16_000, 60_000):
        exposed_s = spec.network.same_node.exposed_s(tokens * spec.kv_bytes_per_token)
        assert exposed_s == pytest.approx(5.27e-3 + 0.985e-6 * tokens, rel=1e-4)


def test_groups_become_engines_in_order() -> None:
    spec = cluster_of(
        engine(Role.PREFILL, count=2, kv_capacity_tokens=160),
        engine(Role.DECODE, count=1, node=3),
        network=replace(NETWORK, cross_node=NETWORK.same_node),
    )
    fleet = spec.fleet(Deployment())
    assert fleet.roles == (Role.PREFILL, Role.PREFILL, Role.DECODE)
    assert fleet.kv_capacity_tokens == (160, 160, 1600)
    assert spec.nodes == (0, 0, 3)
    assert [one.count for one in spec.deployed(Deployment())] == [1, 1, 1]


def test_an_arm_may_make_all_engines_mixed() -> None:
    spec = replace(
        cluster_of(engine(Role.PREFILL, token_budget=500), engine(Role.DECODE)),
        mixed_token_budget=70,
    )
    deployed = spec.deployed(Deployment(all_mixed=True))
    assert [(one.role, one.token_budget) for one in deployed] == [(Role.MIXED, 70)] * 2
    assert [one.token_budget for one in spec.deployed(Deployment())] == [500, 100]


def test_kv_bytes_are_those_of_the_standalone_tier() -> None:
    spec: ClusterSpec = cluster_of(engine(Role.MIXED))
    assert spec.kv_bytes_per_token == HARDWARE.figures.kv_bytes_per_token
