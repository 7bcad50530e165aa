"""A calibration on the screen, as csv files and as a picture."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from conserve_gym.envs.calibration.check import Check
from conserve_gym.envs.calibration.errors import PhaseErrors
from conserve_gym.envs.serving.hardware import Hardware
from conserve_gym.files import whole

_ERRORS = ("phase", "group", "rows", "in_sample_mape_pct", "left_out_mape_pct", "left_out_max_pct")
_CHECK = ("metric", "statistic", "measured_ms", "predicted_ms", "error_pct")
_METRICS = {"ttft_ms": "TTFT", "tbt_ms": "TBT"}


def coefficients(name: str, hardware: Hardware) -> Table:
    """Return the table of a tier's coefficients."""
    table = Table(title=f"{name}: {hardware.gpu}, {hardware.model}")
    table.add_column("law")
    table.add_column("coefficient")
    table.add_column("value", justify="right")
    for law in ("prefill", "decode", "mixed", "overhead"):
        for i, (key, value) in enumerate(asdict(getattr(hardware, law)).items()):
            table.add_row("" if i else law, key, f"{round(value, 6):.4g}")
        table.add_section()
    return table


def errors(phases: Sequence[PhaseErrors]) -> Table:
    """Return the table of errors by phase and group."""
    table = Table(title="mean absolute error, %")
    table.add_column("phase")
    table.add_column("group")
    for head in ("steps", "fitted", "left out", "largest left out"):
        table.add_column(head, justify="right")
    for phase in phases:
        for _, group, steps, fitted, left_out, largest in phase.rows():
            whole_phase = group == "all"
            table.add_row(
                phase.phase if whole_phase else "",
                f"every {phase.group}" if whole_phase else str(group),
                str(steps),
                *(f"{value:.1f}" for value in (fitted, left_out, largest)),
                style="bold" if whole_phase else "",
            )
        table.add_section()
    return table


def check(found: Check) -> Table:
    """Return the table of what requests felt, measured and predicted."""
    before, after, predicted = found.lone_ms
    table = Table(
        title=f"{len(found.arrivals)} requests that the laws were not fitted to",
        caption=f"a lone prompt of {found.lone_tokens} tokens took {before:.3g} ms before and "
        f"{after:.3g} ms after them; predicted are {predicted:.3g} ms",
    )
    table.add_column("")
    for head in ("measured, ms", "predicted, ms", "error, %"):
        table.add_column(head, justify="right")
    for metric, statistic, measured, predicted, error in found.rows():
        table.add_row(
            f"{_METRICS[metric]} {statistic}",
            f"{measured:.4g}",
            f"{predicted:.4g}",
            f"{error:+.1f}",
        )
    return table


def write(folder: Path, phases: Sequence[PhaseErrors], found: Check | None) -> list[Path]:
    """Write csv files and the picture; each appears whole or not at all.

    Returns:
        The files.
    """
    rows = (row for phase in phases for row in phase.rows())
    written = [_csv(folder / "errors.csv", _ERRORS, rows)]
    if found:
        written.append(_csv(folder / "check.csv", _CHECK, found.rows()))
        written.append(_requests(folder / "check_requests.csv", found))
    path = folder / "fit.png"
    with whole(path) as partial:
        picture(phases).savefig(partial, format="png", dpi=150)
    return [*written, path]


def picture(phases: Sequence[PhaseErrors]) -> Figure:
    """Draw predicted against measured step times, one panel a phase."""
    figure = Figure(figsize=(4.8 * len(phases), 4.8), layout="constrained")
    panels = figure.subplots(1, len(phases), squeeze=False)[0]
    for panel, phase in zip(panels, phases, strict=True):
        low = min(phase.measured_ms.min(), phase.predicted_ms.min()) / 1.2
        high = max(phase.measured_ms.max(), phase.predicted_ms.max()) * 1.2
        panel.plot([low, high], [low, high], color="0.6", linewidth=1, label="equal")
        dots = panel.scatter(
            phase.measured_ms, phase.predicted_ms, c=phase.groups, s=16, cmap="viridis", norm="log"
        )
        ticks = np.unique(np.geomspace(phase.groups.min(), phase.groups.max(), 5).round())
        bar = figure.colorbar(dots, ax=panel, label=phase.group, ticks=ticks, format="%d")
        bar.minorticks_off()
        panel.set(
            xscale="log",
            yscale="log",
            xlim=(low, high),
            ylim=(low, high),
            aspect="equal",
            xlabel="measured step, ms",
            ylabel="predicted step, ms",
            title=f"{phase.phase}: {phase.in_sample_pct.mean():.1f} % fitted, "
            f"{phase.left_out_pct.mean():.1f} % left out",
        )
        panel.grid(alpha=0.3)
    return figure


def _requests(path: Path, found: Check) -> Path:
    metrics = (f"{who}_{metric}" for metric in _METRICS for who in ("measured", "predicted"))
    rows = (
        (
            f"{arrival.time:.6f}",
            arrival.input_tokens,
            arrival.output_tokens,
            *map("{:.4f}".format, ms),
        )
        for arrival, *ms in zip(
            found.arrivals,
            found.measured.ttft_ms,
            found.predicted.ttft_ms,
            found.measured.tbt_ms,
            found.predicted.tbt_ms,
            strict=True,
        )
    )
    return _csv(path, ("arrived_s", "input_tokens", "output_tokens", *metrics), rows)


def _csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    with whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)
    return path
