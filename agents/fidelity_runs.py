"""Checks of whole runs: served requests, the paper's runs, physics and queues."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from conserve_gym.agents.evaluation import play
from conserve_gym.agents.fidelity_check import (
    CONSERVE,
    RTX_POOL,
    SIM,
    Check,
    tier,
    tiers,
)
from conserve_gym.agents.policies import resolve
from conserve_gym.deployment import Deployment, Reservation
from conserve_gym.envs.calibration import derive, published
from conserve_gym.envs.calibration.steps import FloatArray
from conserve_gym.envs.configuration import Scenario, load_scenario
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.cluster_spec import ClusterSpec, EngineSpec
from conserve_gym.envs.serving.hardware import Hardware
from conserve_gym.envs.serving.network_spec import NetworkSpec
from conserve_gym.envs.serving.physics import fastest_step_s
from conserve_gym.envs.serving.step_time import StepTime
from conserve_gym.envs.workloads.conversation import Conversation, Turn
from conserve_gym.fleet import Role
from conserve_gym.ledger import FirstToken, Ledger, TurnFinished
from conserve_gym.placement import Placement

# Tokens a joule of the paper's bars at 1.634 conversations a second (perf_energy_bar_p95.pdf of
# the artifact): all engines at 300 W, and the decoders at 200 W.
_TOKENS_PER_JOULE = {
    "a40_1p3d": {"colocate_oracle": 61.1, "conserve_oracle": 62.0, "full_disagg": 30.3},
    "a40_1p3d_capped_decoders": {
        "colocate_oracle": 70.9,
        "conserve_oracle": 76.1,
        "full_disagg": 30.9,
    },
}


def served_requests(folder: Path) -> Iterator[Check]:
    """300 requests that vLLM served, against the same arrivals on the simulated engine."""
    real = published.requests(folder)
    engine = EngineSpec(
        role=Role.MIXED,
        hardware="rtx",
        count=1,
        token_budget=2048,
        max_sequences=128,
        kv_capacity_tokens=RTX_POOL // 16 * 16,
        block_tokens=16,
    )
    hardware = tier("rtx_pro_6000_llama3.1_8b")
    plans = [
        Conversation(
            float(r.arrived_s), (Turn(r.input_tokens, r.input_tokens, r.output_tokens, 0.0),)
        )
        for r in real.itertuples()
    ]
    arrived = real["arrived_s"].to_numpy()
    gaps = real["output_tokens"].to_numpy() - 1
    measured_first, measured_last = real["first_token_s"], real["last_token_s"]
    # The tier's overhead a sequence was fitted to the mean TPOT of these requests.
    for says, overhead, bound in (
        ("300 requests", hardware.overhead, True),
        ("300 requests with the overhead of other tiers", derive.OVERHEAD, False),
    ):
        ledger = _alone(engine, replace(hardware, overhead=overhead), plans)
        first, last = _times(ledger, FirstToken), _times(ledger, TurnFinished)
        mean_limit, tail_limit = (2.0, 10.0) if bound else (None, None)
        tpot, measured_tpot = (last - first) / gaps, (measured_last - measured_first) / gaps
        yield _off(f"{says}: mean TPOT", tpot.mean(), measured_tpot.mean(), mean_limit)
        e2e, measured_e2e = last - arrived, measured_last - arrived
        yield _off(f"{says}: mean E2E", e2e.mean(), measured_e2e.mean(), mean_limit)
        for percent in (50, 95):
            ttft = np.percentile(first - arrived, percent)
            measured = np.percentile(measured_first - arrived, percent)
            yield _off(f"{says}: TTFT p{percent}", float(ttft), float(measured), tail_limit)


def colocated_tbt(folder: Path, traces: Path) -> Iterator[Check]:
    """Mean TBT of saturated, colocated A40 engines, whose steps are mixed."""
    measured = published.colocated_tbt(folder)
    measured = measured[measured["policy"] == "no_disagg_oracle_revised"]
    scenario = _of_the_paper(
        traces, "cluster=a40_4mixed", "workload.max_turns=9", "arrivals.rate=1"
    )
    ledger = play(scenario, resolve("colocate_oracle", scenario.cluster), 0).ledger
    kv_tokens, tbt_ms = _binned(ledger, engines=4, width_s=20.0)
    source = f"{CONSERVE}, cell 20 of plot_trace.ipynb, digitised"
    for low, high in ((60_000, 150_000), (150_000, 230_000), (230_000, np.inf)):
        inside = measured["kv_tokens_per_engine"].between(low, high)
        expected = float(measured["mean_tbt_ms"][inside].mean())
        ours = float(tbt_ms[(kv_tokens >= low) & (kv_tokens <= high)].mean())
        at_most = f" to {high / 1e3:.0f}k" if np.isfinite(high) else ""
        name = f"A40 colocated: mean TBT from {low / 1e3:.0f}k{at_most} KV tokens an engine"
        # Only saturation does not depend on when conversations came, which was not published.
        limit = None if at_most else 10.0
        yield Check(name, 100.0 * abs(ours / expected - 1.0), limit, "%", source)


def a40_power(traces: Path) -> Iterator[Check]:
    """Tokens a joule of the paper's arms; the power law knows three other readings."""
    errors = []
    for cluster, arms in _TOKENS_PER_JOULE.items():
        scenario = _of_the_paper(traces, f"cluster={cluster}", "arrivals=paper_saturation")
        for arm, expected in arms.items():
            episodes = (play(scenario, resolve(arm, scenario.cluster), seed) for seed in range(3))
            value = np.mean([episode.metrics["tokens_per_joule"] for episode in episodes])
            errors.append(100.0 * abs(float(value) / expected - 1.0))
            name = f"{cluster} {arm}: tokens/J, published {expected}"
            yield Check(name, errors[-1], None, "%", CONSERVE)
    yield Check(
        "A40 power: tokens/J, mean over six arms", float(np.mean(errors)), 8.0, "%", CONSERVE
    )


