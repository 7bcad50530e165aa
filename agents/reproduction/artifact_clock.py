"""An arm as the artifact measured it: the clock starts after admission, and runs are stitched.

Source: ``conversation.py``, ``s5_metrics.py``, ``plot_powercap.py`` and ``plot_perf_energy_bar.py``
of the artifact (see ``recording``). Queues for KV and for the prefill engine are left out. Where
the decoders run alone, latencies get what prefill and transfer of the first prompt took in the
recorded run, and energy is that of the decoders, of the prefill engine at work, and of its idleness
until the decoders have finished.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from conserve_gym.agents.reproduction.arms import Arm, Run
from conserve_gym.agents.reproduction.artifact_cluster import ArtifactCluster
from conserve_gym.agents.reproduction.detours import (
    OVERCOUNTED_TOKENS,
    Detours,
    VirtualPrefiller,
    misrouted,
)
from conserve_gym.agents.reproduction.polling_door import PollingDoor, ProxyDoor
from conserve_gym.agents.reproduction.recording import Draw, Prefills, prefills, with_joined_texts
from conserve_gym.agents.reproduction.token_gaps import last_turn_gaps
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.cluster_spec import ClusterSpec, EngineSpec
from conserve_gym.envs.serving.hardware import Hardware, PowerLaw, PrefillLaw
from conserve_gym.envs.serving.network_spec import LinkSpec, PairSpec
from conserve_gym.envs.serving.standalone import StandaloneEngine
from conserve_gym.envs.serving.timeline import Timeline
from conserve_gym.envs.workloads.conversation import Conversation
from conserve_gym.fleet import Role
from conserve_gym.metrics import SLO_FACTOR, RecordReader, statistics
from conserve_gym.policy import Policy


def play(spec: ClusterSpec, arm: Arm, drawn: Draw, misrouted_share: float) -> dict[str, float]:
    """Return an arm's metrics on the artifact's clock.

    Args:
        spec: The cluster, its prefill engine first.
        arm: The arm.
        drawn: What arrives.
        misrouted_share: Share of later turns that are misrouted, if the arm misroutes.

    Returns:
        Metrics by name: ``ttfet``, ``tbt``, ``e2e`` with a statistic each, where ``tbt`` has
        geometric mean and percentiles over tokens and ``tbt_mean`` over conversations' means.
    """
    policy = arm.policy()
    policy.reset(drawn.drawn_by)
    stitched = arm.run in (Run.DECODERS, Run.FREE_PREFILL)
    recorded = prefills(spec, drawn) if stitched else None
    detours = None
    if arm.overcounts is not None and recorded is not None:
        detours = _detours(drawn, recorded, misrouted_share, overcounts=arm.overcounts)
    cluster, timeline = _cluster(spec, arm, policy, drawn, recorded, detours)
    while cluster.advance():
        cluster.place(policy.decide(cluster.observe()))

    lone = StandaloneEngine.of(spec)
    standalone = [lone.latencies(with_joined_texts(turns, 1)) for turns in drawn.turns]
    records = sorted(RecordReader().read(cluster.ledger), key=lambda record: record.conversation)
    before = np.array(recorded.seconds if recorded else [0.0] * len(records))
    if detours is not None:
        before += detours.delays_s()
    placed = np.array([record.placed_s for record in records]) - before
    first = np.array([record.first_token_s for record in records])
    ended = np.array([record.ended_s for record in records])
    mean_gap = np.array([record.last_tbt_s for record in records])
    alone = np.array(standalone)
    has_gap = alone[:, 1] > 0.0
    means = mean_gap[has_gap] / alone[has_gap, 1]
    gaps = last_turn_gaps(cluster.ledger, timeline, alone[:, 1].tolist())

    tokens = sum(record.context_tokens + record.output_tokens for record in records)
    return {
        **statistics("ttfet", (first - placed) / alone[:, 0]),
        **statistics("tbt", gaps),
        "tbt_slo_violation_pct": 100.0 * float((means > SLO_FACTOR).mean()),
        **statistics("tbt_mean", means),
        **statistics("e2e", (ended - placed) / alone[:, 2]),
        "tokens_per_joule": tokens / _joules(cluster, arm, recorded, detours),
        "span_s": cluster.now,
        "preemptions": float(sum(engine.preemptions for engine in cluster.engines)),
    }


def _detours(
    drawn: Draw, recorded: Prefills, misrouted_share: float, *, overcounts: bool
) -> Detours:
    return Detours(
        misrouted(drawn, misrouted_share),
        VirtualPrefiller(drawn.offered_s, recorded.left_s(drawn)),
        OVERCOUNTED_TOKENS if overcounts else 0,
    )


def _cluster(
    spec: ClusterSpec,
    arm: Arm,
    policy: Policy,
    drawn: Draw,
    recorded: Prefills | None,
    detours: Detours | None,
) -> tuple[ArtifactCluster, Timeline]:
    """Return the cluster that the artifact runs, and where it writes what ran when."""
    times: Sequence[float] = drawn.starts_s
    first_joined = 1
    if recorded is not None:
        spec = _decoders_alone(spec, all_engines=arm.run is Run.FREE_PREFILL)
        left_s = recorded.left_s(drawn)
        times = [time - left_s[0] for time in left_s]
        first_joined = 2  # the first turn's output comes back with its prompt, as tokens
    conversations = [
        Conversation(time, with_joined_texts(turns, first_joined))
        for time, turns in zip(times, drawn.turns, strict=True)
    ]
    timeline = Timeline(spec.deployed(policy.deployment))
    door = ProxyDoor if arm.run is Run.PROXIED else PollingDoor
    cluster = ArtifactCluster(spec, policy.deployment, conversations, timeline, door, detours)
    return cluster, timeline


def _joules(
    cluster: Cluster, arm: Arm, recorded: Prefills | None, detours: Detours | None
) -> float:
    joules = sum(sum(engine.energy_j().values()) for engine in cluster.engines)
    if recorded is None or arm.run is Run.FREE_PREFILL:
        return joules
    joules += recorded.joules + recorded.idle_w * max(cluster.now - recorded.busy_s, 0.0)
    if detours is not None:
        joules += detours.seconds * recorded.joules / recorded.busy_s
    return joules


def _decoders_alone(spec: ClusterSpec, *, all_engines: bool) -> ClusterSpec:
    """Return the cluster with a prefill engine and wires that take neither time nor energy.

    Args:
        spec: The cluster.
        all_engines: Whether its prefill engines decode too, and only decode.
    """
    groups: Sequence[EngineSpec] = [
        replace(group, role=Role.DECODE, token_budget=spec.mixed_token_budget)
        for group in spec.engines
        if all_engines or group.role.decodes
    ]
    source = spec.engines[0]
    hardware = spec.hardware[source.hardware]
    free = replace(
        source,
        role=Role.PREFILL,
        hardware="recorded",
        count=1,
        token_budget=2**31,
        kv_capacity_tokens=2**31,
        cap_w=None,
    )
    at_once = LinkSpec(latency_ms=0.0, gb_per_s=1e12, exposed_share=1.0)
    decoders = sum(group.count for group in groups)
    return replace(
        spec,
        hardware={**spec.hardware, "recorded": _at_no_cost(hardware)},
        engines=(free, *groups),
        network=replace(
            spec.network,
            pairs=tuple(PairSpec(0, 1 + decoder, at_once) for decoder in range(decoders)),
        ),
    )


def _at_no_cost(hardware: Hardware) -> Hardware:
    """Return a tier whose prompts take a nanosecond and no energy."""
    return replace(
        hardware,
        prefill=PrefillLaw(
            floor_ms=0.0,
            base_ms=1e-6,
            weights_ms=0.0,
            token_us=0.0,
            attention_ns=0.0,
            scan_us=0.0,
        ),
        power=PowerLaw(idle_w=0.0, base_w=0.0, cap_w=1.0, joule_per_gb=0.0, joule_per_tflop=0.0),
    )
