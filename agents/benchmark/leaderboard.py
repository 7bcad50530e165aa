"""Who stands where: a table a cluster and workload, and one over all workloads of a cluster."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from conserve_gym.agents.benchmark.competitors import MARKS
from conserve_gym.agents.benchmark.playing import Played
from conserve_gym.agents.statistics import half_width
from conserve_gym.files import whole
from conserve_gym.policy import Reads

ALL = "all"
"""Stands for the mean over a cluster's workloads."""


class Column(NamedTuple):
    """A metric of the leaderboard: its name, what it is called, and how it is shown."""

    metric: str
    says: str
    form: str


COLUMNS = (
    Column("slo_attainment_pct", "SLO attainment, %", ".1f"),
    Column("goodput_per_s", "goodput, conv./s", ".3g"),
    Column("ttfet_p95", "p95 TTFET, ×", ".2f"),
    Column("tbt_p95", "p95 last TBT, ×", ".2f"),
    Column("e2e_p95", "p95 E2E, ×", ".2f"),
    Column("tokens_per_joule", "tokens/J", ".1f"),
    Column("kv_moves_per_conversation", "KV moves/conv.", ".2f"),
    Column("imbalance", "imbalance", ".2f"),
    Column("decode_entropy", "entropy of decoding", ".2f"),
    Column("decision_us_mean", "decision, µs", ".0f"),
    Column("decision_us_p99", "decision p99, µs", ".0f"),
)
CAPACITY_AFTER = 5
"""Capacity stands behind so many of the columns."""

NOTE = (
    "Means over all loads, and ± half of the 95 % interval over seeds. SLO attainment: share of "
    "conversations within 5 × their standalone time in TTFET, last TBT and E2E at once. Capacity: "
    "highest load in conversations/s at which 95 % attain it. × is over the conversation alone on "
    "one engine. Imbalance: what the busiest engine decoded over an even share. Entropy: of the "
    "engines' shares in decoding, 1 where they are even, 0 where one has all. Decision times are "
    "this machine's. Ranked are policies that do not see the future; best_in_hindsight takes the "
    "best of them in each episode. † sees the future; ‡ asks "
    "the engines (needs their exports)."
)


