"""The fidelity report: the serving model against measurements, physics and queueing theory.

What a check is held against was not used to fit what it checks, unless its name says otherwise.
Measurements and traces belong to others and are looked for beside the checkout; a check whose
files are missing says so.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from omegaconf import OmegaConf
from rich.table import Table

from conserve_gym import conf
from conserve_gym.agents.evaluation import play
from conserve_gym.baselines.registry import make_baseline
from conserve_gym.deployment import Deployment, Reservation
from conserve_gym.envs.calibration import derive, published
from conserve_gym.envs.calibration.fit import Laws, fit, holdout_errors_pct
from conserve_gym.envs.calibration.laws import step_ms
from conserve_gym.envs.calibration.steps import FloatArray, Steps
from conserve_gym.envs.configuration import load_scenario, validated
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.cluster_spec import ClusterSpec, EngineSpec
from conserve_gym.envs.serving.hardware import Hardware
from conserve_gym.envs.serving.network_spec import NetworkSpec
from conserve_gym.envs.serving.physics import fastest_step_s
from conserve_gym.envs.serving.power_cap import capped
from conserve_gym.envs.serving.step_time import StepTime
from conserve_gym.envs.workloads.conversation import Conversation, Turn
from conserve_gym.files import whole
from conserve_gym.fleet import Role
from conserve_gym.ledger import FirstToken, Ledger, TurnFinished
from conserve_gym.placement import Placement

assert conf.__file__
_CONF = Path(conf.__file__).parent

Figures = TypeVar("Figures")

_CONSERVE = "github.com/jerryding95/conserve at 2a8c3bc, Apache-2.0, 2026-06-10"
_GRID = "github.com/eicchen/conserve at 4ab277d, Apache-2.0, 2026-07-01"
_SIM = "github.com/casys-kaist/LLMServingSim at 5daddb21, MIT, 2026-08-21"
_AIC = "aiconfigurator-core 0.12.0, Apache-2.0, 2026-09"

# The A40's cost of a cached token is an author's constant, not a row of the table.
_A40_SCAN_US = 0.95
# KV tokens that fit beside Llama-3.1-8B on 96 GB; what a step reads beyond cannot happen.
_RTX_POOL = 530_000

_SYSTEMS = {
    "a100_80gb": "a100_sxm",
    "h100": "h100_sxm",
    "h200": "h200_sxm",
    "l40s": "l40s",
    "rtx_pro_6000": "rtx_pro_6000_server",
}
_MODELS = {
    "qwen3_0.6b": "Qwen/Qwen3-0.6B",
    "qwen3_8b": "Qwen/Qwen3-8B",
    "llama3.1_8b": "meta-llama/Meta-Llama-3.1-8B",
}

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

NOT_CHECKED = (
    (
        "mixed steps on an A40",
        "no row is published; the TBT of saturated colocated engines hardly depends on them",
    ),
    (
        "power of an A40 on the 88 ML.ENERGY rows",
        "the rows are not at hand; their source says 7.9 %",
    ),
    (
        "power of L40S, H200 and RTX PRO 6000",
        "nobody has published busy readings; they are carried",
    ),
    ("runs of steps = single steps, conservation", "property tests check them: tests/envs/serving"),
)
"""What no check covers, and why."""


class Check(NamedTuple):
    """One line of the report.

    Attributes:
        name: What is checked.
        value: What came out.
        limit: What it may be at most, or at least; None where it is only told.
        unit: Unit of both.
        source: What it is held against.
        at_least: Whether the limit is a lower one.
    """

    name: str
    value: float
    limit: float | None
    unit: str
    source: str
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the value keeps the limit."""
        if self.limit is None:
            return True
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def tier(name: str) -> Hardware:
    """Return a packaged hardware tier."""
    return validated(Hardware, OmegaConf.load(_CONF / "hardware" / f"{name}.yaml"))


def tiers() -> dict[str, Hardware]:
    """Return every packaged hardware tier by name."""
    return {path.stem: tier(path.stem) for path in sorted((_CONF / "hardware").glob("*.yaml"))}


# --- hold-out errors ---


