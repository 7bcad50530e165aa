"""A cluster that cannot be is refused with one message that names the key and its value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import pytest
from examples import HARDWARE, NETWORK, cluster_of, conversation, engine, play, times
from omegaconf import OmegaConf

from conserve_gym.deployment import DEFAULT_DEPLOYMENT, Deployment
from conserve_gym.envs.configuration import ConfigurationError, load_scenario, validated
from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.envs.serving.hardware import PowerLaw
from conserve_gym.envs.serving.network_spec import NetworkSpec
from conserve_gym.envs.serving.step_time import StepTime
from conserve_gym.fleet import Role
from conserve_gym.ledger import TurnFinished
from conserve_gym.placement import Placement

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
            "network@cluster.network=l40s_pcie cluster.engines.1.node=2",
            "cluster.network.cross_node=None, but engines 0 and 1 stand in nodes 0 and 2",
        ),
        ("cluster.engines.0.node=-1", "cluster.engines.0.node=-1: .* or equal to 0"),
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
        (
            "cluster.engines.0.cap_w=301",
            "cluster.engines.0.cap_w=301 is above the tier's own 300 W",
        ),
        (
            "cluster.engines.1.cap_w=199",
            "cluster.engines.1.cap_w=199 is below 200 W, the lowest for which",
        ),
        ("cluster.engines.1.cap_w=0", "cluster.engines.1.cap_w=0: .* greater than 0"),
        (
            f"+hardware@{TIER}b=a40_qwen3_0.6b_300w cluster.engines.1.hardware=a40_300wb "
            f"{TIER}b.model=Qwen3-8B",
            "cluster.engines.1.hardware='a40_300wb' runs Qwen3-8B with 114688 KV bytes a token, "
            "but cluster.standalone='a40_300w' runs Qwen3-0.6B with 114688: .* one model",
        ),
        (
            f"+hardware@{TIER}b=a40_qwen3_0.6b_300w cluster.engines.0.hardware=a40_300wb "
            f"{TIER}b.figures.kv_bytes_per_token=1",
            "cluster.engines.0.hardware='a40_300wb' runs Qwen3-0.6B with 1 KV bytes .* one model",
        ),
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
        "a40_1p3d_200w": "prefill decode decode decode",
        "a40_1p7d": "prefill decode decode decode decode decode decode decode",
        "a40_2p2d": "prefill prefill decode decode",
        "a40_1m3d": "mixed decode decode decode",
        "a40_4mixed": "mixed mixed mixed mixed",
        "h100_1p3d": "prefill decode decode decode",
        "a100_1p3d": "prefill decode decode decode",
        "h100_prefill_a100_decode": "prefill decode decode decode",
        "h100_prefill_l40s_decode": "prefill decode decode decode",
    }.items():
        spec = load_scenario([f"cluster={name}"]).cluster
        assert spec.name == name
        assert " ".join(spec.fleet(Deployment()).roles) == roles


@pytest.mark.parametrize(
    ("cluster", "carried"),
    [
        ("a40_1p3d", "mixed steps (a40_300w)"),
        (
            "a40_1p3d_capped_decoders",
            "mixed steps (a40_300w) and decode, mixed steps (a40_200w)",
        ),
        ("h100_1p3d", "mixed steps, overhead (h100)"),
        (
            "h100_prefill_a100_decode",
            "mixed steps, overhead (h100) and scan, mixed steps, overhead (a100)",
        ),
        (
            "h100_prefill_l40s_decode",
            "mixed steps, overhead (h100) and scan, mixed steps, overhead, power (l40s)",
        ),
        ("a40_1p3d_200w", "decode, mixed steps (a40_200w) and mixed steps (a40_300w)"),
    ],
)
def test_a_cluster_says_in_one_line_what_was_carried_over(cluster: str, carried: str) -> None:
    caveats = load_scenario([f"cluster={cluster}"]).cluster.caveats
    assert caveats == (f"carried over, not measured there: {carried}",)


EMBEDDINGS_GB = 151_936 * 4096 * 2e-9  # of Qwen3-8B: held, but not read in every step


@pytest.mark.parametrize(
    ("cluster", "embeddings_gb"),
    [
        ("h100_1p3d", EMBEDDINGS_GB),
        ("a100_1p3d", EMBEDDINGS_GB),
        ("h100_prefill_a100_decode", EMBEDDINGS_GB),
        ("h100_prefill_l40s_decode", 0.0),  # Qwen3-0.6B ties them to its last layer
    ],
)
def test_kv_pools_are_what_weights_and_activations_leave_of_the_memory(
    cluster: str, embeddings_gb: float
) -> None:
    spec = load_scenario([f"cluster={cluster}"]).cluster
    for one in spec.engines:
        tier = spec.hardware[one.hardware]
        left_gb = 0.9 * tier.limits.memory_gb - tier.figures.weights_gb - embeddings_gb - 2.0
        blocks = int(left_gb * 1e9 / tier.figures.kv_bytes_per_token / one.block_tokens)
        assert one.kv_capacity_tokens == blocks * one.block_tokens


def test_engines_of_a_cluster_may_be_of_different_tiers_in_different_nodes() -> None:
    spec = load_scenario(["cluster=h100_prefill_a100_decode"]).cluster
    gpus = [spec.tier(one).gpu for one in spec.deployed(Deployment())]
    assert gpus == ["NVIDIA H100 80GB SXM", *["NVIDIA A100 80GB SXM"] * 3]
    assert spec.nodes == (0, 1, 1, 1)
    # A lone conversation of one turn: prefilled by the H100, moved between nodes, decoded by an
    # A100, all of it alone.
    lone = conversation(0.0, (8000, 8000, 2, 0.0))
    cluster = play(spec, Deployment(), [lone], [Placement(0, 1, math.inf)])
    h100, a100 = (StepTime(spec.hardware[name]) for name in ("h100", "a100"))
    assert spec.network.cross_node is not None
    prefill_s = h100.with_prefill(8000, 8000 * 4000.0, 0, 0, 0)
    move_s = spec.network.cross_node.exposed_s(8000 * spec.kv_bytes_per_token)
    decode_s = a100.decode_run(1, 7999).elapsed(2)
    expected = prefill_s + move_s + decode_s
    assert times(cluster, TurnFinished)[0, 0] == pytest.approx(expected, rel=1e-12)


def test_latencies_of_capped_engines_are_normalised_by_one_at_300_w() -> None:
    spec = load_scenario(["cluster=a40_1p3d_200w"]).cluster
    assert [spec.tier(one).power.cap_w for one in spec.deployed(Deployment())] == [200.0] * 4
    assert spec.hardware[spec.standalone].power.cap_w == 300.0


@pytest.mark.parametrize(
    ("network", "has_same_node", "has_cross_node"),
    [
        ("a40_pcie", True, True),
        ("a100_dgx", True, True),
        ("h100_dgx", True, True),
        ("h100_l40s", True, True),
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


def test_between_two_kinds_of_nodes_the_slower_end_counts() -> None:
    def network(name: str) -> NetworkSpec:
        one = ["cluster=a40_4mixed", "cluster.engines.0.count=1"]
        return load_scenario([f"network@cluster.network={name}", *one]).cluster.network

    h100, l40s, both = (network(name) for name in ("h100_dgx", "l40s_pcie", "h100_l40s"))
    assert h100.cross_node and l40s.same_node and both.cross_node
    assert both.same_node == l40s.same_node
    assert both.cross_node.latency_ms == h100.cross_node.latency_ms
    slower = min(h100.cross_node.gb_per_s, l40s.same_node.gb_per_s)
    assert both.cross_node.gb_per_s == slower


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


def test_every_field_of_a_deployment_can_be_set_without_a_plus() -> None:
    names = [field.name for field in fields(Deployment)]
    overrides = [f"deployment.{name}={DEFAULT_DEPLOYMENT.to_json()[name]}" for name in names]
    assert load_scenario(overrides).deployment == load_scenario().deployment == DEFAULT_DEPLOYMENT


def test_a_fleet_knows_how_fast_its_engines_are_beside_the_fastest() -> None:
    alike = load_scenario(["cluster=a40_1p3d"]).cluster.fleet(DEFAULT_DEPLOYMENT)
    assert alike.decode_speeds == (1.0,) * 4
    # A long prompt takes three steps instead of one where the budget is an engine's that decodes.
    assert alike.prefill_speeds == (1.0, *[pytest.approx(0.975, abs=0.005)] * 3)
    unlike = load_scenario(["cluster=h100_prefill_a100_decode"]).cluster
    h100, a100 = (StepTime(unlike.tier(engine)) for engine in unlike.engines)
    fleet = unlike.fleet(Deployment(all_mixed=True))
    decoding = (0, 0, 32, 32 * 8192)
    # The costs of a fleet are fitted to the laws, so that they err by some percent.
    prefill = h100.step(8192, 0) / a100.step(8192, 0)
    assert fleet.prefill_speeds == (1.0, *[pytest.approx(prefill, rel=0.1)] * 3)
    decode = h100.step(*decoding) / a100.step(*decoding)
    assert fleet.decode_speeds == (1.0, *[pytest.approx(decode, rel=0.1)] * 3)
    assert fleet.apart == (True, False, False, False)
