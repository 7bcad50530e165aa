"""What could be won by knowing the future: a bound that no scheduler can run.

At each decision the cluster is copied, with the real future in it. Every action is tried and played
on to the episode's end by a base policy, and the one whose end is best is taken. What is best is
kept with the choices that led to it, and left only for something better (a fortified rollout:
Bertsekas, Tsitsiklis and Wu, Journal of Heuristics 3, 1997), so that an episode never ends worse
than with the base policy.

It is greedy, so that more than it finds may be there to win.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from conserve_gym.actions import actions_of
from conserve_gym.agents.evaluation import Episode, finished
from conserve_gym.envs.configuration import ConfigurationError, Scenario
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.standalone import Standalone, StandaloneEngine
from conserve_gym.envs.workloads.workload import draw_episode
from conserve_gym.metrics import RecordReader
from conserve_gym.placement import Placement
from conserve_gym.policy import Policy


class Value(NamedTuple):
    """How good an episode's end is; larger is better.

    Attributes:
        attained: Conversations with all three latencies within their SLOs.
        closeness: Less the geometric mean over all conversations of their worst normalised latency,
            as a logarithm: among equals, the faster one.
    """

    attained: int
    closeness: float


class _Branch:
    """An episode under way with its policy, and what ended so far."""

    def __init__(self, cluster: Cluster, policy: Policy, alone: list[Standalone]) -> None:
        self.cluster = cluster
        self.policy = policy
        self._alone = alone
        self._reader = RecordReader()
        self._read = 0
        self._attained = 0
        self._missed = 0
        self._log_worst = 0.0

    def copied(self) -> _Branch:
        twin = copy.copy(self)
        twin.cluster, twin.policy, twin._reader = copy.deepcopy(
            (self.cluster, self.policy, self._reader)
        )
        return twin

    def take_in(self) -> None:
        """Count the conversations that have ended since the last time."""
        for record in self._reader.read(self.cluster.ledger.since(self._read)):
            latencies = record.normalised(self._alone[record.conversation])
            if latencies.attains_slo:
                self._attained += 1
            else:
                self._missed += 1
            self._log_worst += float(np.log(np.nanmax(latencies)))
        self._read = len(self.cluster.ledger)

    def play_on(self, best: Value) -> tuple[Value, list[Placement]] | None:
        """Play to the end, or until it cannot become better than the best one.

        Returns:
            Its value and the placements that led there; None if it was given up.
        """
        placements = []
        while self.cluster.advance():
            self.take_in()
            if self._missed > len(self._alone) - best.attained:
                return None
            placements.append(self.policy.decide(self.cluster.observe()))
            self.cluster.place(placements[-1])
        self.take_in()
        return Value(self._attained, -self._log_worst / len(self._alone)), placements


def play_look_ahead(
    scenario: Scenario,
    base: Policy,
    seed: int,
    actions: str,
) -> Episode:
    """Play an episode with the real future at hand.

    Args:
        scenario: What it runs on.
        base: Whose placements are tried first, and who plays on after each that is tried.
        seed: Seed of the workload and its arrivals.
        actions: Kind of action that is tried: ``conversation``, ``turn`` or ``joint``.

    Raises:
        ConfigurationError: There are no such actions on this cluster.
    """
    spec = scenario.cluster
    try:
        tried = actions_of(
            actions, spec.fleet(base.deployment), scenario.offload_above, base.deployment.may_hold
        )
    except ValueError as error:
        raise ConfigurationError(f"look_ahead.actions={actions!r}: {error}") from None
    drawn = draw_episode(scenario.workload, scenario.arrivals, np.random.default_rng(seed))
    lone = StandaloneEngine.of(spec)
    alone = [lone.latencies(one.turns) for one in drawn]
    base.reset(seed)
    branch = _Branch(Cluster(spec, base.deployment, drawn), base, alone)
    played = branch.copied().play_on(Value(0, 0.0))
    assert played is not None
    best, plan = played
    while branch.cluster.advance():
        branch.take_in()
        observation = branch.cluster.observe()
        open_to = np.flatnonzero(tried.mask(observation)).tolist()
        options = {tried.placement(observation, action) for action in open_to} - {plan[0]}
        for option in sorted(options):
            twin = branch.copied()
            twin.policy.decide(observation)  # so that its own state is that of a decision later
            twin.cluster.place(option)
            played = twin.play_on(best)
            if played is not None and played[0] > best:
                best, plan = played[0], [option, *played[1]]
        branch.policy.decide(observation)
        branch.cluster.place(plan.pop(0))
    episode = finished(branch.cluster, base, seed)
    return replace(episode, policy=f"look_ahead({base.name})", sees_future=True)