def a40_steps(folder: Path) -> Iterator[Check]:
    """Laws of the A40, fitted without one prompt length or one batch size."""
    decodes = published.a40_decode(folder)
    for cap_w in (300, 200):
        steps = Steps.concatenate([published.a40_prefill(folder, cap_w), decodes])
        prompts = steps.prompt_tokens > 0
        errors = holdout_errors_pct(steps, steps.prompt_tokens, prompts, _A40_SCAN_US)
        yield _error(f"A40 {cap_w} W prefill, one length left out", errors, 3.0, _CONSERVE)
        if cap_w == 300:
            errors = holdout_errors_pct(steps, steps.sequences, ~prompts, _A40_SCAN_US)
            yield _error("A40 decode, one batch size left out", errors, 5.0, _GRID)
        shipped = tier(f"a40_qwen3_0.6b_{cap_w}w")
        # The grid was measured at 300 W.
        refit = steps if cap_w == 300 else steps.where(prompts)
        yield _as_shipped(f"A40 {cap_w} W", refit, fit(steps, _A40_SCAN_US), shipped, _CONSERVE)
    hits = published.a40_cache_hits(folder)
    shipped = tier("a40_qwen3_0.6b_300w")
    ms = step_ms(hits, shipped.prefill, shipped.decode, shipped.mixed)
    errors = 100.0 * np.abs(ms / hits.ms - 1.0)
    yield _error(
        "A40 cached prompts, whose wall time has client work in it", errors, None, _CONSERVE
    )
    by_rule = capped(tier("a40_qwen3_0.6b_300w"), 200.0)
    steps = published.a40_prefill(folder, 200)
    ms = step_ms(steps, by_rule.prefill, by_rule.decode, by_rule.mixed)
    errors = 100.0 * np.abs(ms / steps.ms - 1.0)
    name = "A40 prefill at 200 W by the cap rule, whose exponent these rows gave"
    yield _error(name, errors, None, _CONSERVE)


def mixed_steps(folder: Path) -> Iterator[Check]:
    """Laws of the RTX PRO 6000 with Llama-3.1-8B, fitted without one chunk length or batch size."""
    everything = published.mixed_steps(folder)
    steps = everything.where(everything.kv_tokens <= _RTX_POOL)
    mixed = (steps.prompt_tokens > 0) & (steps.sequences > 0)
    name = "RTX PRO 6000 Llama-3.1-8B mixed"
    errors = holdout_errors_pct(steps, steps.prompt_tokens, mixed)
    yield _error(f"{name}, one chunk length left out", errors, 8.0, _SIM)
    errors = holdout_errors_pct(steps, steps.sequences, mixed)
    yield _error(f"{name}, one batch size left out", errors, 8.0, _SIM)
    laws = fit(steps)
    beyond = everything.mixed
    errors = 100.0 * np.abs(laws.step_ms(beyond) / beyond.ms - 1.0)
    yield _error(f"{name}, also what fits no memory", errors, 8.0, _SIM)
    prompts, decodes = (steps.sequences == 0), (steps.prompt_tokens == 0)
    errors = holdout_errors_pct(steps, steps.prompt_tokens, prompts)
    yield _error("RTX PRO 6000 Llama-3.1-8B prefill, one length left out", errors, 5.0, _SIM)
    errors = holdout_errors_pct(steps, steps.sequences, decodes)
    yield _error("RTX PRO 6000 Llama-3.1-8B decode, one batch size left out", errors, 6.0, _SIM)
    shipped = tier("rtx_pro_6000_llama3.1_8b")
    yield _as_shipped("RTX PRO 6000 Llama-3.1-8B", steps, laws, shipped, _SIM)


def other_tiers(folder: Path) -> Iterator[Check]:
    """Laws of the other tiers, fitted without one prompt length or one context length."""
    for gpu, system in _SYSTEMS.items():
        for model, called in _MODELS.items():
            steps = published.aic(folder, system, called)
            prompts = steps.prompt_tokens > 0
            errors = holdout_errors_pct(steps, steps.prompt_tokens, prompts, 0.0)
            yield _error(f"{gpu} {model} prefill, one length left out", errors, 5.0, _AIC)
            lengths = np.round(steps.kv_tokens / np.maximum(steps.sequences, 1.0))
            errors = holdout_errors_pct(steps, lengths, ~prompts, 0.0)
            yield _error(f"{gpu} {model} decode, one context left out", errors, 6.0, _AIC)
            errors = holdout_errors_pct(steps, steps.sequences, ~prompts, 0.0)
            yield _error(f"{gpu} {model} decode, one batch size left out", errors, None, _AIC)
            name = f"{gpu}_{model}"
            if name == "rtx_pro_6000_llama3.1_8b":
                continue  # shipped as measured, see mixed_steps
            shipped = tier(name)
            laws = fit(steps, 0.0)
            # These rows know no scan, the shipped laws do.
            plain = replace(shipped, prefill=replace(shipped.prefill, scan_us=0.0))
            yield _as_shipped(f"{gpu} {model}", steps, laws, plain, _AIC)
            with_scan = step_ms(steps, shipped.prefill, shipped.decode, shipped.mixed)[prompts]
            errors = 100.0 * np.abs(with_scan / steps.ms[prompts] - 1.0)
            yield _error(f"{gpu} {model} prefill with the scan these rows lack", errors, None, _AIC)


