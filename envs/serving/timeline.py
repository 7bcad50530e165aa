"""The record of what engines did, for pictures and traces; no policy sees it.

An engine writes into its track as it goes; whatever is not in a span is idleness. Without a
timeline nothing is written, and results are the same with one.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from operator import attrgetter
from typing import Literal, NamedTuple, TypeAlias

from conserve_gym.envs.serving.cluster_spec import EngineSpec

Phase: TypeAlias = Literal["prefill", "mixed", "decode"]


class Span(NamedTuple):
    """A prefill or mixed step, or a run of decode steps.

    Attributes:
        began: Seconds since the episode's start.
        ended: The same; infinite while it is under way.
        phase: What ran.
        steps: Steps that it was; 0 while it is under way.
        sequences: Sequences that decoded.
        prompt_tokens: Prompt tokens that were computed.
    """

    began: float
    ended: float
    phase: Phase
    steps: int
    sequences: int
    prompt_tokens: int


class Move(NamedTuple):
    """KV that an engine sent: a prompt's to its decoder, or history to where a prompt needed it.

    Attributes:
        conversation: Identifier.
        turn: Index of the turn.
        target: Engine that it went to.
        tokens: How many tokens of it.
        began: Seconds since the episode's start.
        ended: The same, when it had arrived.
    """

    conversation: int
    turn: int
    target: int
    tokens: int
    began: float
    ended: float


class Track:
    """What one engine did.

    Args:
        engine: What it is made of.

    Attributes:
        engine: What it is made of.
        capacity_blocks: Size of its KV pool.
        spans: Steps and runs in order; at most the last one is under way.
        moves: KV that it sent, in order of arrival; several may be on their way at once.
        level_times: Seconds at which the number of KV blocks taken changed.
        levels: Blocks held by turns from then on; idle ones, which can be evicted, do not count.
            What a run of decode steps takes shows at its end, or when others touch the pool.
    """

    def __init__(self, engine: EngineSpec) -> None:
        """Start without a past."""
        self.engine = engine
        self.capacity_blocks = engine.kv_capacity_tokens // engine.block_tokens
        self.spans: list[Span] = []
        self.moves: list[Move] = []
        self.level_times = [0.0]
        self.levels = [0]

    def begin(self, now: float, phase: Phase, sequences: int, prompt_tokens: int) -> None:
        """Write down a step or run that begins."""
        self.spans.append(Span(now, math.inf, phase, 0, sequences, prompt_tokens))

    def end(self, now: float, steps: int) -> None:
        """Write down that the step or run under way is over."""
        self.spans[-1] = self.spans[-1]._replace(ended=now, steps=steps)

    def level(self, now: float, blocks: int) -> None:
        """Write down how many KV blocks are taken."""
        if self.level_times[-1] == now:
            self.levels[-1] = blocks
        elif self.levels[-1] != blocks:
            self.level_times.append(now)
            self.levels.append(blocks)

    def spans_between(self, began: float, ended: float) -> list[Span]:
        """Return the spans that have a part in a time."""
        first = bisect_right(self.spans, began, key=attrgetter("ended"))
        return self.spans[first : bisect_left(self.spans, ended, key=attrgetter("began"))]

    def moves_arrived(self, began: float, ended: float) -> list[Move]:
        """Return the moves that arrived within a time."""
        first = bisect_left(self.moves, began, key=attrgetter("ended"))
        return self.moves[first : bisect_right(self.moves, ended, key=attrgetter("ended"))]


class Timeline:
    """What every engine of a cluster did in one episode.

    Args:
        engines: What the cluster is made of, in the order of the engines' indices.

    Attributes:
        tracks: One an engine.
    """

    def __init__(self, engines: Sequence[EngineSpec]) -> None:
        """Start empty."""
        self.tracks = [Track(engine) for engine in engines]
