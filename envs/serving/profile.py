"""What the operator of a cluster knows: profiles of its engines and of the wires between them."""

from __future__ import annotations

from conserve_gym.deployment import DEFAULT_DEPLOYMENT
from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.envs.serving.step_profile import StepProfile
from conserve_gym.site import Site


class LinkProfile:
    """Lone transfers between a cluster's engines.

    Args:
        spec: The cluster.
    """

    def __init__(self, spec: ClusterSpec) -> None:
        """Prepare the wires."""
        self._spec = spec

    def transfer_s(self, source: int, target: int, tokens: int) -> float:
        """Return what a lone move of KV adds to a turn's latency, in seconds."""
        link = self._spec.network.link(source, target, self._spec.nodes)
        return link.exposed_s(tokens * self._spec.kv_bytes_per_token)


def site(spec: ClusterSpec) -> Site:
    """Return what the operator of a cluster knows."""
    return Site(
        spec.fleet(DEFAULT_DEPLOYMENT),
        tuple(
            StepProfile(spec.tier(engine), engine.token_budget)
            for engine in spec.deployed(DEFAULT_DEPLOYMENT)
        ),
        LinkProfile(spec),
    )
