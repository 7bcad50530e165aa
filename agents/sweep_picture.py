"""A sweep as a picture: how it went, and what each hyper-parameter did."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from conserve_gym.baselines.baseline import Parameter
from conserve_gym.files import whole

_COLUMNS = 4


def write(folder: Path, trials: Sequence[Any], parameters: Mapping[str, Parameter]) -> Path:
    """Draw the complete trials of a study; the file appears whole or not at all.

    Args:
        folder: Where to.
        trials: Optuna's.
        parameters: What was varied, by key.
    """
    rows = math.ceil((1 + len(parameters)) / _COLUMNS)
    picture = Figure(figsize=(3.2 * _COLUMNS, 2.8 * rows), layout="constrained")
    panels = picture.subplots(rows, _COLUMNS, squeeze=False, sharey=True).ravel()
    numbers = [trial.number for trial in trials]
    attained = np.array([trial.value for trial in trials])
    configured = [trial.value for trial in trials if trial.number == 0]
    first = panels[0]
    first.plot(numbers, attained, "o", color="C0", markersize=4)
    first.step(numbers, np.maximum.accumulate(attained), where="post", color="C1", label="best")
    first.set(xlabel="trial")
    for panel, (name, parameter) in zip(panels[1:], parameters.items(), strict=False):
        values = [trial.params[name] for trial in trials]
        panel.set(xlabel=name)
        if parameter.choices:
            values = [parameter.choices.index(value) for value in values]
            panel.set_xticks(range(len(parameter.choices)), [str(c) for c in parameter.choices])
        else:
            scale = "log" if parameter.logarithmic else "linear"
            panel.set(xscale=scale, xlim=(parameter.low, parameter.high))
        panel.scatter(values, attained, c=numbers, cmap="viridis", s=16, clip_on=False)
    for panel in panels[1 + len(parameters) :]:
        panel.set_axis_off()
    for panel in panels[: 1 + len(parameters)]:
        for value in configured:
            panel.axhline(value, color="0.5", linestyle=":", label="as configured")
        panel.grid(alpha=0.3)
    first.legend(fontsize="small")
    for row in range(rows):
        panels[row * _COLUMNS].set_ylabel("SLO attainment, %")
    picture.suptitle("Validation episodes; later trials are lighter", fontsize="medium")
    path = folder / "sweep.png"
    with whole(path) as partial:
        picture.savefig(partial, dpi=150, format="png")
    return path
