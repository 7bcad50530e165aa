"""The fidelity report: the serving model against measurements, physics and queueing theory.

What a check is held against was not used to fit what it checks, unless its name says otherwise.
Measurements and traces belong to others and are looked for beside the checkout; a check whose
files are missing says so.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from rich.table import Table

from conserve_gym.agents.fidelity_check import Check
from conserve_gym.agents.fidelity_runs import (
    a40_power,
    colocated_tbt,
    physics,
    queueing,
    served_requests,
)
from conserve_gym.agents.fidelity_steps import (
    a40_steps,
    derived_tiers,
    mixed_steps,
    other_tiers,
)
from conserve_gym.files import whole

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
