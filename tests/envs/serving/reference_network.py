"""A deliberately plain network: what the network of `conserve_gym.envs.serving` has to equal.

All moves are known beforehand, and numbers are exact fractions. Between two moments at which a move
begins to flow or ends, all rates rise together until a port is full, as in the definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from conserve_gym.envs.serving.network_spec import LinkSpec, NetworkSpec


class Sent(NamedTuple):
    """A move that was asked for."""

    time: float
    source: int
    target: int
    tokens: int
    computed: int | None = None  # tokens whose prefill has hidden a share; None for all


def link_of(spec: NetworkSpec, nodes: Sequence[int], source: int, target: int) -> LinkSpec:
    """Return the law of a move from one engine to another."""
    for pair in spec.pairs:
        if (pair.source, pair.target) == (source, target):
            return pair.link
    link = spec.same_node if nodes[source] == nodes[target] else spec.cross_node
    assert link is not None
    return link


def ports_of(spec: NetworkSpec, nodes: Sequence[int], source: int, target: int) -> set[str]:
    """Return names of what a move from one engine to another shares with others."""
    if any((pair.source, pair.target) == (source, target) for pair in spec.pairs):
        return {f"bridge from {source} to {target}"}
    kind = "in the node" if nodes[source] == nodes[target] else "between nodes"
    return {f"out of {source} {kind}", f"into {target} {kind}"}


def rates_of(ports: dict[int, set[str]], bandwidth: dict[str, Fraction]) -> dict[int, Fraction]:
    """Let the rates of all moves rise until a port of each is full."""
    rates = dict.fromkeys(ports, Fraction(0))
    rising = set(ports)
    while rising:
        used = {port: sum(rates[i] for i in ports if port in ports[i]) for port in bandwidth}
        rise = min(
            (bandwidth[port] - used[port]) / count
            for port in bandwidth
            if (count := sum(port in ports[i] for i in rising))
        )
        for i in rising:
            rates[i] += rise
        for port in bandwidth:
            if sum(rates[i] for i in ports if port in ports[i]) == bandwidth[port]:
                rising -= {i for i in rising if port in ports[i]}
    return rates


def arrivals(
    spec: NetworkSpec, nodes: Sequence[int], kv_bytes_per_token: float, moves: Sequence[Sent]
) -> list[Fraction]:
    """Return when each move arrives."""
    flows_from: dict[int, Fraction] = {}
    left: dict[int, Fraction] = {}
    ports: dict[int, set[str]] = {}
    bandwidth: dict[str, Fraction] = {}
    arrived: dict[int, Fraction] = {}
    for i, move in enumerate(moves):
        link = link_of(spec, nodes, move.source, move.target)
        flows_from[i] = Fraction(move.time) + Fraction(link.latency_ms) / 1000
        left[i] = move.tokens * Fraction(kv_bytes_per_token)
        computed = move.tokens if move.computed is None else move.computed
        left[i] -= computed * Fraction(kv_bytes_per_token) * (1 - Fraction(link.exposed_share))
        ports[i] = ports_of(spec, nodes, move.source, move.target)
        bandwidth |= dict.fromkeys(ports[i], Fraction(link.gb_per_s) * 10**9)
    now = Fraction(-1)
    flowing: set[int] = set()
    while len(arrived) < len(moves):
        rates = rates_of({i: ports[i] for i in flowing}, bandwidth)
        later = [time for time in flows_from.values() if time > now]
        ahead = min([*later, *(now + left[i] / rates[i] for i in flowing)])
        for i in flowing:
            left[i] -= rates[i] * (ahead - now)
        now = ahead
        flowing |= {i for i, time in flows_from.items() if time == now}
        for i in [i for i in flowing if not left[i]]:
            flowing.remove(i)
            arrived[i] = now
    return [arrived[i] for i in range(len(moves))]
