"""The paper's figures, made again, and those of what lies beyond."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from conserve_gym.agents.reproduction.arms import ARMS
from conserve_gym.agents.reproduction.cells import BEYOND, COMPARED, scaled_setting
from conserve_gym.agents.reproduction.published import PAPER, SHARES
from conserve_gym.agents.reproduction.recording import SATURATION
from conserve_gym.agents.reproduction.spec import UNCAPPED, ReproductionSpec
from conserve_gym.agents.reproduction.values import Setting, Values
from conserve_gym.agents.reproduction.winners import winner
from conserve_gym.files import whole
from conserve_gym.metrics import SLO_FACTOR, Clock

PAPER_ARMS = tuple(name for name, arm in ARMS.items() if arm.in_paper)
_USER_ARMS = tuple(name for name, arm in ARMS.items() if arm.own_run)
_LATENCIES = {"ttfet": "TTFET", "tbt": "last-turn TBT", "e2e": "E2E"}
_STATISTICS = {"gmean": "gmean, ×", "p95": "p95, ×", "slo_violation_pct": "over SLO, %"}
_CLOCKS = {"artifact": "the artifact's clock", "user": "the user's clock"}


def write(spec: ReproductionSpec, values: Values, workload: str) -> list[Path]:
    """Write every picture; each appears whole or not at all."""
    pictures = {
        "headline": headline(spec, values, "artifact", PAPER_ARMS, workload),
        "headline_user": headline(spec, values, "user", _USER_ARMS, workload),
    }
    if SATURATION in spec.rates:
        pictures["energy"] = energy_bars(spec, values, workload)
    if spec.misrouted_shares:
        pictures["shares"] = shares(spec, values, workload)
    if spec.played_scenarios:
        pictures["scenarios"] = scenarios(spec, values)
    if spec.sensitivity.constants and spec.sensitivity.factors:
        pictures["sensitivity"] = sensitivity(spec, values, workload)
    written = []
    for name, picture in pictures.items():
        path = spec.output / f"{name}.png"
        with whole(path) as partial:
            picture.savefig(partial, dpi=150, format="png")
        written.append(path)
    return written


def headline(
    spec: ReproductionSpec, values: Values, clock: Clock, arms: Sequence[str], workload: str
) -> Figure:
    """Draw the paper's grid: statistics in rows, latencies in columns, over the rate."""
    picture = Figure(figsize=(10, 9), layout="constrained")
    grid = picture.subplots(3, 3, sharex=True, sharey="row")
    for row, (statistic, says) in zip(grid, _STATISTICS.items(), strict=True):
        for axes, (latency, heading) in zip(row, _LATENCIES.items(), strict=True):
            metric = f"{latency}_{statistic}"
            for arm in arms:
                _curve(axes, values, arm, metric, [Setting(rate, clock) for rate in spec.rates])
                if clock == "artifact":
                    shown = {r: PAPER.get((arm, UNCAPPED, r, metric)) for r in spec.rates}
                    points = {r: point.value for r, point in shown.items() if point}
                    axes.plot(
                        list(points),
                        list(points.values()),
                        "x",
                        markersize=9,
                        markeredgewidth=2,
                        color=ARMS[arm].color,
                    )
            if statistic == "slo_violation_pct":
                axes.set_yscale("symlog", linthresh=25, linscale=2)
                axes.set_ylim(-1, 110)
                axes.set_yticks([0, 5, 10, 15, 20, 25, 50, 100], [0, 5, 10, 15, 20, 25, 50, 100])
            else:
                axes.set_yscale("symlog", linthresh=SLO_FACTOR, linscale=2)
                axes.set_ylim(bottom=0.8)
                axes.set_yticks([1, 2, 3, 4, 5, 10, 100], [1, 2, 3, 4, 5, 10, 100])
                axes.axhline(SLO_FACTOR, color="0.4", linestyle=":", linewidth=1)
            axes.grid(alpha=0.3)
            if statistic == "gmean":
                axes.set_title(heading)
        row[0].set_ylabel(says)
    for axes in grid[-1]:
        axes.set_xlabel("conversations/s")
    picture.suptitle(
        f"{workload}\nA40 1P3D at 300 W, {_CLOCKS[clock]}; {len(spec.seeds)} seeds, bands are 95 % "
        "intervals" + ("; crosses: the paper" if clock == "artifact" else ""),
        fontsize="medium",
    )
    _legend(picture, arms)
    return picture


