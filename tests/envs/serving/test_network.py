"""KV moves: the law of a lone one, and how moves at the same time share ports."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_network import Sent, arrivals, link_of

from conserve_gym.envs.serving.clock import Call, Clock
from conserve_gym.envs.serving.network import Network
from conserve_gym.envs.serving.network_spec import LinkSpec, NetworkSpec, PairSpec

KV_BYTES = 1e6

# With 1 MB a token: 1 ms and 1 ms a token in the node, 3 ms and 4 ms a token between nodes.
IN_NODE = LinkSpec(latency_ms=1.0, gb_per_s=1.0, exposed_share=1.0)
BETWEEN = LinkSpec(latency_ms=3.0, gb_per_s=0.25, exposed_share=1.0)
WIRES = NetworkSpec(same_node=IN_NODE, cross_node=BETWEEN)
ONE_NODE = (0, 0, 0, 0, 0)


class Run:
    """A network on a clock of its own, and what has arrived: moves by number."""

    def __init__(
        self,
        moves: Sequence[Sent],
        spec: NetworkSpec = WIRES,
        nodes: Sequence[int] = ONE_NODE,
        kv_bytes_per_token: float = KV_BYTES,
    ) -> None:
        self.clock = Clock()
        self.network: Network[int] = Network(
            self.clock, spec, nodes, kv_bytes_per_token, self.on_arrival
        )
        self.moves = moves
        self.arrived_s: dict[int, float] = {}
        self.seconds: dict[int, float] = {}
        for i, move in enumerate(moves):
            self.clock.after(move.time, self.on_due, i)

    def on_due(self, event: Call) -> None:
        _, source, target, tokens, computed = self.moves[event.value]
        computed_tokens = tokens if computed is None else computed
        self.network.send(source, target, tokens, event.value, computed_tokens=computed_tokens)

    def on_arrival(self, move: int, seconds: float) -> None:
        assert move not in self.arrived_s
        self.arrived_s[move] = self.clock.now
        self.seconds[move] = seconds

    def finish(self, after_every_event: Callable[[], None] = lambda: None) -> Run:
        while self.clock.peek() < math.inf:
            self.clock.step()
            after_every_event()
        return self

    def milliseconds(self) -> list[float]:
        return [self.arrived_s[i] * 1e3 for i in range(len(self.moves))]


def exactly(milliseconds: Sequence[float]) -> object:
    return pytest.approx(list(milliseconds), rel=1e-12)


# --- a move that has its wire to itself ---


@pytest.mark.parametrize(
    ("tokens", "computed", "milliseconds"),
    [(0, 0, 4.0), (1, 1, 4.1), (1000, 1000, 104.0), (1000, 0, 204.0), (1000, 200, 184.0)],
)
def test_a_lone_move_takes_the_latency_and_the_time_of_its_exposed_bytes(
    tokens: int, computed: int, milliseconds: float
) -> None:
    link = LinkSpec(latency_ms=4.0, gb_per_s=5.0, exposed_share=0.5)
    run = Run([Sent(0.0, 0, 1, tokens, computed)], NetworkSpec(same_node=link)).finish()
    assert run.milliseconds() == exactly([milliseconds])
    assert run.seconds[0] == run.arrived_s[0]
    if computed == tokens:
        assert run.seconds[0] == pytest.approx(link.exposed_s(tokens * KV_BYTES), rel=1e-12)
    assert link.wire_s(tokens * KV_BYTES) == pytest.approx(0.2e-3 * tokens)


real_links = st.builds(
    LinkSpec,
    latency_ms=st.floats(0.0, 20.0),
    gb_per_s=st.floats(1e-3, 1e3),
    exposed_share=st.floats(1e-3, 1.0),
)


@given(real_links, st.integers(0, 200_000), st.floats(0.0, 1e4))
def test_a_lone_move_is_exact_to_the_rounding_of_the_clock(
    link: LinkSpec, tokens: int, time: float
) -> None:
    run = Run([Sent(time, 0, 1, tokens)], NetworkSpec(same_node=link)).finish()
    exposed_s = link.exposed_s(tokens * KV_BYTES)
    assert abs(run.seconds[0] - exposed_s) <= 2 * math.ulp(time + exposed_s)


# --- moves at the same time, by hand ---


@pytest.mark.parametrize(
    ("moves", "milliseconds"),
    [
        pytest.param(
            # Half the port each from 1 ms on; the shorter one ends at 9, the other has 6 left.
            [Sent(0.0, 0, 1, 10), Sent(0.0, 0, 2, 4)],
            [15.0, 9.0],
            id="the way out of an engine",
        ),
        pytest.param(
            [Sent(0.0, 1, 0, 10), Sent(0.0, 2, 0, 4)], [15.0, 9.0], id="the way into an engine"
        ),
        pytest.param([Sent(0.0, 0, 1, 10), Sent(0.0, 0, 1, 4)], [15.0, 9.0], id="both ways"),
        pytest.param([Sent(0.0, 0, 1, 10), Sent(0.0, 2, 3, 4)], [11.0, 5.0], id="nothing"),
        pytest.param(
            [Sent(0.0, 0, 1, 10), Sent(0.0, 1, 0, 4)], [11.0, 5.0], id="opposite directions"
        ),
        pytest.param(
            # The first one has 5 left when the second one begins to flow, at 6 ms.
            [Sent(0.0, 0, 1, 10), Sent(0.005, 0, 2, 10)],
            [16.0, 21.0],
            id="one begins later",
        ),
        pytest.param(
            # The second one has the latency ahead when the first one ends.
            [Sent(0.0, 0, 1, 10), Sent(0.0105, 0, 2, 10)],
            [11.0, 21.5],
            id="a latency takes no bandwidth",
        ),
        pytest.param(
            # A third each up to 13 ms, when the shortest one ends; then 6 and 8 are left. Half
            # each up to 25, then 2 are left.
            [Sent(0.0, 0, 1, 4), Sent(0.0, 0, 2, 10), Sent(0.0, 0, 3, 12)],
            [13.0, 25.0, 27.0],
            id="three out of one engine",
        ),
        pytest.param(
            # Half each: the first and second one share a way out, the second and third one a way
            # in. The third one ends at 9 ms; the others go on at a half, for the way out is full.
            [Sent(0.0, 0, 1, 10), Sent(0.0, 0, 2, 10), Sent(0.0, 3, 2, 4)],
            [21.0, 21.0, 9.0],
            id="a chain",
        ),
        pytest.param(
            # A third each out of engine 0, so two thirds are left into engine 1: at 13 ms three
            # have ended and 8 of the fourth one are left.
            [Sent(0.0, 0, i, 4) for i in (1, 2, 3)] + [Sent(0.0, 4, 1, 16)],
            [13.0, 13.0, 13.0, 21.0],
            id="who is held up elsewhere leaves more to others",
        ),
        pytest.param(
            [Sent(0.0, 0, 1, 0), Sent(0.0, 0, 1, 0), Sent(0.0, 0, 1, 2)],
            [1.0, 1.0, 3.0],
            id="empty moves",
        ),
    ],
)
def test_moves_share(moves: list[Sent], milliseconds: list[float]) -> None:
    assert Run(moves).finish().milliseconds() == exactly(milliseconds)


def test_each_kind_of_wire_has_ports_of_its_own() -> None:
    # Engines 0 to 2 in one node, 3 and 4 in others. Two moves between nodes share the way out of
    # engine 0: an eighth of a token a ms each from 3 ms on.
    moves = [Sent(0.0, 0, 1, 10), Sent(0.0, 0, 3, 2), Sent(0.0, 0, 4, 2), Sent(0.0, 3, 4, 2)]
    run = Run(moves, nodes=(0, 0, 0, 1, 2)).finish()
    # The last two share the way into engine 4. All have the same size.
    assert run.milliseconds() == exactly([11.0, 19.0, 19.0, 19.0])


def test_the_wire_of_a_pair_is_shared_by_its_moves_alone() -> None:
    bridge = LinkSpec(latency_ms=0.5, gb_per_s=10.0, exposed_share=1.0)
    moves = [
        Sent(0.0, 0, 1, 10),  # on the bridge, 10 tokens a ms
        Sent(0.0, 0, 1, 20),
        Sent(0.0, 0, 2, 10),  # 1 token a ms
        Sent(0.0, 2, 1, 10),
        Sent(0.0, 1, 0, 10),  # a bridge leads one way
    ]
    spec = NetworkSpec(IN_NODE, BETWEEN, (PairSpec(0, 1, bridge),))
    assert Run(moves, spec).finish().milliseconds() == exactly([2.5, 3.5, 11.0, 11.0, 11.0])
    apart = Run(moves, spec, nodes=(0, 1, 0, 0, 0)).finish().milliseconds()
    assert apart[:2] == exactly([2.5, 3.5])


def test_moves_that_are_alike_arrive_in_the_order_in_which_they_began() -> None:
    run = Run([Sent(0.1, 0, 1 + i % 2, 7) for i in range(9)]).finish()
    assert list(run.arrived_s) == list(range(9))


# --- any moves ---


@st.composite
def crowds(draw: st.DrawFn) -> Run:
    """Draw a network, and moves that meet on it."""
    engines = draw(st.integers(2, 5))
    nodes = draw(st.lists(st.integers(0, 1), min_size=engines, max_size=engines))
    ends = st.tuples(st.integers(0, engines - 1), st.integers(0, engines - 1)).filter(
        lambda pair: pair[0] != pair[1]
    )
    links = st.builds(
        LinkSpec,
        latency_ms=st.floats(0.0, 3.0),
        gb_per_s=st.floats(0.2, 5.0),
        exposed_share=st.floats(0.05, 1.0),
    )
    bridges = draw(st.lists(st.tuples(ends, links), max_size=2, unique_by=lambda pair: pair[0]))
    spec = NetworkSpec(
        draw(links), draw(links), tuple(PairSpec(*pair, link) for pair, link in bridges)
    )
    times = st.floats(0.0, 0.02) | st.sampled_from((0.0, 0.01))
    sent = st.builds(
        lambda time, pair, tokens, computed: Sent(time, *pair, tokens, min(tokens, computed)),
        times,
        ends,
        st.integers(0, 20),
        st.integers(0, 30),
    )
    return Run(draw(st.lists(sent, max_size=10)), spec, nodes)


@settings(max_examples=200, deadline=None)
@given(crowds())
def test_every_move_arrives_when_an_exact_fluid_would(run: Run) -> None:
    run.finish()
    network = run.network
    expected = arrivals(network._spec, network._nodes, KV_BYTES, run.moves)
    assert run.arrived_s == pytest.approx(
        {i: float(time) for i, time in enumerate(expected)}, rel=1e-12, abs=1e-15
    )
    for i, move in enumerate(run.moves):
        assert run.seconds[i] == run.arrived_s[i] - move.time


@settings(max_examples=200, deadline=None)
@given(crowds())
def test_no_port_carries_more_than_its_bandwidth_and_no_move_could_have_more(run: Run) -> None:
    def check() -> None:
        carried: dict[object, float] = defaultdict(float)
        most: dict[object, float] = defaultdict(float)
        for move in run.network._flowing:
            for port in move.ports:
                carried[port] += move.rate
                most[port] = max(most[port], move.rate)
        for move in run.network._flowing:
            limit = move.bytes_per_s * (1.0 + 1e-12)
            assert all(carried[port] <= limit for port in move.ports)
            # At a port that is full, nobody has more than this move: that is max-min fairness.
            assert any(
                carried[port] >= move.bytes_per_s * (1.0 - 1e-12)
                and move.rate >= most[port] * (1.0 - 1e-12)
                for port in move.ports
            )

    run.finish(check)


@settings(max_examples=200, deadline=None)
@given(crowds())
def test_what_is_asked_for_is_sent(run: Run) -> None:
    network = run.network

    def check() -> None:
        assert network.bytes_sent <= network.bytes_asked + rounding_bytes

    expected = 0.0
    for move in run.moves:
        link = link_of(network._spec, network._nodes, move.source, move.target)
        computed = move.tokens if move.computed is None else move.computed
        expected += KV_BYTES * (move.tokens - computed * (1.0 - link.exposed_share))
    # A rate of up to 5 GB/s for one rounding of a clock that shows up to a second, at each of up
    # to 20 changes of up to 10 rates.
    rounding_bytes = 5e9 * math.ulp(1.0) * 200
    run.finish(check)
    assert sorted(run.arrived_s) == list(range(len(run.moves)))
    assert not network._flowing
    assert network.bytes_asked == pytest.approx(expected, rel=1e-12)
    assert network.bytes_sent == pytest.approx(network.bytes_asked, abs=rounding_bytes)


@settings(max_examples=100, deadline=None)
@given(crowds(), st.integers(0, 20))
def test_moves_that_share_nothing_with_others_do_not_feel_them(run: Run, tokens: int) -> None:
    spec, nodes = run.network._spec, run.network._nodes
    far = len(nodes)
    moves = [Sent(0.003, far, far + 1, tokens), Sent(0.005, far, far + 1, tokens)]
    alone = Run(moves, spec, (*nodes, 7, 7)).finish()
    beside = Run([*moves, *run.moves], spec, (*nodes, 7, 7)).finish()
    assert [beside.arrived_s[i] for i in (0, 1)] == [alone.arrived_s[i] for i in (0, 1)]


@settings(max_examples=100, deadline=None)
@given(crowds(), st.integers(0, 60))
def test_a_copy_in_mid_transfer_has_the_same_future(run: Run, events: int) -> None:
    for _ in range(events):
        if run.clock.peek() < math.inf:
            run.clock.step()
    twin = copy.deepcopy(run)
    arrived, asked, sent = dict(run.arrived_s), run.network.bytes_asked, run.network.bytes_sent
    twin.finish()
    assert (run.arrived_s, run.network.bytes_asked) == (arrived, asked)
    assert run.network.bytes_sent == sent
    run.finish()
    assert list(run.arrived_s.items()) == list(twin.arrived_s.items())
    assert run.network.bytes_sent == twin.network.bytes_sent
