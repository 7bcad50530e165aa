"""Tables of results, and who is ahead in them."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest

from conserve_gym.agents.reproduction.cells import Cell, Part
from conserve_gym.agents.reproduction.published import PAPER, SHARES
from conserve_gym.agents.reproduction.table import frame, table, write
from conserve_gym.agents.reproduction.values import Setting, Values
from conserve_gym.agents.reproduction.winners import Winner, winner
from conserve_gym.agents.statistics import estimate
from conserve_gym.metrics import Clock

COLUMNS = [
    "part",
    "variant",
    "arm",
    "sees_future",
    "clock",
    "rate",
    "metric",
    "statistic",
    "ours",
    "ci95_low",
    "ci95_high",
    "seeds",
    "paper_draw",
    "paper",
    "paper_by_eye",
    "ratio",
]


def by_seed(
    arm: str,
    values: Mapping[int, float],
    metric: str = "ttfet_p95",
    *,
    part: Part = "paper",
    variant: str = "300/300",
    clock: Clock = "artifact",
    rate: float = 1.634,
) -> dict[Cell, dict[str, float]]:
    """Return results of one arm in one setting."""
    return {
        Cell(part, variant, arm, clock, rate, seed): {metric: value}
        for seed, value in values.items()
    }


def row(results: dict[Cell, dict[str, float]]) -> pd.Series:
    rows = table(frame(results))
    assert list(rows.columns) == COLUMNS
    assert len(rows) == 1
    return rows.iloc[0]


def test_a_row_by_hand() -> None:
    found = row(by_seed("conserve_oracle", {42: 4.0, 0: 5.0, 1: 3.5}))
    assert (found["arm"], found["metric"], found["statistic"]) == (
        "conserve_oracle",
        "ttfet",
        "p95",
    )
    assert found["sees_future"]
    interval = estimate([4.0, 5.0, 3.5])
    assert found[["ours", "ci95_low", "ci95_high"]].tolist() == pytest.approx(interval)
    assert (found["seeds"], found["paper_draw"], found["paper"]) == (3, 4.0, 4.06)
    assert found["ratio"] == pytest.approx(interval.mean / 4.06)
    assert not found["paper_by_eye"]


def test_one_seed_has_no_interval_and_may_not_be_the_papers_draw() -> None:
    found = row(by_seed("conserve", {7: 4.0}))
    assert math.isnan(found["ci95_low"]) and math.isnan(found["ci95_high"])
    assert math.isnan(found["paper_draw"])
    assert found["ours"] == 4.0
    assert not found["sees_future"]


def test_metrics_are_split_into_metric_and_statistic() -> None:
    names = {
        "ttfet_gmean": ("ttfet", "gmean"),
        "tbt_p95": ("tbt", "p95"),
        "tbt_mean_p95": ("tbt_mean", "p95"),
        "e2e_slo_violation_pct": ("e2e", "slo_violation_pct"),
        "tokens_per_joule": ("tokens_per_joule", "value"),
        "ttft_s_p50": ("ttft_s_p50", "value"),
        "span_s": ("span_s", "value"),
    }
    rows = table(
        frame({Cell("paper", "300/300", "ampd", "artifact", 1.0, 0): dict.fromkeys(names, 1.0)})
    )
    assert list(zip(rows["metric"], rows["statistic"], strict=True)) == list(names.values())


def test_the_papers_figures_stand_beside_ours_everywhere() -> None:
    results: dict[Cell, dict[str, float]] = {}
    for arm, caps, rate, metric in PAPER:
        results.setdefault(Cell("paper", caps, arm, "artifact", rate, 0), {})[metric] = 2.0
    for share, metric in SHARES:
        cell = Cell("shares", f"{share:g}", "ampd", "artifact", 1.634, 0)
        results.setdefault(cell, {})[metric] = 2.0
    rows = table(frame(results))
    assert len(rows) == len(PAPER) + len(SHARES)
    assert rows["paper"].notna().all()
    # A ratio to nothing is none: ConServe misses no SLO in the paper.
    assert (rows["ratio"].isna() == (rows["paper"] == 0.0)).all()
    assert rows["paper_by_eye"].sum() == sum(
        one.by_eye for one in (*PAPER.values(), *SHARES.values())
    )


@pytest.mark.parametrize(
    "results",
    [
        by_seed("conserve_oracle", {0: 4.0}, clock="user"),
        by_seed("conserve_oracle", {0: 4.0}, rate=1.5),
        by_seed("conserve_oracle", {0: 4.0}, variant="200/200"),
        by_seed("conserve_oracle", {0: 4.0}, "tbt_mean_p95"),
        by_seed("conserve", {0: 4.0}),
        by_seed("ampd_corrected", {0: 4.0}),
        by_seed("conserve_oracle", {0: 4.0}, part="sensitivity", variant="prefill 2"),
        by_seed("ampd", {0: 4.0}, part="shares", variant="0.1"),
        by_seed("ampd", {0: 4.0}, "tokens_per_joule", part="shares", variant="0"),
        by_seed("conserve_oracle", {0: 4.0}, part="scenarios", variant="kv_half", clock="user"),
    ],
)
def test_the_papers_figures_stand_nowhere_else(results: dict[Cell, dict[str, float]]) -> None:
    found = row(results)
    assert math.isnan(found["paper"]) and math.isnan(found["ratio"])
    assert not found["paper_by_eye"]


def test_files_are_by_part_and_name_what_varies(tmp_path: Path) -> None:
    results = {
        **by_seed("conserve", {0: 1.0}),
        **by_seed("ampd", {0: 2.0}, part="shares", variant="0.5"),
        **by_seed("conserve", {0: 3.0}, part="scenarios", variant="bursty", clock="user"),
        **by_seed("conserve", {0: 4.0}, part="sensitivity", variant="prefill 2"),
    }
    written = write(tmp_path, table(frame(results)))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in written)
    for name, varies, value, ours in (
        ("table", "caps", "300/300", 1.0),
        ("shares", "misrouted_share", "0.5", 2.0),
        ("scenarios", "scenario", "bursty", 3.0),
        ("sensitivity", "constant", "prefill 2", 4.0),
    ):
        with (tmp_path / f"{name}.csv").open(newline="") as file:
            (found,) = csv.DictReader(file)
        assert list(found) == [varies, *COLUMNS[2:]]
        assert (found[varies], float(found["ours"])) == (value, ours)


def test_values_are_looked_up_by_everything_but_the_seed() -> None:
    values = Values(
        {
            **by_seed("conserve", {42: 1.0, 0: 3.0}),
            **by_seed("conserve", {42: 7.0}, clock="user"),
            **by_seed("conserve", {42: 8.0}, rate=1.0),
            **by_seed("conserve", {42: 9.0}, part="scenarios", variant="bursty"),
        }
    )
    assert values.by_seed("conserve", "ttfet_p95", Setting(1.634)) == {42: 1.0, 0: 3.0}
    assert values.mean("conserve", "ttfet_p95", Setting(1.634)) == estimate([1.0, 3.0])
    assert values.mean("conserve", "ttfet_p95", Setting(1.634, "user")).mean == 7.0
    assert values.mean("conserve", "ttfet_p95", Setting(1.0)).mean == 8.0
    beyond = Setting(1.634, "artifact", "bursty", "scenarios")
    assert values.mean("conserve", "ttfet_p95", beyond).mean == 9.0
    assert values.has("conserve", Setting(1.634, "user"))
    assert not values.has("conserve", Setting(1.0, "user"))
    assert not values.has("conserve", Setting(1.634, variant="bursty"))


def test_differences_are_paired_by_seed() -> None:
    values = Values(
        {**by_seed("conserve", {0: 1.0, 1: 20.0, 2: 5.0}), **by_seed("colocate", {1: 22.0, 0: 2.0})}
    )
    found = values.difference(("conserve", "colocate"), "ttfet_p95", Setting(1.634))
    assert found == estimate([1.0 - 2.0, 20.0 - 22.0])


ARMS = ("colocate", "conserve", "ampd")


def ahead(*of_arms: Mapping[int, float], metric: str = "ttfet_p95") -> Winner:
    results: dict[Cell, dict[str, float]] = {}
    arms = ARMS[: len(of_arms)]
    for arm, values in zip(arms, of_arms, strict=True):
        results.update(by_seed(arm, values, metric=metric))
    return winner(Values(results), arms, metric, Setting(1.634))


def test_the_lowest_is_ahead_or_the_highest() -> None:
    three = ({0: 5.0, 1: 5.1}, {0: 3.0, 1: 3.1}, {0: 4.0, 1: 4.1})
    assert ahead(*three) == Winner("conserve", level=False)
    assert ahead(*three, metric="slo_attainment_pct") == Winner("colocate", level=False)
    assert ahead(*three[:2]) == Winner("conserve", level=False)


def test_ties_are_level() -> None:
    same = {0: 3.0, 1: 4.0, 2: 5.0}
    assert ahead(same, same).level
    assert ahead({0: 4.0}, {0: 4.0}).level
    # Within 1 % of the better one, however surely; and on one seed by that alone.
    assert ahead(same, {seed: 1.009 * value for seed, value in same.items()}).level
    assert not ahead(same, {seed: 1.02 * value for seed, value in same.items()}).level
    assert ahead({0: 100.0}, {0: 100.9}) == Winner("colocate", level=True)
    assert ahead({0: 100.0}, {0: 102.0}) == Winner("colocate", level=False)
    assert ahead({0: 100.0}, {0: 99.1}, metric="tokens_per_joule") == Winner("colocate", level=True)


def test_pairing_tells_apart_what_intervals_do_not() -> None:
    """Seeds differ by a factor of ten, arms by a tenth, always in the same direction."""
    first = {0: 1.0, 1: 5.0, 2: 10.0}
    second = {0: 1.4, 1: 5.5, 2: 10.6}
    assert ahead(first, second) == Winner("colocate", level=False)
    # The same values in other places do not go in one direction.
    assert ahead(first, {0: 10.6, 1: 1.4, 2: 5.5}) == Winner("colocate", level=True)
