"""What carries KV between engines: the wires within a node, between nodes and of single pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, NonNegativeInt
from pydantic.dataclasses import dataclass

from conserve_gym.envs.fields import STRICT, NotNegative, Positive


@dataclass(frozen=True, config=STRICT)
class LinkSpec:
    """Law of a KV move that has its wire to itself.

    Attributes:
        latency_ms: Fixed part of the time that a move adds to a turn.
        gb_per_s: Bandwidth of the wire in each direction.
        exposed_share: Share of a move's bytes that are still to be sent when the prompt is
            computed. The others went layer by layer while it was, and are taken to have found
            their wire free.
        stops_engines: Whether engines copy between two of their steps and compute nothing
            meanwhile, first the one that sends and then the one that receives, each for half of the
            time, as llama.cpp's server saves and restores slots. No bandwidth is shared then.
    """

    latency_ms: NotNegative
    gb_per_s: Positive
    exposed_share: Annotated[float, Field(gt=0.0, le=1.0)]
    stops_engines: bool = False

    @property
    def latency_s(self) -> float:
        """Fixed part of a move's exposed time, in seconds."""
        return self.latency_ms * 1e-3

    @property
    def bytes_per_s(self) -> float:
        """Bandwidth of the wire."""
        return self.gb_per_s * 1e9

    def exposed_s(self, kv_bytes: float) -> float:
        """Return what a lone move of ``kv_bytes`` adds to a turn's latency, in seconds."""
        return self.latency_s + self.exposed_share * kv_bytes / self.bytes_per_s

    def wire_s(self, kv_bytes: float) -> float:
        """Return how long the wire is busy with all of ``kv_bytes``, in seconds."""
        return kv_bytes / self.bytes_per_s


@dataclass(frozen=True, config=STRICT)
class PairSpec:
    """A wire of its own from one engine to another, such as an NVLink bridge.

    Attributes:
        source: Index of the engine that sends.
        target: Index of the engine that receives.
        link: Law of moves on it.
    """

    source: NonNegativeInt
    target: NonNegativeInt
    link: LinkSpec


@dataclass(frozen=True, config=STRICT)
class NetworkSpec:
    """The wires between engines.

    Each engine has one port out and one port in per kind of wire, of the bandwidth of one move:
    simultaneous moves through a port share it. The wire of a pair is a port of its own.

    Attributes:
        same_node: Wires between engines of one node; None where no two share a node.
        cross_node: Wires between engines of different nodes; None where there is one node.
        pairs: Wires of single pairs, instead of the kind that their nodes imply.
    """

    same_node: LinkSpec | None = None
    cross_node: LinkSpec | None = None
    pairs: tuple[PairSpec, ...] = ()

    def link(self, source: int, target: int, nodes: Sequence[int]) -> LinkSpec:
        """Return the law of moves from one engine to another, given the node of each."""
        for pair in self.pairs:
            if (pair.source, pair.target) == (source, target):
                return pair.link
        link = self.same_node if nodes[source] == nodes[target] else self.cross_node
        assert link is not None  # the cluster's specification is checked
        return link
