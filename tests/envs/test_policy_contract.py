"""The contract, over the registry: no honest policy decides by what is still to come.

Twin worlds share a past and differ in their futures. A policy's decisions must be the same in both
up to the first event that differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from twin_worlds import shared_past, twin_of

from conserve_gym.baselines.colocate import Colocate
from conserve_gym.baselines.registry import BASELINES, make_baseline
from conserve_gym.envs.configuration import Scenario, load_scenario
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.profile import site
from conserve_gym.envs.workloads.conversation import Conversation
from conserve_gym.envs.workloads.workload import draw_episode
from conserve_gym.observation import Observation
from conserve_gym.placement import Placement
from conserve_gym.policy import Policy, Reads, reads

HONEST = [name for name, baseline in BASELINES.items() if baseline.reads is not Reads.FUTURE]
SEEDS = range(4)


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    """A cluster whose KV is scarce, so that the door and every queue matter."""
    loaded = load_scenario(["workload.conversations=20", "arrivals.rate=4"])
    engines = tuple(replace(engine, kv_capacity_tokens=60_000) for engine in loaded.cluster.engines)
    return replace(loaded, cluster=replace(loaded.cluster, engines=engines))


Decision = tuple[int, Placement]
"""Events before it, and what was decided."""


def played(
    scenario: Scenario, policy: Policy, episode: Sequence[Conversation]
) -> tuple[Cluster, list[Decision]]:
    cluster = Cluster(scenario.cluster, policy.deployment, episode)
    policy.reset(0)
    decisions = []
    while cluster.advance():
        placement = policy.decide(cluster.observe())
        decisions.append((len(cluster.ledger), placement))
        cluster.place(placement)
    return cluster, decisions


def decisions_of_twins(
    scenario: Scenario, policy: Callable[[Sequence[Conversation]], Policy], seed: int
) -> tuple[int, int]:
    """Return (decisions in the shared past, how many of them differ)."""
    rng = np.random.default_rng(seed)
    episode = draw_episode(scenario.workload, scenario.arrivals, np.random.default_rng(seed))
    twin = twin_of(episode, 4, rng)
    one, first = played(scenario, policy(episode), episode)
    other, second = played(scenario, policy(twin), twin)
    shared = shared_past(list(one.ledger), list(other.ledger))
    # Each decision is followed by its event in the ledger, so that decisions which differ end the
    # shared past: one is in it if all events before it are.
    compared = [(a, b) for a, b in zip(first, second, strict=False) if max(a[0], b[0]) <= shared]
    return len(compared), sum(a != b for a, b in compared)


@pytest.mark.parametrize("name", HONEST)
def test_no_honest_policy_knows_what_is_still_to_come(name: str, scenario: Scenario) -> None:
    known = site(scenario.cluster)
    for seed in SEEDS:
        compared, differing = decisions_of_twins(
            scenario, lambda _: make_baseline(name, known), seed
        )
        assert compared > 0
        assert differing == 0


class Clairvoyant(Colocate):
    """Claims to be honest, and colocates by the outputs that are still to come."""

    def __init__(self, episode: Sequence[Conversation]) -> None:
        """Keep the episode."""
        super().__init__()
        self._episode = episode

    def decide(self, observation: Observation) -> Placement:
        """Choose an engine by what nobody can know."""
        outputs = sum(turn.output_tokens for turn in self._episode[observation.conversation].turns)
        decoders = observation.fleet.decoders
        engine = decoders[outputs % len(decoders)]
        return Placement(engine, engine)


def test_a_policy_that_knows_the_future_is_caught(scenario: Scenario) -> None:
    assert sum(decisions_of_twins(scenario, Clairvoyant, seed)[1] for seed in SEEDS) > 0


@pytest.mark.parametrize("name", BASELINES)
def test_the_registry_says_what_a_policy_reads(name: str, scenario: Scenario) -> None:
    baseline = BASELINES[name]
    possible = reads(make_baseline(name, site(scenario.cluster)).deployment)
    if possible is Reads.BOOKKEEPING:
        assert baseline.reads in (Reads.ARRIVAL, Reads.BOOKKEEPING)
    else:
        assert baseline.reads is possible
    assert baseline.source


def test_who_asks_the_engines_and_who_sees_the_future() -> None:
    listed = {
        kind: {name for name, baseline in BASELINES.items() if baseline.reads is kind}
        for kind in (Reads.EXPORTS, Reads.FUTURE)
    }
    assert listed == {
        Reads.EXPORTS: {"kairos_exports"},
        Reads.FUTURE: {"colocate_oracle", "conserve_oracle"},
    }


@pytest.mark.parametrize("name", [n for n in BASELINES if BASELINES[n].reads is Reads.ARRIVAL])
def test_a_policy_that_reads_the_arrival_alone_does_not_look_at_the_engines(
    name: str, scenario: Scenario
) -> None:
    """Its decisions stay when everything that the ledger says of the engines is something else."""
    known = site(scenario.cluster)
    plain, blinded = make_baseline(name, known), make_baseline(name, known)
    episode = draw_episode(scenario.workload, scenario.arrivals, np.random.default_rng(0))
    cluster = Cluster(scenario.cluster, plain.deployment, episode)
    rng = np.random.default_rng(1)
    for policy in (plain, blinded):
        policy.reset(0)
    while cluster.advance():
        seen = cluster.observe()
        engines = len(seen.open_to)
        hidden = replace(
            seen,
            raw=rng.uniform(0.0, 50.0, seen.raw.size),
            free_kv_tokens=rng.uniform(0, 9e4, engines),
            open_to=rng.random(engines) < 0.5,
            home=int(rng.integers(-1, engines)),
        )
        for field in ("prefills_for_others", "decodes"):  # an operator knows these beforehand
            hidden.engine_field(field)[:] = seen.engine_field(field)
        placement = plain.decide(seen)
        assert blinded.decide(hidden) == placement
        cluster.place(placement)
