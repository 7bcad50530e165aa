"""A small hardware with round coefficients, and clusters of it, for answers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from conserve_gym.deployment import Deployment, Reservation
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.cluster_spec import ClusterSpec, EngineSpec
from conserve_gym.envs.serving.hardware import (
    DecodeLaw,
    EngineOverhead,
    GpuFigures,
    Hardware,
    MixedLaw,
    ModelFigures,
    PowerLaw,
    PrefillLaw,
    Provenance,
)
from conserve_gym.envs.serving.network_spec import LinkSpec, NetworkSpec
from conserve_gym.envs.serving.timeline import Timeline
from conserve_gym.envs.workloads.conversation import Conversation, Turn
from conserve_gym.fleet import Role
from conserve_gym.ledger import Event
from conserve_gym.placement import Placement

# A chunk of n prompt tokens after c cached ones: 2 ms + 0.1 ms n + 1 us n (c + n / 2).
# A step of decodes: 3 ms + 1 ms a sequence + 50 us a KV token, at least 10 ms + 0.2 ms a
# sequence. Beside prompt tokens a KV token costs 100 us.
HARDWARE = Hardware(
    gpu="example",
    model="example",
    prefill=PrefillLaw(
        floor_ms=0.0,
        base_ms=2.0,
        weights_ms=0.0,
        token_us=100.0,
        attention_ns=1000.0,
        scan_us=0.0,
    ),
    decode=DecodeLaw(
        floor_ms=10.0, floor_sequence_us=200.0, base_ms=3.0, sequence_us=1000.0, kv_us=50.0
    ),
    mixed=MixedLaw(tile_queries=math.sqrt(7500.0)),  # hypot(50, sqrt(7500)) = 100
    overhead=EngineOverhead(step_ms=0.0, sequence_us=0.0),
    power=PowerLaw(idle_w=50.0, base_w=100.0, cap_w=250.0, joule_per_gb=0.5, joule_per_tflop=2.0),
    limits=GpuFigures(peak_tflops=100.0, gb_per_s=1000.0, memory_gb=10.0),
    figures=ModelFigures(
        weights_gb=1.0,
        gflop_per_token=2.0,
        kflop_per_attended_token=500.0,
        kv_bytes_per_token=1e6,
    ),
    provenance=Provenance(
        source="round numbers",
        date="2026-01-01",
        derived=False,
        carried=(),
        holdout_error_pct={},
    ),
)

# With 1 MB a token, a move takes 4 ms + 0.1 ms a token, half of what the wire takes for it.
NETWORK = NetworkSpec(same_node=LinkSpec(latency_ms=4.0, gb_per_s=5.0, exposed_share=0.5))

NO_RESERVATION = Deployment(reservation=Reservation.NONE)


def engine(role: Role, **changes: Any) -> EngineSpec:
    """Return an engine with a budget of 100 tokens and 100 blocks of 16."""
    values = dict(
        role=role,
        hardware="example",
        count=1,
        token_budget=100,
        max_sequences=1024,
        kv_capacity_tokens=1600,
        block_tokens=16,
    )
    return EngineSpec(**(values | changes))  # type: ignore[arg-type]


def cluster_of(*engines: EngineSpec, network: NetworkSpec = NETWORK) -> ClusterSpec:
    """Return a cluster of the example hardware."""
    return ClusterSpec(
        name="example",
        hardware={"example": HARDWARE},
        engines=engines,
        network=network,
        mixed_token_budget=100,
        standalone="example",
    )


def conversation(arrival_s: float, *turns: tuple[int, int, int, float]) -> Conversation:
    """Return a conversation; a turn is (input, new, output tokens, gap in seconds)."""
    return Conversation(arrival_s, tuple(Turn(*turn) for turn in turns))


def play(
    spec: ClusterSpec,
    deployment: Deployment,
    conversations: Sequence[Conversation],
    placements: Sequence[Placement],
    timeline: Timeline | None = None,
) -> Cluster:
    """Run conversations to their end, each with the placement of its number."""
    cluster = Cluster(spec, deployment, conversations, timeline)
    while cluster.advance():
        cluster.place(placements[cluster.observe().conversation])
    return cluster


def decoding() -> tuple[Timeline, Cluster]:
    """Return a cluster with a run of decodes under way, and its timeline."""
    spec = cluster_of(engine(Role.MIXED))
    timeline = Timeline(spec.deployed(NO_RESERVATION))
    conversations = [conversation(0.0, (80, 80, 90, 0.0)), conversation(0.1, (20, 20, 2, 0.0))]
    cluster = Cluster(spec, NO_RESERVATION, conversations, timeline)
    cluster.advance()
    cluster.place(Placement(0, 0))
    cluster.advance()
    return timeline, cluster


def times(cluster: Cluster, kind: type[Event]) -> dict[tuple[int, int], float]:
    """Return when each (conversation, turn) had its event of one kind."""
    return {
        (event.conversation, event.turn): event.time
        for event in cluster.ledger
        if isinstance(event, kind)
    }
