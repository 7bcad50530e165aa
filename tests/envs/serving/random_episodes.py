"""Random clusters, workloads and policies for property tests, and how to play them.

Hypothesis draws the structure; times and coefficients are real numbers from a seeded stream of
their own, so that events of different engines never coincide unless they are meant to.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import permutations
from unittest.mock import patch

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from conserve_gym.costs import UNKNOWN
from conserve_gym.deployment import Deployment, Reservation
from conserve_gym.envs.serving import cluster as cluster_module
from conserve_gym.envs.serving import cluster_spec
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
from conserve_gym.envs.serving.network_spec import LinkSpec, NetworkSpec, PairSpec
from conserve_gym.envs.serving.timeline import Timeline
from conserve_gym.envs.workloads.conversation import Conversation, Turn
from conserve_gym.fleet import Role
from conserve_gym.observation import Observation
from conserve_gym.placement import Placement

EXAMPLES = settings(deadline=None, suppress_health_check=list(HealthCheck))
# Where each takes long: clusters are copied, or each event is looked at.
FEW = settings(EXAMPLES, max_examples=3 * EXAMPLES.max_examples // 10)


@contextmanager
def unprofiled() -> Iterator[None]:
    """Fit no costs to engines, which estimates alone ask for.

    With hardware of its own and a small token budget for each example, to profile prompts of up to
    32,768 tokens takes twenty times as long as to play an episode.
    """
    with patch.object(cluster_spec, "costs_of", lambda *_: UNKNOWN):
        yield


@dataclass(frozen=True)
class Episode:
    """Everything that a run depends on.

    Attributes:
        spec: The cluster.
        deployment: How it is run.
        conversations: The workload.
        choices: Seed of the random placements.
        heeds_door: Whether placements keep to engines that are open.
    """

    spec: ClusterSpec
    deployment: Deployment
    conversations: tuple[Conversation, ...]
    choices: int
    heeds_door: bool

    def choose(self, observation: Observation) -> Placement:
        """Place at random, by a stream that only the turn decides."""
        # A string seeds the same stream in every process; a tuple's hash may not.
        rng = random.Random(f"{self.choices} {observation.conversation} {observation.turn}")
        fleet = observation.fleet
        decoders = [e for e in fleet.decoders if observation.open_to[e] or not self.heeds_door]
        decode_at = rng.choice(decoders)
        prefill_at = rng.choice((decode_at, *fleet.prefillers_for(decode_at)))
        return Placement(prefill_at, decode_at, rng.choice((0.0, 25.0, math.inf)))

    def play(
        self,
        engine: type | None = None,
        before: Callable[[Cluster], None] = lambda _: None,
        at_door: Callable[[Cluster], None] = lambda _: None,
        timeline: Timeline | None = None,
    ) -> Cluster:
        """Run the episode to its end.

        Args:
            engine: What to build the cluster of, if not of the package's engine.
            before: Called once the cluster stands.
            at_door: Called before every placement.
            timeline: Where to write down what runs when.
        """
        with unprofiled(), patch.object(cluster_module, "Engine", engine or cluster_module.Engine):
            cluster = Cluster(self.spec, self.deployment, self.conversations, timeline)
        before(cluster)
        while cluster.advance():
            at_door(cluster)
            cluster.place(self.choose(cluster.observe()))
        return cluster


def after_every_event(cluster: Cluster, callback: Callable[[], None]) -> None:
    """Call back whenever the cluster's clock has made a step."""
    clock = cluster._clock
    step = clock.step

    def step_and_call_back() -> None:
        step()
        callback()

    clock.step = step_and_call_back  # type: ignore[method-assign]


def coincidences(cluster: Cluster, met: list[float]) -> None:
    """Write down the times at which events meet that do not cause each other.

    Times are drawn, but their sums can meet: two prompts that begin whole steps of a decoder apart
    arrive at it whole steps apart. Then rounding decides which of two events comes first.
    """
    clock = cluster._clock
    step = clock.step
    instant_s, upcoming = -math.inf, 0

    def step_and_compare() -> None:
        nonlocal instant_s, upcoming
        time_s, _, number, _ = clock._queue[0]
        if time_s > instant_s + 1e-9:
            instant_s, upcoming = time_s, next(clock._eid)
        elif number < upcoming:  # it was due before anything happened at this instant
            met.append(time_s)
        step()

    clock.step = step_and_compare  # type: ignore[method-assign]