def derived_tiers(folder: Path) -> Iterator[Check]:
    """Laws from public figures, with the efficiencies of the other GPUs."""
    gpus = {name: _public("gpu", name, derive.Gpu) for name in _SYSTEMS}
    models = {name: _public("model", name, derive.Model) for name in _MODELS}
    steps = {
        (gpu, model): published.aic(folder, _SYSTEMS[gpu], _MODELS[model])
        for gpu in gpus
        for model in models
    }
    fitted = {key: fit(table, 0.0) for key, table in steps.items()}
    # H100 and H200 have one chip.
    same_chip = {"h100": ("h100", "h200"), "h200": ("h100", "h200")}
    for gpu in gpus:
        others = derive.efficiencies(
            (gpus[other], models[model], laws)
            for (other, model), laws in fitted.items()
            if other not in same_chip.get(gpu, (gpu,))
        )
        for phase in ("prefill", "decode"):
            for scan in (True, False) if phase == "prefill" else (True,):
                errors = []
                for model in models:
                    laws = derive.laws(gpus[gpu], models[model], others)
                    if not scan:
                        laws = laws._replace(prefill=replace(laws.prefill, scan_us=0.0))
                    table = steps[gpu, model]
                    table = table.of_prompts if phase == "prefill" else table.of_decodes
                    errors.append(100.0 * np.abs(laws.step_ms(table) / table.ms - 1.0))
                name = f"{gpu} {phase}, derived"
                name += "" if scan else ", without the scan these rows lack"
                yield _error(name, np.concatenate(errors), None, _AIC)
    laws = derive.laws(_public("gpu", "a40", derive.Gpu), models["qwen3_0.6b"])
    for phase, table in (
        ("prefill", published.a40_prefill(folder, 300)),
        ("decode", published.a40_decode(folder)),
    ):
        off = 100.0 * np.abs(laws.step_ms(table) / table.ms - 1.0)
        yield _error(f"A40 {phase}, derived; it was measured eagerly", off, None, _CONSERVE)


# --- end to end ---


