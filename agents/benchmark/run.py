"""A benchmark from its settings to its report."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from omegaconf import DictConfig
from rich import box
from rich.console import Console
from rich.table import Table

from conserve_gym.agents.benchmark import comparisons, leaderboard, page, pictures, results
from conserve_gym.agents.benchmark.answers import first_lines
from conserve_gym.agents.benchmark.leaderboard import ALL
from conserve_gym.agents.benchmark.playing import Benchmark
from conserve_gym.agents.benchmark.spec import BenchmarkSpec
from conserve_gym.agents.benchmark.winners import ranking
from conserve_gym.envs.configuration import validated_part
from conserve_gym.files import whole

_ON_SCREEN = (0, 1, 3, 4, 5, 6, 8)
"""Columns of the leaderboard that the screen has room for."""


def run(config: DictConfig, console: Console) -> None:
    """Play what is missing, and write and show everything.

    Raises:
        ConfigurationError: A setting or a policy cannot be used.
    """
    spec = validated_part(BenchmarkSpec, config)
    results.pyarrow()
    page.template()
    played = Benchmark(spec, console).play()
    every_row = results.frame(played)
    rows = results.loads(every_row)
    board = leaderboard.table(played, rows)
    lines = first_lines(played, rows, board)
    compared = comparisons.table(rows, _references(rows))
    by_load = leaderboard.means(rows, [*results.SETTING, "policy"])
    latencies = results.conversations(played)
    written = results.write(spec.output, every_row, latencies)
    written += leaderboard.write(spec.output, board, lines)
    written += [
        _csv(spec.output / "loads.csv", by_load),
        _csv(spec.output / "comparisons.csv", compared),
    ]
    drawn = pictures.write(spec.output, played, rows, by_load, board, latencies)
    written += drawn.values()
    written.append(page.write(spec.output, played, board, compared, lines, drawn))
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    for cluster in spec.clusters:
        whole_board = board[(board["cluster"] == cluster) & (board["workload"] == ALL)]
        console.print(_table(cluster, whole_board))
    for path in written:
        console.print(str(path), soft_wrap=True)


def _references(rows: pd.DataFrame) -> dict[tuple[str, str], dict[str, str]]:
    """Return who is compared with, by cluster and workload: the best honest one, and ConServe."""
    references = {}
    for (cluster, workload), here in rows.groupby(["cluster", "workload"], sort=False):
        order = ranking(here)
        named = {comparisons.BEST: order[0]}
        if "conserve" in order:
            named["conserve"] = "conserve"
        references[cluster, workload] = named
    return references


def _csv(path: Path, table: pd.DataFrame) -> Path:
    with whole(path) as partial:
        table.to_csv(partial, index=False)
    return path


def _table(cluster: str, board: pd.DataFrame) -> Table:
    shown = Table(
        title=leaderboard.heading(cluster, ALL), caption=leaderboard.NOTE, box=box.SIMPLE_HEAD
    )
    heads = leaderboard.headings(capacity=False)
    for i in _ON_SCREEN:
        shown.add_column(
            heads[i],
            justify="left" if heads[i] == "policy" else "right",
            overflow="fold",
            min_width=20 if heads[i] == "policy" else None,
        )
    for _, row in board.iterrows():
        texts = leaderboard.cells(row, capacity=False, intervals=False)
        shown.add_row(*(texts[i] for i in _ON_SCREEN))
    return shown
