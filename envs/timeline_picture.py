"""A timeline as a picture: one row an engine, with what ran in it and how full its KV pool was.

Steps are often shorter than a pixel is wide, so every column of pixels in a row is stacked by the
share of its time that each phase had. Where spans are long that is a plain chart of spans, where
they are short a chart of utilisation.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from conserve_gym.envs.serving.timeline import Timeline, Track

WINDOW_S = 30.0

_Share = TypeVar("_Share", float, npt.NDArray[np.float64])

# Hues of Okabe and Ito's palette, which the colour-blind can tell apart; the lowest comes first.
_PHASES = {"decode": "#56B4E9", "mixed": "#D55E00", "prefill": "#F0C040"}
_IDLE = "#E8E8E8"
_MOVE = "#009E73"
_KV: dict[str, Any] = {"color": "black", "linewidth": 1.2}

# Pixels. Height and width are even, as video codecs want them.
_DPI = 100
_COLUMNS, _ROW = 960, 60
_LEFT, _RIGHT, _TOP, _BOTTOM = 112, 80, 40, 56
_GAP = 0.24  # the part of a row that is left free above what is drawn


def frame(timeline: Timeline, now: float, heading: str) -> npt.NDArray[np.uint8]:
    """Return the last seconds as pixels.

    Args:
        timeline: What the engines did.
        now: Seconds since the episode's start.
        heading: What stands above.

    Returns:
        Shape (height, width, 3); the height depends on the number of engines, nothing else does.
    """
    began = max(0.0, now - WINDOW_S)
    canvas: Any = FigureCanvasAgg(figure(timeline, began, began + WINDOW_S, now, heading))
    canvas.draw()
    return np.array(canvas.buffer_rgba(), np.uint8)[..., :3].copy()


def figure(timeline: Timeline, began: float, ended: float, now: float, heading: str) -> Figure:
    """Draw a time of an episode.

    Args:
        timeline: What the engines did.
        began: Left edge, in seconds since the episode's start.
        ended: Right edge.
        now: Where what has happened ends, at most at the right edge.
        heading: What stands above.
    """
    rows = len(timeline.tracks)
    width, height = _LEFT + _COLUMNS + _RIGHT, _TOP + _ROW * rows + _BOTTOM
    picture = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    axes = picture.add_axes(
        (_LEFT / width, _BOTTOM / height, _COLUMNS / width, _ROW * rows / height),
        xlim=(began, ended),
        ylim=(rows, 0),
        yticks=[_above(row, 0.5) for row in range(rows)],
        yticklabels=[f"{row} {track.engine.role}" for row, track in enumerate(timeline.tracks)],
    )
    axes.set_xlabel("time, s", loc="left")
    axes.tick_params(axis="y", length=0)
    scale = axes.twinx()
    scale.set(
        ylim=(rows, 0),
        ylabel="KV held",
        yticks=[_above(row, share) for row in range(rows) for share in (0.0, 1.0)],
        yticklabels=["0", "100 %"] * rows,
    )
    scale.tick_params(axis="y", labelsize=7, length=3)
    for each in (axes, scale):
        each.spines[:].set_visible(False)
    edges = np.linspace(began, ended, _COLUMNS + 1)
    for row, track in enumerate(timeline.tracks):
        _draw_phases(axes, row, track, edges, now)
        _draw_kv(axes, row, track, began, now)
        _draw_moves(axes, row, track, began, now)
    picture.text(_LEFT / width, 1 - 12 / height, heading, va="top", fontsize=11)
    picture.legend(
        handles=_legend(),
        loc="lower right",
        bbox_to_anchor=(1 - _RIGHT / width, 8 / height),
        ncols=6,
        frameon=False,
        fontsize=9,
        handlelength=1.4,
        columnspacing=1.2,
        borderpad=0,
    )
    return picture


def _above(row: int, share: _Share) -> _Share:
    """Return the height of a share, from 0 at a row's base to 1; the axis points down."""
    return row + 1.0 - share * (1.0 - _GAP)


def _draw_phases(
    axes: Axes, row: int, track: Track, edges: npt.NDArray[np.float64], now: float
) -> None:
    # Without antialiasing: the edges of columns are those of pixels.
    plain: dict[str, Any] = {"linewidth": 0, "antialiased": False}
    axes.fill_between([edges[0], now], _above(row, 0.0), _above(row, 1.0), color=_IDLE, **plain)
    spans = track.spans_between(edges[0], now)
    base = np.full(edges.size, _above(row, 0.0))
    for phase, color in _PHASES.items():
        times = np.array([(s.began, min(s.ended, now)) for s in spans if s.phase == phase])
        if not times.size:
            continue
        ends = np.cumsum(times[:, 1] - times[:, 0])  # seconds of the phase by each span's end
        begins = np.append(0.0, ends[:-1])
        seconds = np.interp(edges, times.ravel(), np.column_stack((begins, ends)).ravel())
        share = np.append(np.diff(seconds) / np.diff(edges), 0.0)
        top = base - share * (1.0 - _GAP)
        axes.fill_between(edges, base, top, step="post", color=color, **plain)
        base = top


def _draw_kv(axes: Axes, row: int, track: Track, began: float, now: float) -> None:
    first = bisect_right(track.level_times, began) - 1
    last = bisect_right(track.level_times, now)
    levels = np.array([*track.levels[first:last], track.levels[last - 1]])
    axes.step(
        [began, *track.level_times[first + 1 : last], now],
        _above(row, levels / track.capacity_blocks),
        where="post",
        clip_on=False,  # an empty pool lies on the edge
        path_effects=[withStroke(linewidth=2.6, foreground="white")],
        **_KV,
    )


def _draw_moves(axes: Axes, row: int, track: Track, began: float, now: float) -> None:
    """Draw arrows to other rows; they pass behind the rows between."""
    moves = track.moves_arrived(began, now)
    for down, head in ((True, "v"), (False, "^")):
        some = [move for move in moves if (move.target > row) == down]
        leaves = _above(row, 0.0 if down else 1.0)
        arrives = [move.target + _GAP / 2 + (0.0 if down else 1.0) for move in some]
        lines = [
            ((move.began, leaves), (move.ended, y)) for move, y in zip(some, arrives, strict=True)
        ]
        axes.add_collection(LineCollection(lines, colors=_MOVE, linewidths=0.8, zorder=0))
        times = [move.ended for move in some]
        axes.plot(times, arrives, head, color=_MOVE, markersize=5, markeredgewidth=0)


def _legend() -> list[Patch | Line2D]:
    return [
        *(Patch(color=color, label=phase) for phase, color in reversed(_PHASES.items())),
        Patch(color=_IDLE, label="idle"),
        Line2D([], [], label="KV held", **_KV),
        Line2D([], [], label="KV move", color=_MOVE, linewidth=0.8, marker=">", markersize=5),
    ]