def hardware(rng: random.Random, *, plain: bool = False) -> Hardware:
    """Return coefficients for which a few hundred tokens cross every floor and cap.

    Args:
        rng: Where they come from.
        plain: Whether terms that may be 0 are 0.
    """

    def between(low: float, high: float) -> float:
        return rng.uniform(low, high)

    def or_zero(low: float, high: float) -> float:
        return 0.0 if plain else between(low, high)

    idle_w = between(20.0, 80.0)
    base_w = idle_w + or_zero(1.0, 60.0)
    return Hardware(
        gpu="random",
        model="random",
        prefill=PrefillLaw(
            floor_ms=between(5.0, 15.0),
            base_ms=between(1.0, 8.0),
            weights_ms=or_zero(1.0, 10.0),
            token_us=between(50.0, 300.0),
            attention_ns=or_zero(10.0, 1000.0),
            scan_us=or_zero(5.0, 100.0),
        ),
        decode=DecodeLaw(
            floor_ms=between(3.0, 12.0),
            floor_sequence_us=or_zero(1.0, 300.0),
            base_ms=between(1.0, 6.0),
            sequence_us=or_zero(1.0, 500.0),
            kv_us=or_zero(1.0, 40.0),
        ),
        mixed=MixedLaw(tile_queries=or_zero(1.0, 100.0)),
        overhead=EngineOverhead(step_ms=or_zero(0.1, 1.0), sequence_us=or_zero(1.0, 100.0)),
        power=PowerLaw(
            idle_w=idle_w,
            base_w=base_w,
            cap_w=base_w + between(1.0, 200.0),
            joule_per_gb=between(0.05, 1.0),
            joule_per_tflop=or_zero(0.1, 4.0),
        ),
        limits=GpuFigures(peak_tflops=100.0, gb_per_s=1000.0, memory_gb=10.0),
        figures=ModelFigures(
            weights_gb=between(0.1, 2.0),
            gflop_per_token=between(0.5, 5.0),
            kflop_per_attended_token=or_zero(50.0, 500.0),
            kv_bytes_per_token=10.0 ** between(4.0, 7.0),
        ),
        provenance=Provenance(
            source="drawn", date="2026-01-01", derived=False, carried=(), holdout_error_pct={}
        ),
    )


def link(rng: random.Random, kv_bytes_per_token: float) -> LinkSpec:
    """Return a link that adds milliseconds to a prompt, or so slow that moves meet on it."""
    exposed_share = rng.choice((1.0, rng.uniform(0.05, 1.0)))
    token_us = rng.choice((rng.uniform(1.0, 300.0), rng.uniform(300.0, 5000.0)))
    return LinkSpec(
        latency_ms=rng.uniform(0.1, 20.0),
        gb_per_s=exposed_share * kv_bytes_per_token / token_us / 1e3,
        exposed_share=exposed_share,
    )


@st.composite
def networks(
    draw: st.DrawFn, rng: random.Random, engines: int, kv_bytes_per_token: float
) -> NetworkSpec:
    """Draw wires of both kinds, and some of single pairs."""
    pairs = [pair for pair in permutations(range(engines), 2) if draw(st.integers(0, 4)) == 4]
    return NetworkSpec(
        same_node=link(rng, kv_bytes_per_token),
        cross_node=link(rng, kv_bytes_per_token),
        pairs=tuple(PairSpec(*pair, link(rng, kv_bytes_per_token)) for pair in pairs),
    )


