"""The simulated side of a twin: a cluster of what was measured, and episodes on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from conserve_gym.agents.evaluation import Episode, measured
from conserve_gym.agents.runtime.scheduler import Scheduler
from conserve_gym.agents.twin.spec import TwinSpec
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.cluster_spec import ClusterSpec, EngineSpec
from conserve_gym.envs.serving.hardware import Hardware
from conserve_gym.envs.serving.network_spec import LinkSpec, NetworkSpec
from conserve_gym.envs.workloads.conversation import Conversation


def cluster(spec: TwinSpec, hardware: Hardware, link: LinkSpec) -> ClusterSpec:
    """Return the cluster that stands for the engines of a twin; KV is reused to the token."""
    engines = tuple(
        EngineSpec(
            role,
            "measured",
            1,
            token_budget=spec.token_budget,
            max_sequences=spec.max_sequences,
            kv_capacity_tokens=kv_tokens,
            block_tokens=1,
        )
        for role, kv_tokens in zip(spec.roles, spec.kv_tokens, strict=True)
    )
    return ClusterSpec(
        "twin", {"measured": hardware}, engines, NetworkSpec(link), spec.token_budget, "measured"
    )


def play(cluster: ClusterSpec, policy: Path, conversations: Sequence[Conversation]) -> Episode:
    """Play an episode with an exported policy."""
    scheduler = Scheduler.load(policy)
    return measured(Cluster(cluster, scheduler.deployment, conversations), scheduler, 0)
