"""An arm as its users would see it: one run, from arrival, every queue counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from conserve_gym.agents.evaluation import measured
from conserve_gym.agents.reproduction.arms import Arm, Run
from conserve_gym.agents.reproduction.detours import MisroutingCluster, Turns
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.envs.workloads.conversation import Conversation
from conserve_gym.fleet import Role


def play(
    spec: ClusterSpec,
    arm: Arm,
    conversations: Sequence[Conversation],
    misrouted_turns: Turns,
    seed: int,
) -> dict[str, float]:
    """Return an arm's metrics on the user's clock, those of ``conserve_gym.metrics``.

    Args:
        spec: The cluster.
        arm: The arm.
        conversations: What arrives.
        misrouted_turns: What is misrouted, if the arm misroutes.
        seed: Of the policy.
    """
    policy = arm.policy()
    if arm.run is Run.FREE_PREFILL:
        spec = _with_mixed_prefillers(spec)
    if arm.overcounts is None:
        cluster = Cluster(spec, policy.deployment, conversations)
    else:
        cluster = MisroutingCluster(spec, policy.deployment, conversations, misrouted_turns)
    metrics = measured(cluster, policy, seed).metrics
    return {name: value for name, value in metrics.items() if not name.startswith("artifact_")}


def _with_mixed_prefillers(spec: ClusterSpec) -> ClusterSpec:
    """Return a cluster whose prefill engines decode too."""
    return replace(
        spec,
        engines=tuple(
            group
            if group.role.decodes
            else replace(group, role=Role.MIXED, token_budget=spec.mixed_token_budget)
            for group in spec.engines
        ),
    )
