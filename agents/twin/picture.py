"""A twin on the screen and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from conserve_gym.agents.statistics import Estimate, estimate
from conserve_gym.agents.twin.comparison import METRICS, Agreement, Run
from conserve_gym.files import whole


def table(runs: Sequence[Run], found: Sequence[Agreement], title: str) -> Table:
    """Return the table for the screen."""
    policies = list(found[0].errors_pct)
    shown = Table(
        title=title,
        caption=f"Means over {len({run.seed for run in runs})} episodes ± half of the 95 % "
        "confidence interval; errors are paired by episode. Milliseconds: TTFT of every turn, TBT "
        "of last turns, TTFET and E2E from a conversation's arrival.",
    )
    shown.add_column("ms")
    for policy in policies:
        for heading in (policy, "simulated", "error, %"):
            shown.add_column(heading, justify="right", overflow="fold")
    for agreement in found:
        cells = [_says(agreement.metric)]
        for policy, error in agreement.errors_pct.items():
            of = [run for run in runs if run.policy == policy]
            real = estimate([1e3 * run.real[agreement.metric] for run in of])
            simulated = estimate([1e3 * run.simulated[agreement.metric] for run in of])
            cells += [_cell(real), _cell(simulated), _cell(error, "{:+.0f}")]
        shown.add_row(*cells)
    return shown


def verdict(runs: Sequence[Run], found: Sequence[Agreement]) -> str:
    """Return what came out, a line a metric."""
    lines = []
    for one in found:
        sure = "" if one.winner_certain else ", not certainly"
        same = "same" if one.same_winner else "another"
        lines.append(
            f"{_says(one.metric)}: error {one.error_pct:.0f} %, rank agreement (Kendall's tau) "
            f"{one.rank:.2f}; in reality {one.real_winner} is best{sure}, {same} in the simulator; "
            f"{one.signs} of {one.pairs} certain differences have the same sign"
        )
    alike = 100.0 * np.mean([run.same_placements for run in runs])
    waited = np.mean([run.waited_pct for run in runs])
    share = 100.0 * np.mean([run.router_share for run in runs])
    lines.append(
        f"{alike:.0f} % of conversations were placed alike; of what the simulator does not know, "
        f"router and clients took {share:.0f} % of a core, and engines spent {waited:.0f} % of "
        "their busy time waiting for a processor that others had"
    )
    return "\n".join(lines)


def write(path: Path, runs: Sequence[Run], found: Sequence[Agreement], title: str) -> Path:
    """Draw each metric's means, real against simulated, and every conversation's TTFET."""
    policies = list(found[0].errors_pct)
    picture = Figure(figsize=(13, 6.5), layout="constrained")
    picture.suptitle(title, fontsize="medium")
    halves = picture.add_gridspec(1, 2, width_ratios=(3, 2))
    left, right = picture.add_subfigure(halves[0]), picture.add_subfigure(halves[1])
    axes = left.subplots(2, 4).T.flat
    for axis, metric in zip(axes, METRICS, strict=True):
        places = np.arange(len(policies))
        for k, (side, hatch) in enumerate((("real", ""), ("simulated", "//"))):
            values = [
                estimate([1e3 * getattr(run, side)[metric] for run in runs if run.policy == policy])
                for policy in policies
            ]
            axis.bar(
                places + 0.4 * k,
                [value.mean for value in values],
                0.38,
                yerr=np.nan_to_num([(value.high - value.low) / 2 for value in values]),
                color=[f"C{i}" for i in range(len(policies))],
                alpha=1.0 - 0.5 * k,
                hatch=hatch,
                capsize=2,
                label=side,
            )
        axis.set_title(f"{_says(metric)}, ms", fontsize="medium")
        axis.set_xticks(places + 0.2, policies, rotation=20, ha="right", fontsize="x-small")
        axis.tick_params(axis="y", labelsize="x-small")
    axis = right.subplots()
    for i, policy in enumerate(policies):
        each = np.concatenate([run.ttfet_s for run in runs if run.policy == policy], axis=1)
        axis.scatter(each[0], each[1], s=8, color=f"C{i}", alpha=0.6, label=policy)
    ends = [run.ttfet_s for run in runs]
    span = min(float(one.min()) for one in ends), max(float(one.max()) for one in ends)
    axis.plot(span, span, color="grey", linewidth=1)
    axis.set(xscale="log", yscale="log", xlabel="real TTFET, s", ylabel="simulated TTFET, s")
    axis.set_title(
        "every conversation; left: full bars real, hatched ones simulated", fontsize="small"
    )
    axis.legend(fontsize="small")
    with whole(path) as partial:
        picture.savefig(partial, dpi=120, format="png")
    return path


def _says(metric: str) -> str:
    name, _, percentile = metric.split("_")
    return f"{name.upper()} {percentile}"


def _cell(value: Estimate, form: str = "{:.1f}") -> str:
    interval = "" if np.isnan(value.low) else f" ±{form.format((value.high - value.low) / 2)}"
    return form.format(value.mean) + interval.replace("+", "")