def energy_bars(spec: ReproductionSpec, values: Values, workload: str) -> Figure:
    """Draw the paper's bars at saturation, by power caps."""
    picture = Figure(figsize=(10, 7), layout="constrained")
    metrics = {
        "ttfet_p95": "TTFET p95, ×",
        "tbt_p95": "last-turn TBT p95, ×",
        "e2e_p95": "E2E p95, ×",
        "tokens_per_joule": "tokens/J",
    }
    width = 0.8 / len(spec.caps)
    hatches = ("", "//", "xx")
    for axes, (metric, says) in zip(picture.subplots(2, 2).flat, metrics.items(), strict=True):
        for i, caps in enumerate(spec.caps):
            for place, arm in enumerate(PAPER_ARMS):
                mean, low, high = values.mean(arm, metric, Setting(SATURATION, variant=caps))
                at = place + (i - (len(spec.caps) - 1) / 2) * width
                axes.bar(
                    at,
                    mean,
                    0.95 * width,
                    yerr=None if np.isnan(low) else (high - low) / 2,
                    color=to_rgba(ARMS[arm].color, 0.35),
                    edgecolor=ARMS[arm].color,
                    hatch=hatches[i % len(hatches)],
                    capsize=2,
                )
                published = PAPER.get((arm, caps, SATURATION, metric))
                if published:
                    axes.plot(at, published.value, "kx", markersize=8, markeredgewidth=2)
        axes.set_title(says)
        axes.set_xticks(range(len(PAPER_ARMS)), [ARMS[arm].label for arm in PAPER_ARMS])
        if metric != "tokens_per_joule":
            axes.set_yscale("symlog", linthresh=7, linscale=1.5)
            axes.set_yticks([1, 2, 3, 4, 5, 6, 7, 10, 50, 100], [1, 2, 3, 4, 5, 6, 7, 10, 50, 100])
            axes.axhline(SLO_FACTOR, color="0.4", linestyle=":", linewidth=1)
        axes.grid(alpha=0.3, axis="y")
    picture.suptitle(
        f"{workload}\nA40 1P3D, {SATURATION} conversations/s, {_CLOCKS['artifact']}; "
        f"{len(spec.seeds)} seeds; crosses: the paper",
        fontsize="medium",
    )
    picture.legend(
        handles=[
            Patch(facecolor="white", edgecolor="0.3", hatch=hatches[i % 3], label=f"{caps} W")
            for i, caps in enumerate(spec.caps)
        ],
        loc="outside lower center",
        ncols=3,
        title="caps of prefiller / decoders",
    )
    return picture


def shares(spec: ReproductionSpec, values: Values, workload: str) -> Figure:
    """Draw AMPD over its share of misrouted turns."""
    picture = Figure(figsize=(10, 3.6), layout="constrained")
    metrics = {
        "ttfet_p95": "TTFET p95, ×",
        "ttfet_slo_violation_pct": "TTFET over SLO, %",
        "tokens_per_joule": "tokens/J",
    }
    asked = sorted(spec.misrouted_shares)
    for axes, (metric, says) in zip(picture.subplots(1, 3), metrics.items(), strict=True):
        points = [
            values.mean("ampd", metric, Setting(SATURATION, variant=f"{share:g}", part="shares"))
            for share in asked
        ]
        percent = [100.0 * share for share in asked]
        axes.plot(percent, [one.mean for one in points], "o-", color=ARMS["ampd"].color)
        axes.fill_between(
            percent,
            [one.low for one in points],
            [one.high for one in points],
            color=ARMS["ampd"].color,
            alpha=0.2,
        )
        published = {100 * s: p.value for (s, name), p in SHARES.items() if name == metric}
        axes.plot(list(published), list(published.values()), "kx", markersize=8, markeredgewidth=2)
        axes.set(xlabel="misrouted turns, %", title=says)
        axes.grid(alpha=0.3)
    picture.suptitle(
        f"AMPD as coded: {workload}\n{SATURATION} conversations/s, {_CLOCKS['artifact']}; "
        f"{len(spec.seeds)} seeds; crosses: the paper",
        fontsize="medium",
    )
    return picture


