"""Results as tables: one row an arm, rate, setting, clock, metric and statistic."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from rich import box
from rich.table import Table

from conserve_gym.agents.reproduction.arms import ARMS
from conserve_gym.agents.reproduction.campaign import Results
from conserve_gym.agents.reproduction.cells import Part
from conserve_gym.agents.reproduction.published import PAPER, SHARES, Published
from conserve_gym.agents.reproduction.recording import PAPER_SEED
from conserve_gym.agents.reproduction.spec import UNCAPPED, ReproductionSpec
from conserve_gym.agents.reproduction.values import Setting, Values
from conserve_gym.agents.statistics import half_width
from conserve_gym.files import whole
from conserve_gym.metrics import Clock

_KEY = ["part", "variant", "arm", "clock", "rate", "metric"]
_LATENCIES = ("ttfet", "tbt_mean", "tbt", "e2e")


def frame(results: Results) -> pd.DataFrame:
    """Return every metric of every cell: columns of ``Cell``, ``metric`` and ``value``."""
    rows = [
        (cell.part, cell.variant, cell.arm, cell.clock, cell.rate, cell.seed, metric, value)
        for cell, metrics in results.items()
        for metric, value in metrics.items()
    ]
    columns = ["part", "variant", "arm", "clock", "rate", "seed", "metric", "value"]
    return pd.DataFrame(rows, columns=columns)


def table(values: pd.DataFrame) -> pd.DataFrame:
    """Return means over seeds with 95 % intervals, the paper's own draw, and the paper.

    Args:
        values: As from ``frame``.

    Returns:
        Columns ``part``, ``variant``, ``arm``, ``sees_future``, ``clock``, ``rate``, ``metric``,
        ``statistic``, ``ours``, ``ci95_low``, ``ci95_high``, ``seeds``, ``paper_draw`` (ours with
        the paper's own arrivals and order), ``paper``, ``paper_by_eye``, ``ratio`` (ours over the
        paper). The paper's TBT is over tokens: metric ``tbt`` on the artifact's clock; ``tbt_mean``
        there, and ``tbt`` on the user's, is over conversations' means.
    """
    by_key = values.groupby(_KEY, sort=False)["value"]
    rows = by_key.agg(ours="mean", error="sem", seeds="size").reset_index()
    half = half_width(rows.pop("error"), rows["seeds"])
    rows.insert(7, "ci95_low", rows["ours"] - half)
    rows.insert(8, "ci95_high", rows["ours"] + half)
    own = values[values["seed"] == PAPER_SEED].set_index(_KEY)["value"]
    keys = pd.MultiIndex.from_frame(rows[_KEY])
    rows["paper_draw"] = own.reindex(keys).to_numpy()
    published = [_published(*key) for key in keys]
    rows["paper"] = [one.value if one else math.nan for one in published]
    rows["paper_by_eye"] = [one.by_eye if one else None for one in published]
    rows["ratio"] = (rows["ours"] / rows["paper"]).where(rows["paper"] > 0.0)
    rows.insert(3, "sees_future", [ARMS[arm].sees_future for arm in rows["arm"]])
    split = [_split(metric) for metric in rows["metric"]]
    rows["metric"] = [metric for metric, _ in split]
    rows.insert(rows.columns.get_loc("metric") + 1, "statistic", [name for _, name in split])
    return rows


def _published(
    part: Part, variant: str, arm: str, clock: Clock, rate: float, metric: str
) -> Published | None:
    if part == "paper" and clock == "artifact":
        return PAPER.get((arm, variant, rate, metric))
    if part == "shares":
        return SHARES.get((float(variant), metric))
    return None


def on_screen(spec: ReproductionSpec, values: Values, workload: str) -> Table:
    """Return the arms at the highest rate on both clocks, for the screen."""
    rate = max(spec.rates)
    shown = Table(
        title=f"{workload}\nA40 1P3D at 300/300 W, {rate:g} conversations/s",
        caption=f"On the artifact's and the user's clock: mean over {len(spec.seeds)} seeds, the "
        "paper's figure in brackets. TTFET and TBT are p95, in multiples of the conversation "
        "alone; SLO is who attains it. † sees the future.",
        box=box.SIMPLE_HEAD,
    )
    shown.add_column("", overflow="fold", min_width=16)
    columns: tuple[tuple[Clock, str, str, str], ...] = (
        ("artifact", "ttfet_p95", "TTFET ×", ".2f"),
        ("artifact", "tbt_p95", "TBT ×", ".2f"),
        ("artifact", "tokens_per_joule", "tokens/J", ".1f"),
        ("user", "ttfet_p95", "TTFET ×", ".2f"),
        ("user", "slo_attainment_pct", "SLO %", ".0f"),
        ("user", "tokens_per_joule", "tok./J", ".1f"),
    )
    for clock, _, says, _ in columns:
        shown.add_column(f"{clock}\n{says}", justify="right", overflow="fold")
    for name, arm in ARMS.items():
        cells = []
        for clock, metric, _, form in columns:
            setting, cell = Setting(rate, clock), ""
            if values.has(name, setting):
                cell = f"{values.mean(name, metric, setting).mean:{form}}"
                published = PAPER.get((name, UNCAPPED, rate, metric))
                if published and clock == "artifact":
                    cell += f"\n({published.value:g})"
            cells.append(cell)
        shown.add_row(arm.label + " †" * arm.sees_future, *cells)
    return shown


def write(folder: Path, rows: pd.DataFrame) -> list[Path]:
    """Write one csv file a part; each appears whole or not at all.

    ``table.csv`` is the paper's evaluation, where ``variant`` is called ``caps``.
    """
    names: Iterable[tuple[Part, str, str]] = (
        ("paper", "table", "caps"),
        ("shares", "shares", "misrouted_share"),
        ("scenarios", "scenarios", "scenario"),
        ("sensitivity", "sensitivity", "constant"),
    )
    written = []
    for part, name, variant in names:
        chosen = rows[rows["part"] == part].drop(columns="part")
        if chosen.empty:
            continue
        path = folder / f"{name}.csv"
        with whole(path) as partial:
            chosen.rename(columns={"variant": variant}).to_csv(partial, index=False)
        written.append(path)
    return written


def _split(metric: str) -> tuple[str, str]:
    """Return metric and statistic of a name such as ``ttfet_p95``."""
    for latency in _LATENCIES:
        if metric.startswith(f"{latency}_"):
            return latency, metric.removeprefix(f"{latency}_")
    return metric, "value"