def served_requests(folder: Path) -> Iterator[Check]:
    """300 requests that vLLM served, against the same arrivals on the simulated engine."""
    real = published.requests(folder)
    engine = EngineSpec(
        role=Role.MIXED,
        hardware="rtx",
        count=1,
        token_budget=2048,
        max_sequences=128,
        kv_capacity_tokens=_RTX_POOL // 16 * 16,
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
        tpot, measured_tpot = (
            ((last - first) / gaps).mean(),
            (measured_last - measured_first) / gaps,
        )
        e2e, measured_e2e = (last - arrived).mean(), measured_last - arrived
        mean_limit, tail_limit = (2.0, 10.0) if bound else (None, None)
        yield _off(f"{says}: mean TPOT", tpot, measured_tpot.mean(), mean_limit)
        yield _off(f"{says}: mean E2E", e2e, measured_e2e.mean(), mean_limit)
        for percent in (50, 95):
            ttft = np.percentile(first - arrived, percent)
            measured = np.percentile(measured_first - arrived, percent)
            yield _off(f"{says}: TTFT p{percent}", float(ttft), float(measured), tail_limit)


def colocated_tbt(folder: Path, traces: Path) -> Iterator[Check]:
    """Mean TBT of saturated, colocated A40 engines, whose steps are mixed."""
    measured = published.colocated_tbt(folder)
    measured = measured[measured["policy"] == "no_disagg_oracle_revised"]
    scenario = load_scenario(
        [
            "cluster=a40_4mixed",
            "workload=trace",
            f"workload.path={traces / 'conserve_miniswe_trace.csv.gz'}",
            "workload.max_turns=9",
            "arrivals.rate=1",
        ]
    )
    ledger = play(scenario, make_baseline("colocate_oracle"), 0).ledger
    kv_tokens, tbt_ms = _binned(ledger, engines=4, width_s=20.0)
    source = f"{_CONSERVE}, cell 20 of plot_trace.ipynb, digitised"
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
        scenario = load_scenario(
            [
                f"cluster={cluster}",
                "workload=trace",
                f"workload.path={traces / 'conserve_miniswe_trace.csv.gz'}",
                "arrivals=paper_saturation",
            ]
        )
        for arm, expected in arms.items():
            episodes = (play(scenario, make_baseline(arm), seed) for seed in range(3))
            value = np.mean([episode.metrics["tokens_per_joule"] for episode in episodes])
            errors.append(100.0 * abs(float(value) / expected - 1.0))
            name = f"{cluster} {arm}: tokens/J, published {expected}"
            yield Check(name, errors[-1], None, "%", _CONSERVE)
    yield Check(
        "A40 power: tokens/J, mean over six arms", float(np.mean(errors)), 8.0, "%", _CONSERVE
    )


# --- physics and queues ---


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


# --- what they share ---


def groups(
    measurements: Path | None, traces: Path | None
) -> Iterator[tuple[str, Callable[[], Iterator[Check]] | None, str]]:
    """Yield every group of checks: its name, how to run it or None, and why not."""
    no_measurements = "the measurements are not there: measurements=FOLDER"
    no_traces = "the paper's trace is not there: traces=FOLDER"
    yield "physics", physics, ""
    yield "queueing", queueing, ""
    for name, run in (
        ("A40 steps", a40_steps),
        ("mixed steps", mixed_steps),
        ("other tiers", other_tiers),
        ("derived tiers", derived_tiers),
        ("served requests", served_requests),
    ):
        if measurements is None:
            yield name, None, no_measurements
        else:
            yield name, partial(run, measurements), ""
    if traces is None:
        yield "A40 power", None, no_traces
    else:
        yield "A40 power", partial(a40_power, traces), ""
    if measurements is None or traces is None:
        yield "colocated TBT", None, no_traces if measurements else no_measurements
    else:
        yield "colocated TBT", partial(colocated_tbt, measurements, traces), ""


def table(checks: Iterable[Check]) -> Table:
    """Return the report for the screen."""
    shown = Table("check", "value", "limit", "unit", "", title="Fidelity")
    shown.columns[0].overflow = "fold"
    for check in checks:
        sign = "≥" if check.at_least else "≤"
        told_only = check.limit is None
        shown.add_row(
            check.name,
            f"{check.value:.2f}",
            "" if told_only else f"{sign} {check.limit:g}",
            check.unit,
            "" if told_only else "holds" if check.holds else "BROKEN",
        )
    return shown


def write(path: Path, checks: Iterable[Check]) -> None:
    """Write the report as csv; the file appears whole or not at all."""
    with whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("check", "value", "limit", "unit", "source", "limit_is", "holds"))
        for check in checks:
            limit = "" if check.limit is None else check.limit
            kind = "" if check.limit is None else "lower" if check.at_least else "upper"
            row = (check.name, check.value, limit, check.unit, check.source, kind, check.holds)
            writer.writerow(row)


def _error(name: str, errors: FloatArray, limit: float | None, source: str) -> Check:
    return Check(name, float(errors.mean()), limit, "%", source)


def _off(name: str, value: float, measured: float, limit: float | None) -> Check:
    return Check(
        name, 100.0 * abs(float(value / measured) - 1.0), limit, "%", f"{_SIM}, vLLM 0.19.0"
    )


def _as_shipped(name: str, steps: Steps, laws: Laws, shipped: Hardware, source: str) -> Check:
    """Say how far the packaged coefficients, rounded as they are, predict from a fresh fit."""
    packaged = step_ms(steps, shipped.prefill, shipped.decode, shipped.mixed)
    off = 100.0 * float(np.abs(packaged / laws.step_ms(steps) - 1.0).max())
    return Check(
        f"{name}: packaged coefficients against a fresh fit, largest", off, 1.0, "%", source
    )


def _public(group: str, name: str, kind: type[Figures]) -> Figures:
    return validated(kind, OmegaConf.load(_CONF / group / f"{name}.yaml"))


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
