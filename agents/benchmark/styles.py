"""Who stands out in pictures, and in which colour."""

from __future__ import annotations

import itertools
from typing import Literal, NamedTuple

import pandas as pd
from matplotlib.axes import Axes

from conserve_gym.agents.benchmark.competitors import HINDSIGHT
from conserve_gym.agents.benchmark.leaderboard import ALL
from conserve_gym.agents.benchmark.playing import Played

# Okabe and Ito (2008): told apart with any colour vision.
_FIXED = {"colocate": "#0072B2", "conserve": "#D55E00"}
_COLORS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_BEST = 3


Dashes = Literal["-", "--", ":", "-."]


class Style(NamedTuple):
    """How a policy is drawn.

    Attributes:
        color: Of its line.
        dashes: Of its line; dotted or dashed for who sees the future.
        width: Of its line; the later one stands, the thinner, so that lines on each other show.
        label: Its name with its mark.
    """

    color: str
    dashes: Dashes
    width: float
    label: str


GREY = "0.8"
"""Colour of everybody else."""


def styles(played: Played, board: pd.DataFrame, cluster: str) -> dict[str, Style]:
    """Return the policies that stand out on a cluster, by name.

    The best three honest ones over all workloads, Colocate, ConServe, a submission, and bounds.
    """
    whole = board[(board["cluster"] == cluster) & (board["workload"] == ALL)]
    ranked = whole[whole["rank"].notna()].sort_values("rank")["policy"]
    labels = {one.name: one.label for one in played.competitors}
    mine = [
        one.name
        for one in played.competitors
        if played.spec.submission is not None and one.asked == played.spec.submission
    ]
    bounds = [one.name for one in played.competitors if one.is_bound]
    chosen: dict[str, Style] = {}
    free = iter(_COLORS)
    widths = itertools.count(3.2, -0.4)
    for name in [*_FIXED, *mine, *ranked[:_BEST]]:
        if name in set(whole["policy"]) and name not in chosen:
            color = _FIXED.get(name) or next(free, "0.4")
            chosen[name] = Style(color, "-", max(next(widths), 1.0), labels[name])
    dashes: tuple[Dashes, ...] = ("--", ":", "-.", ":")
    for name, dash in zip((HINDSIGHT, *bounds), dashes, strict=False):
        if name in set(whole["policy"]):
            chosen[name] = Style("black", dash, 1.2, f"{name} †")
    return chosen


def label_lines(axes: Axes, ends: dict[str, float], chosen: dict[str, Style]) -> None:
    """Write names to the right of axes, at the heights where their lines end.

    Args:
        axes: Its limits stay as they are from now on.
        ends: Last value of each line, by name.
        chosen: How each is drawn.
    """
    gap, size = 0.085, 7.0
    to_share = axes.transAxes.inverted()
    low, high = axes.get_ylim()
    heights = {
        name: float(to_share.transform(axes.transData.transform((1.0, min(max(y, low), high))))[1])
        for name, y in ends.items()
    }
    order = sorted(heights, key=heights.__getitem__)
    placed: list[float] = []
    for name in order:
        placed.append(max(heights[name], placed[-1] + gap if placed else 0.0))
    excess = max(placed[-1] - 1.0, 0.0) if placed else 0.0
    for i in reversed(range(len(placed))):  # push down what stands above the axes
        ceiling = placed[i + 1] - gap if i + 1 < len(placed) else placed[i] - excess
        placed[i] = min(placed[i], ceiling)
    for name, height in zip(order, placed, strict=True):
        axes.annotate(
            chosen[name].label,
            xy=(1.0, heights[name]),
            xytext=(1.06, height),
            xycoords="axes fraction",
            color=chosen[name].color,
            fontsize=size,
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": chosen[name].color,
                "linewidth": 0.5,
                "relpos": (0.0, 0.5),
                "shrinkA": 0,
                "shrinkB": 0,
            },
        )
