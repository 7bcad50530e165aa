"""Measures what decisions take at a router: ``speed.py`` calls it, and writes decisions.csv.

A decision is all that a router does between a conversation's arrival and its placement: the arrival
is written down, the observation made, every action estimated and scored, and what was decided put
into the decision log. Episodes are played by the policy itself, and replayed through
``agents/runtime``, whose decisions must be the same.

Two times are told. ``wall`` is over every decision of every pass: with what garbage collection and
the machine add. ``own`` is the least that each decision took in any pass: the code's own time.
"""

from __future__ import annotations

import gc
import itertools
import math
import multiprocessing
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from conserve_gym.agents.runtime import scorer
from conserve_gym.agents.runtime.artifact import Artifact
from conserve_gym.agents.runtime.linear import Linear
from conserve_gym.agents.runtime.log import DecisionLog, Item
from conserve_gym.agents.runtime.mlp import Layer, Mlp
from conserve_gym.agents.runtime.runtime import Runtime
from conserve_gym.agents.runtime.scheduler import Scheduler
from conserve_gym.agents.runtime.scorer import Scorer
from conserve_gym.agents.trained import path_of
from conserve_gym.deployment import Deployment
from conserve_gym.fleet import Fleet
from conserve_gym.ledger import Event, Ledger, Placed, TurnArrived
from conserve_gym.observation import Scaler

ENGINES = (4, 16, 64)
CONVERSATIONS = 400
PASSES = 10
PERCENTILES = (50.0, 99.0, 99.9)
WIDTH = 64  # of networks' layers, as agents have it by default
RATE = 0.4  # conversations a second and engine

Nanoseconds = npt.NDArray[np.int64]


class Case(NamedTuple):
    """A policy and what it chooses from.

    Attributes:
        network: ``rule``, ``mlp``, ``scorer`` or ``linear``.
        actions: Kind of the actions.
        all_mixed: Whether every engine prefills and decodes; else a quarter prefills.
        may_hold: Whether conversations may be held.
    """

    network: str
    actions: str = "conversation"
    all_mixed: bool = False
    may_hold: bool = False


CASES = (
    Case("rule"),
    Case("mlp"),
    Case("scorer"),
    Case("scorer", "joint"),
    Case("scorer", "joint", all_mixed=True),
    Case("linear"),
    Case("linear", "joint"),
    Case("linear", "joint", all_mixed=True, may_hold=True),  # as paper_cluster is
)


class Spans(NamedTuple):
    """What decisions took.

    Attributes:
        case: By whom.
        engines: Of how many engines.
        actions: From how many actions.
        wall_us: Microseconds at each of ``PERCENTILES``.
        own_us: The same of the least times.
    """

    case: Case
    engines: int
    actions: int
    wall_us: list[float]
    own_us: list[float]


def measure(engines: Sequence[int] = ENGINES, cases: Sequence[Case] = CASES) -> Iterator[Spans]:
    """Measure every case on clusters of every size, each in a process with the runtime alone."""
    fresh = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, mp_context=fresh) as process,
        tempfile.TemporaryDirectory() as folder,
    ):
        path = Path(folder) / "ledger.jsonl"
        for n_engines, case in itertools.product(engines, cases):
            fleet = _played(case, n_engines, path)
            ns = process.submit(replayed, case, fleet, path).result()
            artifact = _scheduler(case, fleet).artifact
            actions = len(artifact.actions(fleet).meanings) if artifact else 1
            wall, own = (np.percentile(each, PERCENTILES) / 1e3 for each in (ns, ns.min(axis=0)))
            yield Spans(case, n_engines, actions, wall.tolist(), own.tolist())


def _played(case: Case, engines: int, path: Path) -> Fleet:
    """Play an episode on a cluster of the paper's kind, and keep its ledger."""
    from conserve_gym.agents.evaluation import play
    from conserve_gym.envs.configuration import load_scenario

    scenario = load_scenario(
        [
            f"cluster.engines.0.count={engines // 4}",
            f"cluster.engines.1.count={engines - engines // 4}",
            f"workload.conversations={CONVERSATIONS}",
            f"arrivals.rate={RATE * engines}",
        ]
    )
    fleet = scenario.cluster.fleet(_deployment(case))
    play(scenario, _scheduler(case, fleet), 0).ledger.save(path)
    return fleet


