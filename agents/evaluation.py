"""Plays policies on the same episodes and collects every metric."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from time import perf_counter_ns

import numpy as np

from conserve_gym.agents.runtime.scheduler import Scheduler
from conserve_gym.envs.configuration import Scenario
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.standalone import StandaloneEngine
from conserve_gym.envs.serving.timeline import Timeline
from conserve_gym.envs.workloads.workload import draw_episode
from conserve_gym.ledger import Ledger
from conserve_gym.metrics import Normalised, RecordReader, summarise
from conserve_gym.policy import Policy


@dataclass(frozen=True)
class Episode:
    """One policy on one seed.

    Attributes:
        policy: Name of the policy.
        sees_future: Whether it used what no scheduler can know.
        seed: Seed of the workload and its arrivals.
        metrics: Every metric by name.
        energy_kj: Energy of each engine in each phase by name, which add up to the metric of that
            name; where arms give engines other roles, means and differences say nothing.
        normalised: Latencies of each conversation over its standalone ones, by arrival.
        ledger: What happened.
        decision_ns: What each decision took by the wall clock, without the observation.
    """

    policy: str
    sees_future: bool
    seed: int
    metrics: dict[str, float]
    energy_kj: dict[str, float]
    normalised: tuple[Normalised, ...]
    ledger: Ledger
    decision_ns: tuple[int, ...] = field(default=(), compare=False)


def play(
    scenario: Scenario, policy: Policy, seed: int, timeline: Timeline | None = None
) -> Episode:
    """Play one episode; an environment that is reset with the same seed draws the same one.

    Args:
        scenario: What it runs on.
        policy: Who places the conversations.
        seed: Seed of the workload and its arrivals.
        timeline: Where to write down what runs when.
    """
    conversations = draw_episode(scenario.workload, scenario.arrivals, np.random.default_rng(seed))
    return measured(
        Cluster(scenario.cluster, policy.deployment, conversations, timeline), policy, seed
    )


def measured(cluster: Cluster, policy: Policy, seed: int) -> Episode:
    """Play a cluster's episode from its start to its end.

    Args:
        cluster: A cluster that has not begun.
        policy: Who places the conversations.
        seed: Of the policy's own randomness.
    """
    policy.reset(seed)
    decision_ns = []
    while cluster.advance():
        observation = cluster.observe()
        began = perf_counter_ns()
        placement = policy.decide(observation)
        decision_ns.append(perf_counter_ns() - began)
        cluster.place(placement)
    return replace(finished(cluster, policy, seed), decision_ns=tuple(decision_ns))


def finished(cluster: Cluster, policy: Policy, seed: int) -> Episode:
    """Return what an episode that has come to its end reports.

    Args:
        cluster: A cluster whose conversations have all ended.
        policy: Who placed them.
        seed: Of the episode.
    """
    reader = RecordReader()
    records = sorted(reader.read(cluster.ledger), key=lambda record: record.conversation)
    spec = cluster.spec
    lone = StandaloneEngine.of(spec)
    standalone = [lone.latencies(conversation.turns) for conversation in cluster.conversations]
    metrics = summarise(
        records,
        standalone,
        joules=cluster.meter(),
        output_by_engine=reader.output_by_engine,
        decoders=cluster.fleet.decoders,
        kv_bytes_per_token=spec.kv_bytes_per_token,
    )
    metrics["preemptions"] = float(sum(engine.preemptions for engine in cluster.engines))
    energy_kj = {
        f"engine_{i}_{phase}_kj": joules * 1e-3
        for i, engine in enumerate(cluster.engines)
        for phase, joules in engine.energy_j().items()
    }
    if isinstance(policy, Scheduler):
        metrics["fallback_pct"] = 100.0 * policy.fallbacks / policy.decisions
    return Episode(
        policy.name,
        policy.deployment.sees_future,
        seed,
        metrics,
        energy_kj,
        tuple(r.normalised(s) for r, s in zip(records, standalone, strict=True)),
        cluster.ledger,
    )
