"""A benchmark as one page that opens offline: no address but its own."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from conserve_gym.agents.benchmark import leaderboard
from conserve_gym.agents.benchmark.cells import made_by
from conserve_gym.agents.benchmark.comparisons import BEST, METRICS
from conserve_gym.agents.benchmark.playing import Played
from conserve_gym.envs.configuration import ConfigurationError
from conserve_gym.files import whole

if TYPE_CHECKING:
    from jinja2 import Template

PAGE = "report.html"


def template() -> Template:
    """Return the page's template; it escapes whatever is filled in.

    Raises:
        ConfigurationError: The template engine is not installed.
    """
    try:
        from jinja2 import Environment
    except ImportError:
        raise ConfigurationError(
            "the benchmark's page needs jinja2: pip install 'conserve-gym[benchmark]'"
        ) from None
    text = resources.files(__package__).joinpath(PAGE).read_text("utf-8")
    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(text)


def write(
    folder: Path,
    played: Played,
    board: pd.DataFrame,
    compared: pd.DataFrame,
    first_lines: Sequence[str],
    pictures: Mapping[str, Path],
) -> Path:
    """Write ``report.html``; it appears whole or not at all."""
    path = folder / PAGE
    scenarios = played.scenarios.values()
    filled = template().render(
        first_lines=first_lines,
        note=leaderboard.NOTE,
        boards=list(_boards(board)),
        comparisons=list(_comparisons(compared)),
        pictures={
            title: base64.b64encode(file.read_bytes()).decode() for title, file in pictures.items()
        },
        workloads={
            workload: f"{scenario.workload.name}; {scenario.arrivals.name}"
            for (_, workload), scenario in played.scenarios.items()
        },
        caveats=sorted({caveat for one in scenarios for caveat in one.cluster.caveats}),
        seeds=played.spec.test_seeds,
        cells=len(played.results),
        made_by=made_by(),
    )
    with whole(path) as partial:
        partial.write_text(filled, encoding="utf-8")
    return path


def _boards(board: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for (cluster, workload), rows in board.groupby(["cluster", "workload"], sort=False):
        capacity = bool((rows["capacity"] != "").any())
        yield {
            "title": leaderboard.heading(cluster, workload),
            "heads": leaderboard.headings(capacity=capacity),
            "rows": [leaderboard.cells(row, capacity=capacity) for _, row in rows.iterrows()],
        }


def _comparisons(compared: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield a table a cluster, workload and reference, of SLO attainment and goodput."""
    shown = compared[compared["metric"].isin(METRICS[:2])]
    for (cluster, workload, reference, against), rows in shown.groupby(
        ["cluster", "workload", "reference", "against"], sort=False
    ):
        kind = f"the best honest policy, {against}" if reference == BEST else against
        yield {
            "title": f"{leaderboard.heading(cluster, workload)}, less {kind}",
            "heads": ["load, conv./s", "metric", "policy", "difference", "95 % from", "to", "p"],
            "rows": [
                [
                    f"{one.rate:g}",
                    one.metric,
                    one.policy,
                    *(f"{x:+.3g}" for x in (one.difference, one.ci95_low, one.ci95_high)),
                    f"{one.p_holm:.2g}",
                ]
                for one in rows.itertuples()
            ],
        }