def physics() -> Iterator[Check]:
    """Every tier's steps over the shortest time that its GPU allows; the least of a grid."""
    for name, hardware in tiers().items():
        law = StepTime(hardware)
        least = np.inf
        for prompt in (0, 1, 64, 1024, 8192):
            for context in (0, 4096, 65_536) if prompt else (0,):
                for sequences in (0, 1, 16, 128) if prompt else (1, 16, 128):
                    for length in (1, 2048, 16_384) if sequences else (0,):
                        kv_tokens = sequences * length
                        seconds = law.step(prompt, context, sequences, kv_tokens)
                        fastest = fastest_step_s(hardware, prompt, context, sequences, kv_tokens)
                        least = min(least, seconds / fastest)
        yield Check(
            f"{name}: step over the fastest that is possible, least",
            float(least),
            1.0,
            "x",
            "data sheets",
            at_least=True,
        )


def queueing() -> Iterator[Check]:
    """Mean wait of prompts that are served one at a time, against Pollaczek and Khinchine."""
    hardware, tokens = tier("a40_qwen3_0.6b_300w"), 2048
    service_s = StepTime(hardware).step(tokens, 0)
    engine = EngineSpec(
        role=Role.MIXED,
        hardware="a40",
        count=1,
        token_budget=tokens,
        max_sequences=1024,
        kv_capacity_tokens=1 << 24,
        block_tokens=16,
    )
    customers, streams = 2000, 16
    for load in (0.3, 0.7):
        means = []
        for seed in range(streams):
            gaps = np.random.default_rng([seed, 0x4D4431]).exponential(service_s / load, customers)
            arrivals = np.cumsum(gaps)
            plans = [Conversation(float(t), (Turn(tokens, tokens, 1, 0.0),)) for t in arrivals]
            first = _times(_alone(engine, hardware, plans), FirstToken)
            means.append(float((first - arrivals).mean()) - service_s)
        expected = load * service_s / (2.0 * (1.0 - load))
        error = float(np.std(means, ddof=1)) / np.sqrt(streams)
        deviations = abs(float(np.mean(means)) - expected) / error
        yield Check(
            f"M/D/1 at load {load}: mean wait, standard errors off",
            float(deviations),
            3.29,
            "sigma",
            "formula; 99.9 % of runs",
        )


def _of_the_paper(traces: Path, *overrides: str) -> Scenario:
    """Return a scenario on the paper's own trace."""
    path = traces / "conserve_miniswe_trace.csv.gz"
    return load_scenario(["workload=trace", f"workload.path={path}", *overrides])


def _off(name: str, value: float, measured: float, limit: float | None) -> Check:
    return Check(
        name, 100.0 * abs(float(value / measured) - 1.0), limit, "%", f"{SIM}, vLLM 0.19.0"
    )


def _alone(engine: EngineSpec, hardware: Hardware, plans: list[Conversation]) -> Ledger:
    """Play single turns on one engine."""
    network = NetworkSpec()
    spec = ClusterSpec(
        "one engine",
        {engine.hardware: hardware},
        (engine,),
        network,
        engine.token_budget,
        engine.hardware,
    )
    cluster = Cluster(spec, Deployment(reservation=Reservation.NONE), plans)
    while cluster.advance():
        cluster.place(Placement(0, 0))
    return cluster.ledger


def _times(ledger: Ledger, kind: type[FirstToken] | type[TurnFinished]) -> FloatArray:
    """Return when each conversation had its only event of a kind, by number."""
    found = {event.conversation: event.time for event in ledger if isinstance(event, kind)}
    return np.array([found[conversation] for conversation in range(len(found))])


def _binned(ledger: Ledger, engines: int, width_s: float) -> tuple[FloatArray, FloatArray]:
    """Return KV tokens of decoding turns an engine, and mean TBT in ms, both by bins of time."""
    first: dict[tuple[int, int], float] = {}
    rows = []
    for event in ledger:
        if isinstance(event, FirstToken):
            first[event.conversation, event.turn] = event.time
        elif isinstance(event, TurnFinished) and event.output_tokens > 1:
            began = first[event.conversation, event.turn]
            rows.append((began, event.time, event.output_tokens - 1, event.input_tokens))
    began, ended, gaps, prompts = np.array(rows).T
    kv_tokens, tbt_ms = [], []
    for left in np.arange(0.0, ended.max(), width_s):
        inside = np.minimum(ended, left + width_s) - np.maximum(began, left)
        inside = np.maximum(inside, 0.0)
        tokens = (gaps * inside / (ended - began)).sum()
        if tokens:
            kv_tokens.append(((prompts + gaps / 2) * inside).sum() / width_s / engines)
            tbt_ms.append(1e3 * inside.sum() / tokens)
    return np.array(kv_tokens), np.array(tbt_ms)
