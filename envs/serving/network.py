"""KV moves between engines: latency, then bytes at a max-min fair share of the ports they pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar, cast

from conserve_gym.envs.serving.clock import Call, Clock
from conserve_gym.envs.serving.network_spec import LinkSpec, NetworkSpec

Payload = TypeVar("Payload")


class Port(NamedTuple):
    """Where moves share a bandwidth: the way out of an engine, into one, or between a pair."""

    wires: str
    source: int | None
    target: int | None


@dataclass(slots=True, eq=False)
class Move(Generic[Payload]):
    """KV on its way.

    Attributes:
        payload: What it is, for whoever hears of its arrival.
        began_s: When it was asked for.
        ports: Where it shares bandwidth with others.
        bytes_per_s: Bandwidth of each of them.
        bytes_left: What was left to send at ``since_s``.
        rate: Bytes a second that it has sent since.
        since_s: When its rate last changed.
        end: Event at which it ends if its rate stays.
    """

    payload: Payload
    began_s: float
    ports: tuple[Port, ...]
    bytes_per_s: float
    bytes_left: float
    rate: float = 0.0
    since_s: float = 0.0
    end: Call | None = None


class Network(Generic[Payload]):
    """The wires of a cluster.

    Args:
        clock: Event queue that the cluster shares.
        spec: The wires.
        nodes: Node of each engine.
        kv_bytes_per_token: Size of a token in the KV cache.
        arrived: Hears of each arrival: payload, and seconds since the move began.

    Attributes:
        bytes_asked: Sum of the bytes that moves had to send; hidden ones do not count.
        bytes_sent: What of them has been sent; what flows at the current rates is not yet in.
    """

    def __init__(
        self,
        clock: Clock,
        spec: NetworkSpec,
        nodes: Sequence[int],
        kv_bytes_per_token: float,
        arrived: Callable[[Payload, float], None],
    ) -> None:
        """Start with nothing on the wires."""
        self._clock = clock
        self._spec = spec
        self._nodes = tuple(nodes)
        self._pairs = {(pair.source, pair.target) for pair in spec.pairs}
        self._kv_bytes_per_token = kv_bytes_per_token
        self._arrived = arrived
        self._flowing: dict[Move[Payload], None] = {}  # past their latency, in order
        self.bytes_asked = 0.0
        self.bytes_sent = 0.0

    def send(
        self, source: int, target: int, tokens: int, payload: Payload, *, computed_tokens: int
    ) -> None:
        """Begin a move.

        Args:
            source: Engine that holds the KV.
            target: Engine that gets it.
            tokens: How many tokens of it.
            payload: Handed back on arrival.
            computed_tokens: How many of them have just been computed at the source: their prefill
                has hidden a share of their bytes. What was cached there is all exposed.
        """
        link, ports = self._way(source, target)
        exposed = computed_tokens * self._kv_bytes_per_token * link.exposed_share
        exposed += (tokens - computed_tokens) * self._kv_bytes_per_token
        self.bytes_asked += exposed
        move = Move(payload, self._clock.now, ports, link.bytes_per_s, exposed)
        self._clock.after(link.latency_s, self._on_latency_over, move)

    def _way(self, source: int, target: int) -> tuple[LinkSpec, tuple[Port, ...]]:
        link = self._spec.link(source, target, self._nodes)
        if (source, target) in self._pairs:
            return link, (Port("pair", source, target),)
        same = self._nodes[source] == self._nodes[target]
        wires = "same node" if same else "cross node"
        return link, (Port(wires, source, None), Port(wires, None, target))

    def _on_latency_over(self, call: Call) -> None:
        move = cast(Move[Payload], call.value)
        if move.bytes_left:
            self._flowing[move] = None
            self._share()
        else:
            self._arrived(move.payload, self._clock.now - move.began_s)

    def _on_end(self, call: Call) -> None:
        move = cast(Move[Payload], call.value)
        if call is not move.end:
            return  # its rate has changed since
        self._settle(move)
        del self._flowing[move]
        self._share()
        self._arrived(move.payload, self._clock.now - move.began_s)

    def _share(self) -> None:
        """Give every move its share; one whose share stays as it was keeps its end, exactly."""
        shares = fair_shares(self._flowing)
        for move in self._flowing:
            rate = shares[move]
            if rate != move.rate:
                self._settle(move)
                move.rate = rate
                move.end = self._clock.after(move.bytes_left / rate, self._on_end, move)

    def _settle(self, move: Move[Payload]) -> None:
        """Bring the bytes that a move has left up to date."""
        sent = move.rate * (self._clock.now - move.since_s)
        self.bytes_sent += sent
        move.bytes_left = max(move.bytes_left - sent, 0.0)
        move.since_s = self._clock.now


def fair_shares(moves: Iterable[Move[Payload]]) -> dict[Move[Payload], float]:
    """Return the bytes a second of each move, max-min fair.

    None could have more but at the cost of one that has no more than it. By progressive filling:
    all shares grow together until a port is full, and those through it stay.
    """
    growing: dict[Port, list[Move[Payload]]] = {}
    left: dict[Port, float] = {}
    for move in moves:
        for port in move.ports:
            growing.setdefault(port, []).append(move)
            left.setdefault(port, move.bytes_per_s)
    shares: dict[Move[Payload], float] = {}
    while growing:
        full = min(growing, key=lambda port: left[port] / len(growing[port]))
        share = left[full] / len(growing[full])
        for move in growing.pop(full):
            shares[move] = share
            for port in move.ports:
                if port != full:
                    left[port] -= share
                    growing[port].remove(move)
                    if not growing[port]:
                        del growing[port]
    return shares