def means(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return means and 95 % intervals over seeds, after the mean over whatever else differs.

    Args:
        rows: A row an episode.
        by: Columns that tell the groups apart.

    Returns:
        Columns of ``by``, ``metric``, ``mean``, ``ci95_low``, ``ci95_high`` and ``seeds``.
    """
    metrics = [column.metric for column in COLUMNS]
    each = rows.groupby([*by, "seed"], sort=False)[metrics].mean()
    long = each.melt(var_name="metric", ignore_index=False).reset_index()
    found = long.groupby([*by, "metric"], sort=False)["value"].agg(["mean", "sem", "size"])
    found = found.reset_index()
    half = half_width(found.pop("sem"), found["size"])
    found["ci95_low"], found["ci95_high"] = found["mean"] - half, found["mean"] + half
    return found.rename(columns={"size": "seeds"})


def table(played: Played, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the leaderboards below each other, each from its best policy to its worst.

    Args:
        played: For capacities.
        rows: A row an episode, as from ``results.loads``.

    Returns:
        Columns ``cluster``, ``workload`` (or ``ALL``), ``rank`` (NaN for who sees the future),
        ``policy``, ``reads``, ``sees_future``, ``capacity`` (text), and for each metric its mean,
        ``_low`` and ``_high``.
    """
    names = {one.key: one.name for one in played.competitors}
    carried = {(c, w, names[key]): str(one) for (c, w, key), one in played.searches.items()}
    by_workload = rows.groupby(["cluster", "workload", "policy", "seed"], sort=False)
    metrics = [column.metric for column in COLUMNS]
    overall = by_workload[metrics].mean().reset_index().assign(workload=ALL)
    both = pd.concat([overall, rows], ignore_index=True)
    long = means(both, ["cluster", "workload", "policy"])
    wide = long.pivot(index=["cluster", "workload", "policy"], columns="metric", values="mean")
    for name, suffix in (("ci95_low", "_low"), ("ci95_high", "_high")):
        ends = long.pivot(index=["cluster", "workload", "policy"], columns="metric", values=name)
        wide = wide.join(ends.add_suffix(suffix))
    wide = wide.reset_index()
    kinds = rows.drop_duplicates("policy").set_index("policy")[["reads", "sees_future"]]
    wide = wide.join(kinds, on="policy")
    wide["capacity"] = [
        carried.get(key, "") for key in zip(wide.cluster, wide.workload, wide.policy, strict=True)
    ]
    wide = wide.sort_values(["slo_attainment_pct", "goodput_per_s"], ascending=False, kind="stable")
    honest = wide[~wide["sees_future"]]
    wide["rank"] = honest.groupby(["cluster", "workload"]).cumcount() + 1
    places = {place: i for i, place in enumerate(_places(rows))}
    order = [places[place] for place in zip(wide.cluster, wide.workload, strict=True)]
    wide = wide.iloc[sorted(range(len(wide)), key=order.__getitem__)].reset_index(drop=True)
    ends = [metric + end for metric in metrics for end in ("", "_low", "_high")]
    head = ["cluster", "workload", "rank", "policy", "reads", "sees_future", "capacity"]
    return wide[head + ends]


def _places(rows: pd.DataFrame) -> Iterator[tuple[str, str]]:
    for cluster in rows["cluster"].unique():
        yield cluster, ALL
        for workload in rows["workload"].unique():
            yield cluster, workload


def headings(*, capacity: bool) -> list[str]:
    """Return the heads of a leaderboard's columns."""
    says = [column.says for column in COLUMNS]
    if capacity:
        says.insert(CAPACITY_AFTER, "capacity, conv./s")
    return ["rank", "policy", "reads", *says]


def cells(row: pd.Series, *, capacity: bool, intervals: bool = True) -> list[str]:
    """Return a row of a leaderboard as texts, in the order of ``headings``."""
    shown = []
    for column in COLUMNS:
        mean, low, high = (row[column.metric + end] for end in ("", "_low", "_high"))
        text = "" if math.isnan(mean) else f"{mean:{column.form}}"
        timed = column.metric.startswith("decision")
        if intervals and text and not math.isnan(low) and not timed:
            text += f" ± {(high - low) / 2:{column.form}}"
        shown.append(text)
    if capacity:
        shown.insert(CAPACITY_AFTER, row["capacity"])
    rank = "" if math.isnan(row["rank"]) else f"{row['rank']:.0f}"
    return [rank, row["policy"] + MARKS.get(Reads(row["reads"]), ""), row["reads"], *shown]


def heading(cluster: str, workload: str) -> str:
    """Return what a leaderboard is about."""
    return f"{cluster}: {'all workloads' if workload == ALL else workload}"


def write(folder: Path, board: pd.DataFrame, first_lines: Sequence[str]) -> list[Path]:
    """Write ``leaderboard.md`` and ``.csv``; each appears whole or not at all."""
    written = [folder / "leaderboard.md", folder / "leaderboard.csv"]
    with whole(written[0]) as partial:
        partial.write_text("\n".join(_markdown(board, first_lines)) + "\n", encoding="utf-8")
    with whole(written[1]) as partial:
        board.to_csv(partial, index=False)
    return written


def _markdown(board: pd.DataFrame, first_lines: Sequence[str]) -> Iterator[str]:
    for line in first_lines:
        yield f"- {line}"
    for (cluster, workload), rows in board.groupby(["cluster", "workload"], sort=False):
        capacity = bool((rows["capacity"] != "").any())
        yield f"\n## {heading(cluster, workload)}\n"
        heads = headings(capacity=capacity)
        yield _row(heads)
        yield _row(["---"] * len(heads))
        for _, row in rows.iterrows():
            yield _row(cells(row, capacity=capacity))
    yield f"\n{NOTE}"


def _row(texts: Sequence[str]) -> str:
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in texts)} |"
