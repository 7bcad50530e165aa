"""Pictures of a benchmark: load curves, winners, latency against energy, distributions."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import NullFormatter

from conserve_gym.agents.benchmark.playing import Played
from conserve_gym.agents.benchmark.styles import GREY, Style, label_lines, styles
from conserve_gym.agents.benchmark.winners import METRIC, winners
from conserve_gym.files import whole
from conserve_gym.metrics import SLO_FACTOR

_CURVES = {
    "slo_attainment_pct": "SLO attainment, %",
    "ttfet_p95": "p95 TTFET, ×",
    "tbt_p95": "p95 last TBT, ×",
    "tokens_per_joule": "tokens/J",
}
_LATENCIES = {"ttfet": "TTFET", "tbt": "last TBT", "e2e": "E2E"}


def write(
    folder: Path,
    played: Played,
    rows: pd.DataFrame,
    by_load: pd.DataFrame,
    board: pd.DataFrame,
    latencies: pd.DataFrame,
) -> dict[str, Path]:
    """Write every picture; each appears whole or not at all.

    Args:
        folder: Where to.
        played: What was played.
        rows: A row an episode, as from ``results.loads``.
        by_load: Means by cluster, workload, rate and policy, as from ``leaderboard.means``.
        board: As from ``leaderboard.table``.
        latencies: A row a conversation.

    Returns:
        The files by what they show.
    """
    written = {}
    for cluster in rows["cluster"].unique():
        chosen = styles(played, board, cluster)
        here = rows[rows["cluster"] == cluster]
        one_load = {
            workload: telling_load(one) for workload, one in here.groupby("workload", sort=False)
        }
        means = by_load[by_load["cluster"] == cluster]
        says = f"{cluster}; {here['seed'].nunique()} seeds"
        caveats = {
            caveat
            for (name, _), scenario in played.scenarios.items()
            if name == cluster
            for caveat in scenario.cluster.caveats
        }
        says += "".join(f"\n{caveat}" for caveat in sorted(caveats))
        single = latencies[latencies["cluster"] == cluster]
        for kind, title, picture in (
            ("load_curves", "Load curves", load_curves(means, chosen)),
            ("winners", "Winners", winner_map(here, chosen)),
            ("pareto", "Latency against energy", pareto(means, one_load, here, chosen)),
            ("distributions", "Distributions", distributions(single, one_load, chosen)),
        ):
            picture.suptitle(f"{title}: {says}", fontsize="medium")
            path = folder / f"{kind}_{cluster}.png"
            with whole(path) as partial:
                picture.savefig(partial, dpi=130, format="png")
            written[f"{title}, {cluster}"] = path
    return written


def telling_load(rows: pd.DataFrame) -> float:
    """Return the load at which the middle half of honest policies differs most in attainment."""
    honest = rows[~rows["sees_future"]]
    means = honest.groupby(["rate", "policy"])[METRIC].mean().groupby("rate")
    return float((means.quantile(0.75) - means.quantile(0.25)).idxmax())


def load_curves(means: pd.DataFrame, chosen: Mapping[str, Style]) -> Figure:
    """Draw metrics over the load with 95 % bands, a column a workload."""
    workloads = list(means["workload"].unique())
    picture = Figure(figsize=(1.0 + 4.6 * len(workloads), 10.0), layout="constrained")
    grid = picture.subplots(len(_CURVES), len(workloads), squeeze=False, sharex="col")
    for row, (metric, says) in zip(grid, _CURVES.items(), strict=True):
        for axes, workload in zip(row, workloads, strict=True):
            here = means[(means["workload"] == workload) & (means["metric"] == metric)]
            here = here.sort_values("rate")
            ends = {}
            for name, line in here.groupby("policy"):
                style = chosen.get(name)
                axes.plot(
                    line["rate"],
                    line["mean"],
                    color=style.color if style else GREY,
                    linestyle=style.dashes if style else "-",
                    linewidth=style.width if style else 0.8,
                    marker="o" if style else "",
                    markersize=3,
                    zorder=_height(style),
                )
                if style:
                    axes.fill_between(
                        line["rate"],
                        line["ci95_low"].fillna(line["mean"]),
                        line["ci95_high"].fillna(line["mean"]),
                        color=style.color,
                        alpha=0.15,
                        linewidth=0,
                    )
                    ends[name] = float(line["mean"].iloc[-1])
            if metric.endswith("_p95"):
                axes.set_yscale("log")
                axes.axhline(SLO_FACTOR, color="0.4", linestyle=":", linewidth=1)
                high = here["mean"].max()
                axes.set_ylim(0.8, max(1.3 * high, 6.0))
                axes.yaxis.set_major_formatter(_plain)
            elif metric == METRIC:
                axes.set_ylim(-3.0, 103.0)
                axes.axhline(95.0, color="0.4", linestyle=":", linewidth=1)
            else:
                axes.set_ylim(0.0, 1.1 * here["mean"].max())
            rates = here["rate"].unique()
            if rates.max() > 8 * rates.min():
                axes.set_xscale("log")
            axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
            label_lines(axes, ends, dict(chosen))
            if metric == METRIC:
                axes.set_title(workload)
        row[0].set_ylabel(says)
    for axes in grid[-1]:
        axes.set_xlabel("conversations/s")
    return picture


def winner_map(rows: pd.DataFrame, chosen: Mapping[str, Style]) -> Figure:
    """Draw which honest policy attains most at each load; hatched where others are level."""
    by_workload = {name: winners(one) for name, one in rows.groupby("workload", sort=False)}
    columns = max(map(len, by_workload.values()))
    picture = Figure(figsize=(1.6 + 1.75 * columns, 1.6 + 1.1 * len(by_workload)))
    picture.set_layout_engine("constrained")
    axes = picture.subplots()
    for y, ahead in enumerate(by_workload.values()):
        for x, one in enumerate(ahead):
            color = chosen[one.policy].color if one.policy in chosen else "0.5"
            axes.add_patch(
                Rectangle(
                    (x, y),
                    1,
                    1,
                    facecolor=to_rgba(color, 0.3),
                    edgecolor=to_rgba(color, 0.55),
                    hatch="" if one.clear else "///",
                )
            )
            lead = f"{one.lead:+.1f} points" if one.next else ""
            level = f", level with {len(one.level)}" if one.level else ""
            name = textwrap.fill(one.policy.replace("_", "_\u200b"), 18).replace("\u200b", "")
            axes.text(
                x + 0.5,
                y + 0.5,
                f"{one.rate:g}/s\n{name}\n{one.attained:.0f} %\n{lead}{level}",
                ha="center",
                va="center",
                fontsize=7,
                bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.5},
            )
    axes.set(xlim=(0, columns), ylim=(len(by_workload), 0), xticks=[])
    axes.set_yticks(np.arange(len(by_workload)) + 0.5, list(by_workload))
    axes.set_xlabel("load, light to heavy")
    names = {one.policy for ahead in by_workload.values() for one in ahead}
    handles = [
        Patch(facecolor=to_rgba(chosen[name].color, 0.3), label=name)
        for name in chosen
        if name in names
    ]
    handles.append(Patch(facecolor="white", edgecolor="0.5", hatch="///", label="not significant"))
    picture.legend(handles=handles, loc="outside lower center", ncols=4, fontsize="small")
    return picture


def pareto(
    means: pd.DataFrame,
    one_load: Mapping[str, float],
    rows: pd.DataFrame,
    chosen: Mapping[str, Style],
) -> Figure:
    """Draw p95 TTFET against tokens a joule, with the front of the honest policies."""
    picture = Figure(figsize=(1.0 + 4.4 * len(one_load), 4.4), layout="constrained")
    honest = set(rows.loc[~rows["sees_future"], "policy"])
    for axes, (workload, rate) in zip(
        picture.subplots(1, len(one_load), squeeze=False)[0], one_load.items(), strict=True
    ):
        here = means[(means["workload"] == workload) & (means["rate"] == rate)]
        wide = here.pivot(index="policy", columns="metric", values="mean")
        points = wide[["tokens_per_joule", "ttfet_p95"]]
        front = _front(points[points.index.isin(honest)])
        axes.step(front["tokens_per_joule"], front["ttfet_p95"], where="pre", color="0.6", zorder=1)
        for name, point in points.iterrows():
            style = chosen.get(str(name))
            free = style is not None and style.dashes != "-"
            axes.plot(
                *point,
                marker="o" if name in honest else "D",
                markersize=(11 if free else 3 + 2 * style.width) if style else 4,
                markerfacecolor="none" if free else style.color if style else GREY,
                markeredgecolor=style.color if style else GREY,
                linestyle="",
                zorder=_height(style),
            )
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_plain)
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.margins(0.1)
        axes.set(xlabel="tokens/J, more is better", title=f"{workload} at {rate:g}/s")
        axes.grid(alpha=0.3, which="both")
    picture.axes[0].set_ylabel("p95 TTFET, ×, less is better")
    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            marker="o" if style.dashes == "-" else "D",
            markersize=7,
            markerfacecolor=style.color if style.dashes == "-" else "none",
            markeredgecolor=style.color,
            label=style.label,
        )
        for style in chosen.values()
    ]
    handles += [
        Line2D([], [], linestyle="", marker="o", color=GREY, label="others"),
        Line2D([], [], color="0.6", label="front of those that do not see the future"),
    ]
    picture.legend(handles=handles, loc="outside lower center", ncols=4, fontsize="small")
    return picture


def _height(style: Style | None) -> float:
    """Return which lines lie on which: bounds on those that stand out, these on all others."""
    if style is None:
        return 1.0
    return 3.0 if style.dashes == "-" else 4.0


def _plain(value: float, _: int) -> str:
    return f"{value:g}"


def _front(points: pd.DataFrame) -> pd.DataFrame:
    """Return the points that no other beats in both, by rising tokens a joule."""
    by_energy = points.sort_values("tokens_per_joule", ascending=False)
    best = by_energy["ttfet_p95"].cummin()
    kept = by_energy[(by_energy["ttfet_p95"] <= best) & ~best.duplicated()]
    return kept.iloc[::-1]


def distributions(
    latencies: pd.DataFrame, one_load: Mapping[str, float], chosen: Mapping[str, Style]
) -> Figure:
    """Draw the share of conversations within each multiple, at one load a workload."""
    picture = Figure(figsize=(11.0, 0.8 + 2.7 * len(one_load)), layout="constrained")
    grid = picture.subplots(len(one_load), len(_LATENCIES), squeeze=False, sharey=True)
    drawn = set()
    for row, (workload, rate) in zip(grid, one_load.items(), strict=True):
        here = latencies[(latencies["workload"] == workload) & (latencies["rate"] == rate)]
        for axes, (latency, says) in zip(row, _LATENCIES.items(), strict=True):
            for name, one in here.groupby("policy", observed=True):
                style = chosen.get(str(name))
                values = np.sort(one[latency].dropna())
                share = 100.0 * np.arange(1, values.size + 1) / values.size
                axes.plot(
                    values,
                    share,
                    color=style.color if style else GREY,
                    linestyle=style.dashes if style else "-",
                    linewidth=style.width if style else 0.8,
                    zorder=_height(style),
                )
                drawn.add(str(name))
            axes.axvline(SLO_FACTOR, color="0.4", linestyle=":", linewidth=1)
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(_plain)
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel(f"{says}, ×")
            axes.grid(alpha=0.3)
        row[0].set_ylabel(f"{workload}, {rate:g}/s\nconversations within, %")
    handles = [
        Line2D(
            [],
            [],
            color=style.color,
            linestyle=style.dashes,
            linewidth=style.width,
            label=style.label,
        )
        for name, style in chosen.items()
        if name in drawn
    ]
    if drawn - chosen.keys():
        handles.append(Line2D([], [], color=GREY, label="others"))
    picture.legend(handles=handles, loc="outside lower center", ncols=5, fontsize="small")
    return picture
