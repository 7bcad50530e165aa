"""The artifact's recorded prefiller run, whose times every arm replays.

Source: ``scheduler.py``, ``run_sweep.sh`` and ``extract_arrival_traces.py`` of the ConServe
artifact (read at github.com/eicchen/conserve, 8a60cb4, 2026-07-01, which carries the files of
github.com/jerryding95/conserve at 2a8c3bc, 2026-06-10). Prompts come at times drawn by Python's
``random`` with seed 42, the first at 0, and pass one prefill engine. Arms that prefill for
themselves replay the times at which it began each prompt; those of which only the decoders run
replay the times at which a decoder had the prompt's KV.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from conserve_gym.deployment import Deployment, Reservation
from conserve_gym.envs.configuration import Scenario
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.envs.serving.standalone import StandaloneEngine
from conserve_gym.envs.workloads.arrivals import RecordedPrefiller
from conserve_gym.envs.workloads.conversation import Conversation, Turn
from conserve_gym.placement import Placement

PAPER_SEED = 42
"""Seed of the artifact's arrivals and of its misrouted turns."""

SATURATION = 1.634
"""The paper's highest rate, which is what a prefiller let through of ``OFFERED_AT_SATURATION``."""
OFFERED_AT_SATURATION = 2.0


@dataclass(frozen=True)
class Draw:
    """The conversations of an episode, in order of arrival.

    Attributes:
        numbers: Each one's number in the workload.
        turns: Each one's turns.
        offered_s: When each came to the recorded prefiller.
        starts_s: When that prefiller began each one's first prompt.
        drawn_by: Seed of the times, and of what is misrouted.
    """

    numbers: tuple[int, ...]
    turns: tuple[tuple[Turn, ...], ...]
    offered_s: tuple[float, ...]
    starts_s: tuple[float, ...]
    drawn_by: int

    @property
    def prompts(self) -> list[int]:
        """Length of each first prompt."""
        return [turns[0].input_tokens for turns in self.turns]


def draw(scenario: Scenario, rate: float, seed: int, *, redraw: bool) -> Draw:
    """Draw an episode as the artifact did.

    Args:
        scenario: Workload, and the recorded prefiller as ``arrivals``.
        rate: Conversations a second, as the paper calls it.
        seed: Of the order in which conversations come, as in the artifact's sweep over orders (with
            the paper's own it is that of their numbers), and of lengths where they are drawn.
        redraw: Whether it is of arrivals and misrouted turns too; the artifact's seed of these is
            fixed.
    """
    assert isinstance(scenario.arrivals, RecordedPrefiller)
    turns = scenario.workload.draw(np.random.default_rng(seed))
    numbers = list(range(len(turns)))
    if seed != PAPER_SEED:
        random.Random(seed).shuffle(numbers)
    drawn_by = seed if redraw else PAPER_SEED
    rng = random.Random(drawn_by)
    offered_rate = OFFERED_AT_SATURATION if rate == SATURATION else rate
    gaps = (rng.expovariate(offered_rate) for _ in numbers[1:])
    offered = list(accumulate(gaps, initial=0.0))
    played = [turns[number] for number in numbers]
    starts = scenario.arrivals.starts(offered, [turns[0].input_tokens for turns in played])
    return Draw(tuple(numbers), tuple(played), tuple(offered), tuple(starts), drawn_by)


@dataclass(frozen=True)
class Prefills:
    """First prompts on a prefill engine of their own.

    Attributes:
        seconds: From the start of each prompt until a decoder has its KV, alone.
        joules: What all of them cost the engine, idleness aside.
        busy_s: How long it was at work on them.
        idle_w: What it draws without work.
    """

    seconds: tuple[float, ...]
    joules: float
    busy_s: float
    idle_w: float

    def left_s(self, drawn: Draw) -> list[float]:
        """Return when a decoder had the KV of each prompt."""
        return [start + s for start, s in zip(drawn.starts_s, self.seconds, strict=True)]


def prefills(spec: ClusterSpec, drawn: Draw) -> Prefills:
    """Play the first prompts through a cluster's prefill engine, the first of its engines."""
    engine, link = spec.engines[0], spec.network.same_node
    assert link is not None
    hardware = spec.tier(engine)
    alone = StandaloneEngine(hardware, engine.token_budget, engine.block_tokens)
    compute = [alone.latencies((Turn(n, n, 1, 0.0),)).ttfet_s for n in drawn.prompts]
    moves = [link.exposed_s(n * spec.kv_bytes_per_token) for n in drawn.prompts]
    conversations = [
        Conversation(start, (Turn(tokens, tokens, 1, 0.0),))
        for start, tokens in zip(drawn.starts_s, drawn.prompts, strict=True)
    ]
    cluster = Cluster(spec, Deployment(reservation=Reservation.NONE), conversations)
    while cluster.advance():
        cluster.place(Placement(0, cluster.fleet.decoders[-1]))
    energy = cluster.engines[0].energy_j()
    idle_w = hardware.power.idle_w
    return Prefills(
        tuple(one + other for one, other in zip(compute, moves, strict=True)),
        energy["prefill"],
        cluster.now - energy["idle"] / idle_w,
        idle_w,
    )


def with_joined_texts(turns: Sequence[Turn], first: int) -> tuple[Turn, ...]:
    """Return turns as the artifact's client sends them.

    It joins prompts and outputs by line breaks (``conversation.py``), which the cached KV of an
    output does not begin with: a turn finds its predecessor's prompt in the cache and computes that
    one's output again.

    Args:
        turns: Turns of a conversation.
        first: The first turn for which this holds.
    """
    joined = list(turns[:first])
    for before, turn in zip(turns[first - 1 :], turns[first:], strict=False):
        again = max(turn.new_tokens, turn.input_tokens - before.input_tokens)
        joined.append(turn._replace(new_tokens=min(again, turn.input_tokens)))
    return tuple(joined)
