"""Step and transfer times of a cluster's engines, as their operator would have profiled them.

They are the serving model's own laws: rules that need a profile are given a perfect one.
"""

from __future__ import annotations

from conserve_gym.deployment import DEFAULT_DEPLOYMENT
from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.envs.serving.hardware import Hardware
from conserve_gym.envs.serving.step_time import StepTime
from conserve_gym.site import Site


class StepProfile:
    """The step law of an engine with its token budget.

    Args:
        hardware: Tier of the engine.
        token_budget: Tokens that a step may carry.
    """

    def __init__(self, hardware: Hardware, token_budget: int) -> None:
        """Prepare the law."""
        self.token_budget = token_budget
        self.step_s = StepTime(hardware).step

    def prefill_s(self, new_tokens: int, context_tokens: int) -> float:
        """Return the seconds of a prompt alone on the engine, in chunks of its token budget."""
        seconds, end = 0.0, context_tokens + new_tokens
        while context_tokens < end:
            chunk = min(end - context_tokens, self.token_budget)
            seconds += self.step_s(chunk, context_tokens)
            context_tokens += chunk
        return seconds


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