def _deployment(case: Case) -> Deployment:
    return Deployment(all_mixed=case.all_mixed, may_hold=case.may_hold)


def _scheduler(case: Case, fleet: Fleet) -> Scheduler:
    """Return a policy of random weights: they cost the same as trained ones."""
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> npt.NDArray[np.float32]:
        return rng.normal(0.0, 0.1, shape).astype(np.float32)

    if case.network == "rule":
        return Scheduler(None, deployment=_deployment(case))
    network: Mlp | Scorer | Linear
    size = Scaler(1).size
    if case.network == "mlp":
        size = Scaler(len(fleet.roles)).size
        sizes = (size, WIDTH, WIDTH, 2)
        network = Mlp(
            tuple(
                Layer(drawn(n, m), drawn(n), "tanh" if n == WIDTH else "linear")
                for m, n in itertools.pairwise(sizes)
            )
        )
    elif case.network == "scorer":
        shapes = scorer.shapes(WIDTH, WIDTH)
        network = Scorer({name: drawn(*shape) for name, shape in shapes.items()})
    else:
        trained = Artifact.load(path_of("paper_cluster")).network
        assert isinstance(trained, Linear)
        network = trained
    seen = np.ones(size, dtype=np.float32)
    return Scheduler(
        Artifact(
            name=case.network,
            fleet=fleet,
            action_kind=case.actions,
            offload_above=(math.inf,),
            deployment=_deployment(case),
            network=network,
            seen_low=0.0 * seen,
            seen_high=seen,
            preference=None,
            header={"sha256": {}},
        )
    )


class _Unwritten(DecisionLog):
    """Takes what is logged and writes it nowhere."""

    def __init__(self) -> None:
        """Start no thread."""
        self.full = False

    def put(self, item: Item) -> None:
        """Forget it."""


def replayed(case: Case, fleet: Fleet, path: Path) -> Nanoseconds:
    """Return what each decision took in each pass, shape (passes, decisions).

    Raises:
        RuntimeError: A decision differs from the one that was recorded.
    """
    recorded = list(Ledger.load(path))
    scheduler = _scheduler(case, fleet)
    gc.collect()
    gc.freeze()  # as a router does
    return np.array([_pass(scheduler, fleet, recorded) for _ in range(PASSES)])


def rows(spans: Iterable[Spans]) -> Iterator[tuple[str | int | float, ...]]:
    """Yield a table of them, its head first."""
    times = [f"{which}_p{percent:g}_us" for which in ("own", "wall") for percent in PERCENTILES]
    yield ("engines", "network", "actions", "roles", "candidates", *times)
    for case, engines, candidates, wall_us, own_us in spans:
        roles = "all mixed" if case.all_mixed else "a quarter prefills"
        yield (engines, case.network, case.actions, roles, candidates, *own_us, *wall_us)


def _pass(scheduler: Scheduler, fleet: Fleet, recorded: Sequence[Event]) -> list[int]:
    now = 0.0
    runtime = Runtime(scheduler, fleet, log=_Unwritten(), clock=lambda: now)
    runtime.begin_segment()
    spans: dict[int, int] = {}
    for event in recorded:
        now = event.time
        began = time.perf_counter_ns()
        if not isinstance(event, Placed):
            runtime.record(type(event), *event[1:])
            if isinstance(event, TurnArrived) and event.turn == 0:
                spans[event.conversation] = time.perf_counter_ns() - began
            continue
        decision = runtime.decide(event.conversation, wait=True)
        spans[event.conversation] += time.perf_counter_ns() - began
        if decision is None or decision.placement != event[3:]:
            raise RuntimeError(f"{scheduler.name}: {event} was decided otherwise: {decision}")
    return list(spans.values())
