"""Pictures of timelines whose content is known: colours, shares of columns, and size."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.colors import to_rgb

from conserve_gym.deployment import Deployment
from conserve_gym.envs import timeline_picture
from conserve_gym.envs.configuration import load_scenario
from conserve_gym.envs.serving.timeline import Move, Phase, Timeline

LEFT, TOP, COLUMNS, ROW, GAP = 112, 40, 960, 60, 15


def empty(engines: int = 4) -> Timeline:
    scenario = load_scenario([f"cluster.engines.1.count={engines - 1}"])
    return Timeline(scenario.cluster.deployed(Deployment()))


def add(timeline: Timeline, row: int, began: float, ended: float, phase: Phase) -> None:
    timeline.tracks[row].begin(began, phase, 1, 1)
    timeline.tracks[row].end(ended, 1)


def column(frame: npt.NDArray[np.uint8], row: int, second: float) -> npt.NDArray[np.uint8]:
    """Return the pixels of a row at a second of the window, from top to base."""
    top = TOP + ROW * row + GAP
    return frame[top : TOP + ROW * (row + 1), LEFT + int(second / 30 * COLUMNS)]


def share(pixels: npt.NDArray[np.uint8], color: str) -> float:
    rgb = np.round(np.array(to_rgb(color)) * 255)
    return float((np.abs(pixels - rgb).max(axis=-1) <= 1).mean())


DECODE, MIXED, PREFILL, IDLE = "#56B4E9", "#D55E00", "#F0C040", "#E8E8E8"


def test_a_column_has_the_colour_of_what_ran() -> None:
    timeline = empty()
    add(timeline, 0, 2.0, 10.0, "prefill")
    add(timeline, 1, 2.0, 6.0, "decode")
    add(timeline, 1, 6.0, 10.0, "mixed")
    frame = timeline_picture.frame(timeline, 20.0, "")
    # The line of the empty pool lies on the base.
    assert share(column(frame, 0, 5.0)[:-4], PREFILL) == 1.0
    assert share(column(frame, 1, 5.0)[:-4], DECODE) == 1.0
    assert share(column(frame, 1, 8.0)[:-4], MIXED) == 1.0
    for row, second in ((0, 1.0), (0, 12.0), (1, 12.0), (2, 5.0), (3, 19.0)):
        assert share(column(frame, row, second)[:-4], IDLE) == 1.0
    for row in range(4):
        assert share(column(frame, row, 25.0)[:-4], "#FFFFFF") == 1.0  # yet to come


def test_columns_are_stacked_by_shares_of_time() -> None:
    timeline = empty()
    for began in np.arange(0.0, 30.0, 0.01):
        add(timeline, 1, began, began + 0.0025, "prefill")
        add(timeline, 1, began + 0.0025, began + 0.0075, "decode")
    pixels = column(timeline_picture.frame(timeline, 30.0, ""), 1, 15.0)
    assert share(pixels, PREFILL) == pytest.approx(0.25, abs=0.06)
    assert share(pixels[:-4], DECODE) == pytest.approx(0.5, abs=0.1)
    assert share(pixels, IDLE) == pytest.approx(0.25, abs=0.06)


def test_what_is_under_way_reaches_until_now() -> None:
    timeline = empty()
    timeline.tracks[2].begin(40.0, "decode", 1, 0)
    frame = timeline_picture.frame(timeline, 60.0, "")
    assert share(column(frame, 2, 5.0)[:-4], IDLE) == 1.0
    assert share(column(frame, 2, 29.9)[:-4], DECODE) == 1.0


def test_the_line_is_as_high_as_the_pool_is_full() -> None:
    timeline = empty()
    track = timeline.tracks[0]
    track.level(10.0, track.capacity_blocks // 2)
    track.level(20.0, track.capacity_blocks)
    frame = timeline_picture.frame(timeline, 30.0, "")

    def height(second: float) -> float:
        pixels = column(frame, 0, second).max(axis=-1)
        return 1.0 - float(np.argmin(pixels)) / (len(pixels) - 1)

    assert height(5.0) == pytest.approx(0.0, abs=0.05)
    assert height(15.0) == pytest.approx(0.5, abs=0.05)
    assert height(25.0) == pytest.approx(1.0, abs=0.05)


def test_an_arrow_leads_to_the_row_of_its_target() -> None:
    timeline = empty()
    timeline.tracks[0].moves.append(Move(0, 0, 2, 100, 15.0, 15.01))
    timeline.tracks[3].moves.append(Move(1, 0, 1, 100, 20.0, 20.01))
    before = timeline_picture.frame(empty(), 30.0, "")
    frame = timeline_picture.frame(timeline, 30.0, "")
    changed = (frame != before).any(axis=-1)
    rows = range(1, 4)
    gaps = {row: changed[TOP + ROW * row + 2 : TOP + ROW * row + GAP - 2] for row in rows}

    def width(row: int, second: float) -> int:
        middle = LEFT + int(second / 30 * COLUMNS)
        return int(gaps[row][:, middle - 8 : middle + 8].any(axis=0).sum())

    assert [width(row, 15.0) >= 4 for row in rows] == [False, True, False]  # above row 2
    assert [width(row, 20.0) >= 4 for row in rows] == [False, True, False]  # beneath row 1
    assert [width(row, 15.0) > 0 for row in rows] == [True, True, False]
    assert [width(row, 20.0) > 0 for row in rows] == [False, True, True]
    on_the_way = timeline_picture.frame(timeline, 15.005, "")
    assert (on_the_way == timeline_picture.frame(empty(), 15.005, "")).all()


@pytest.mark.parametrize("engines", [2, 4, 16])
def test_size_depends_on_the_engines_alone(engines: int) -> None:
    timeline = empty(engines)
    shapes = set()
    for now in (0.0, 7.0, 1_000.0):
        frame = timeline_picture.frame(timeline, now, f"t = {now}, conversation 100 at the door")
        assert frame.dtype == np.uint8
        shapes.add(frame.shape)
        add(timeline, 0, now, now + 5.0, "prefill")
    assert len(shapes) == 1
    assert all(size % 2 == 0 for size in shapes.pop()[:2])