@st.composite
def turns(draw: st.DrawFn, rng: random.Random, *, growing: bool = False) -> tuple[Turn, ...]:
    """Draw the turns of a conversation, some of which append much or rewrite their context.

    Args:
        draw: Given by Hypothesis.
        rng: Where gaps come from.
        growing: Whether prompts are short and outputs long, so that KV grows in the decodes.
    """
    outputs = st.one_of(st.just(1), st.integers(2, 60), st.integers(20, 60))
    first = draw(st.integers(1, 30) if growing else st.integers(1, 150))
    played = [Turn(first, first, draw(outputs), 0.0)]
    for _ in range(draw(st.integers(0, 3))):
        held = played[-1].input_tokens + played[-1].output_tokens
        appended = draw(st.integers(1, 8) if growing else st.integers(1, 100))
        kept = held
        if draw(st.integers(0, 3)) == 0:  # rewritten: only a part of what is held is still valid
            kept = draw(st.integers(0, held))
        gap_s = 0.0 if draw(st.booleans()) else rng.uniform(0.0, 0.4)
        played.append(Turn(kept + appended, appended, draw(outputs), gap_s))
    return tuple(played)


@st.composite
def workloads(draw: st.DrawFn, rng: random.Random, most: int) -> tuple[Conversation, ...]:
    """Draw up to `most` conversations that arrive close enough to meet each other."""
    spacing = draw(st.sampled_from((0.01, 0.05, 0.5)))
    growing = draw(st.booleans(), label="growing in the decodes")
    time = 0.0
    conversations = []
    for _ in range(draw(st.integers(min(3, most), most) | st.integers(1, most))):
        time += rng.uniform(0.0, spacing)
        conversations.append(Conversation(time, draw(turns(rng, growing=growing))))
    return tuple(conversations)


@st.composite
def episodes(draw: st.DrawFn, most_conversations: int = 8) -> Episode:
    """Draw a cluster, a workload and a policy."""
    rng = random.Random(draw(st.integers(0, 2**32), label="seed of the real numbers"))
    conversations = draw(workloads(rng, most_conversations))
    peak = max(conversation.peak_tokens for conversation in conversations)
    roles = draw(st.lists(st.sampled_from(Role), min_size=1, max_size=4))
    if not any(role.decodes for role in roles):
        roles.append(Role.DECODE)
    block_tokens = draw(st.sampled_from((1, 2, 4, 16)))
    spare = draw(st.sampled_from((20, 60, 1500)), label="most spare tokens in a pool")
    plain = draw(st.booleans(), label="coefficients of 0")
    tiers = [hardware(rng, plain=plain) for _ in roles]
    figures = tiers[0].figures  # one model on every engine
    engines = []
    for i, (role, tier) in enumerate(zip(roles, tiers, strict=True)):
        pool = peak + draw(st.integers(0, spare))
        engines.append(
            EngineSpec(
                role=role,
                hardware=f"tier {i}",
                count=1,
                token_budget=draw(st.one_of(st.integers(1, 40), st.integers(60, 400))),
                max_sequences=draw(st.sampled_from((1, 3, 1024, 1024, 1024, 1024))),
                kv_capacity_tokens=-(-pool // block_tokens) * block_tokens,
                block_tokens=block_tokens,
                node=draw(st.integers(0, 1)),
                cap_w=rng.uniform(max(tier.power.base_w, tier.power.cap_w / 1.5), tier.power.cap_w)
                if draw(st.booleans(), label="capped")
                else None,
            )
        )
    spec = ClusterSpec(
        name="random",
        hardware={f"tier {i}": replace(tier, figures=figures) for i, tier in enumerate(tiers)},
        engines=tuple(engines),
        network=draw(networks(rng, len(engines), figures.kv_bytes_per_token)),
        mixed_token_budget=draw(st.integers(8, 200)),
        standalone="tier 0",
    )
    deployment = Deployment(
        all_mixed=draw(st.booleans()),
        reservation=draw(st.sampled_from((Reservation.NONE, *Reservation))),
        decides_every_turn=draw(st.booleans()),
        prefix_caching=draw(st.sampled_from((True, True, False))),
        pulls_history=draw(st.sampled_from((True, True, False))),
    )
    return Episode(spec, deployment, conversations, draw(st.integers(0, 99)), draw(st.booleans()))
