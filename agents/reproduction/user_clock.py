"""An arm as its users would see it: one run, from arrival, every queue counted."""

from __future__ import annotations

from dataclasses import replace

from conserve_gym.agents.evaluation import measured
from conserve_gym.agents.reproduction.arms import Arm, Run
from conserve_gym.agents.reproduction.detours import MisroutingCluster, misrouted
from conserve_gym.agents.reproduction.recording import Draw
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.envs.workloads.conversation import Conversation
from conserve_gym.fleet import Role


def play(
    spec: ClusterSpec,
    arm: Arm,
    drawn: Draw,
    misrouted_share: float,
) -> dict[str, float]:
    """Return an arm's metrics on the user's clock, those of ``conserve_gym.metrics``.

    Args:
        spec: The cluster.
        arm: The arm.
        drawn: What arrives, at the times at which the recorded prefiller began.
        misrouted_share: Share of later turns that are misrouted, if the arm misroutes.
    """
    policy = arm.policy()
    conversations = [
        Conversation(time, turns) for time, turns in zip(drawn.starts_s, drawn.turns, strict=True)
    ]
    if arm.run is Run.FREE_PREFILL:
        spec = _with_mixed_prefillers(spec)
    if arm.overcounts is None:
        cluster = Cluster(spec, policy.deployment, conversations)
    else:
        turns = misrouted(drawn, misrouted_share)
        cluster = MisroutingCluster(spec, policy.deployment, conversations, turns)
    metrics = measured(cluster, policy, drawn.drawn_by).metrics
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