def scenarios(spec: ReproductionSpec, values: Values) -> Figure:
    """Draw SLO attainment over the rate, a panel a scenario."""
    columns = 4
    rows = -(-len(spec.played_scenarios) // columns)
    picture = Figure(figsize=(13, 2.9 * rows), layout="constrained")
    grid = picture.subplots(rows, columns, sharey=True, squeeze=False)
    for axes, (name, scenario) in zip(grid.flat, spec.played_scenarios.items(), strict=False):
        for arm in BEYOND:
            settings = [Setting(rate, "user", name, "scenarios") for rate in scenario.rates]
            _curve(axes, values, arm, "slo_attainment_pct", settings)
        axes.set_title(scenario.says, fontsize="small")
        axes.set(xlabel="conversations/s", ylim=(-3, 103))
        axes.grid(alpha=0.3)
    for axes in list(grid.flat)[len(spec.played_scenarios) :]:
        axes.set_axis_off()
    picture.supylabel("SLO attainment, %")
    count = len(spec.seeds[: spec.scenario_seeds])
    picture.suptitle(f"Beyond the paper, {_CLOCKS['user']}; {count} seeds", fontsize="medium")
    _legend(picture, BEYOND)
    return picture


def sensitivity(spec: ReproductionSpec, values: Values, workload: str) -> Figure:
    """Draw who is ahead at each rate when a constant is scaled."""
    factors = sorted({*spec.sensitivity.factors, 1.0})
    lines = [(c, factor) for c in spec.sensitivity.constants for factor in factors]
    views: tuple[tuple[Clock, str, str], ...] = (
        ("artifact", "ttfet_p95", "lowest TTFET p95"),
        ("artifact", "tokens_per_joule", "most tokens/J"),
        ("user", "ttfet_p95", "lowest TTFET p95"),
        ("user", "slo_attainment_pct", "highest SLO attainment"),
        ("user", "tokens_per_joule", "most tokens/J"),
    )
    picture = Figure(figsize=(14, 1.8 + 0.24 * len(lines)), layout="constrained")
    for axes, (clock, metric, says) in zip(
        picture.subplots(1, len(views), sharey=True), views, strict=True
    ):
        image = np.zeros((len(lines), len(spec.rates), 4))
        for y, (constant, factor) in enumerate(lines):
            variant, part = scaled_setting(constant, factor)
            for x, rate in enumerate(spec.rates):
                setting = Setting(rate, clock, variant, part)
                ahead = winner(values, COMPARED[clock], metric, setting)
                image[y, x] = to_rgba(ARMS[ahead.arm].color)
                if ahead.level:
                    axes.text(x, y, "=", ha="center", va="center", fontsize="small")
        axes.imshow(image, aspect="auto")
        axes.set_xlabel("conversations/s")
        axes.set_xticks(range(len(spec.rates)), [f"{rate:g}" for rate in spec.rates], rotation=90)
        axes.set_title(f"{says},\n{_CLOCKS[clock]}", fontsize="small")
        for y in range(len(factors), len(lines), len(factors)):
            axes.axhline(y - 0.5, color="black", linewidth=1)
    names = [f"{c} × {factor:g}" if factor != 1.0 else f"{c}, as it is" for c, factor in lines]
    picture.axes[0].set_yticks(range(len(lines)), names, fontsize="small")
    seeds = len(spec.seeds[: spec.sensitivity.seeds])
    picture.suptitle(
        f"Who is ahead when a constant is scaled; = is level with the next.\n"
        f"{workload}; {seeds} seeds",
        fontsize="medium",
    )
    _legend(picture, [arm for arms in COMPARED.values() for arm in arms])
    return picture


def _curve(axes: Axes, values: Values, arm: str, metric: str, settings: Sequence[Setting]) -> None:
    played = sorted(setting for setting in settings if values.has(arm, setting))
    points = [values.mean(arm, metric, setting) for setting in played]
    rates = [setting.rate for setting in played]
    color = ARMS[arm].color
    style = "-" if ARMS[arm].sees_future or ARMS[arm].in_paper else "--"
    axes.plot(
        rates, [one.mean for one in points], color=color, marker="o", markersize=3, linestyle=style
    )
    low, high = [one.low for one in points], [one.high for one in points]
    axes.fill_between(rates, low, high, color=color, alpha=0.2, linewidth=0)


def _legend(picture: Figure, arms: Sequence[str]) -> None:
    picture.legend(
        handles=[
            Patch(color=ARMS[arm].color, label=ARMS[arm].label + " †" * ARMS[arm].sees_future)
            for arm in arms
        ],
        loc="outside lower center",
        ncols=4,
        title="† sees the future",
        fontsize="small",
        title_fontsize="small",
    )
