"""What was played as tables: a row an episode, and a row a conversation."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd

from conserve_gym.agents.benchmark.cells import unpacked
from conserve_gym.agents.benchmark.competitors import HINDSIGHT
from conserve_gym.agents.benchmark.playing import Played
from conserve_gym.envs.configuration import ConfigurationError
from conserve_gym.files import whole
from conserve_gym.policy import Reads

RESULTS, CONVERSATIONS = "results.parquet", "conversations.parquet"

SETTING = ["cluster", "workload", "rate"]
"""What policies are compared in."""

TIMING = ("seconds", "decision_us_mean", "decision_us_p99")
"""Columns that differ each time; all the others are the same to the last digit."""

"""The best honest policy of each episode, known only after it."""


def pyarrow() -> ModuleType:
    """Return the library behind Parquet.

    Raises:
        ConfigurationError: It is not installed.
    """
    try:
        import pyarrow
    except ImportError:
        raise ConfigurationError(
            "the benchmark keeps its results in Parquet and needs pyarrow: "
            "pip install 'conserve-gym[benchmark]'"
        ) from None
    module: ModuleType = pyarrow
    return module


def frame(played: Played) -> pd.DataFrame:
    """Return a row an episode.

    Returns:
        Columns ``cluster``, ``workload``, ``rate``, ``phase`` (``load``, or ``capacity`` for loads
        that the search for capacities added), ``seed``, ``policy``, ``asked``, ``reads``,
        ``sees_future``, every metric, those of ``TIMING``, and what the row was made from.
    """
    by_key = {one.key: one for one in played.competitors}
    rows = []
    for cell, result in played.results.items():
        one = by_key[cell.policy]
        in_grid = cell.rate in played.spec.played[cell.workload].rates
        rows.append(
            {
                "cluster": cell.cluster,
                "workload": cell.workload,
                "rate": cell.rate,
                "phase": "load" if in_grid else "capacity",
                "seed": cell.seed,
                "policy": one.name,
                "asked": cell.policy,
                "version": cell.version,
                "reads": str(one.reads),
                "sees_future": one.sees_future,
                **result["metrics"],
                **result["timing"],
                **result["made_from"],
            }
        )
    return pd.DataFrame(rows)


def loads(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the asked loads, and those of the best honest policy in hindsight.

    The best has most SLO attainment, then most goodput, and keeps that row's other metrics.
    """
    asked = rows[rows["phase"] == "load"]
    honest = asked[~asked["sees_future"]]
    ranked = honest.sort_values(
        ["slo_attainment_pct", "goodput_per_s"], ascending=False, kind="stable"
    )
    best = ranked.drop_duplicates([*SETTING, "seed"]).sort_index()
    best = best.assign(policy=HINDSIGHT, asked="", reads=str(Reads.FUTURE), sees_future=True)
    best[list(TIMING)] = np.nan
    return pd.concat([asked, best], ignore_index=True)


def conversations(played: Played) -> pd.DataFrame:
    """Return a row a conversation: its latencies over its standalone ones."""
    by_key = {one.key: one.name for one in played.competitors}
    parts = []
    for cell, result in played.results.items():
        latencies = unpacked(result["normalised"])
        part = pd.DataFrame(latencies, columns=["ttfet", "tbt", "e2e"])
        part.insert(0, "conversation", np.arange(len(part), dtype=np.int32))
        for name, value in (
            ("seed", cell.seed),
            ("policy", by_key[cell.policy]),
            ("rate", cell.rate),
            ("workload", cell.workload),
            ("cluster", cell.cluster),
        ):
            part.insert(0, name, value)
        parts.append(part)
    rows = pd.concat(parts, ignore_index=True)
    return rows.astype({name: "category" for name in ("cluster", "workload", "policy")})


def write(folder: Path, rows: pd.DataFrame, latencies: pd.DataFrame) -> list[Path]:
    """Write both tables as Parquet and the first as csv too; each appears whole or not at all."""
    pyarrow()
    written = [folder / RESULTS, folder / "results.csv", folder / CONVERSATIONS]
    with whole(written[0]) as partial:
        rows.to_parquet(partial, index=False)
    with whole(written[1]) as partial:
        rows.to_csv(partial, index=False)
    with whole(written[2]) as partial:
        latencies.to_parquet(partial, index=False, compression="zstd")
    return written
