"""A benchmark plays what is missing, keeps it, and looks for capacities."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from small_benchmark import played, spec

from conserve_gym.agents import campaign
from conserve_gym.agents.benchmark import leaderboard, playing, results
from conserve_gym.agents.benchmark.answers import first_lines
from conserve_gym.agents.benchmark.playing import Benchmark
from conserve_gym.agents.benchmark.spec import WorkloadSpec
from conserve_gym.agents.benchmark.verify import again, verify
from conserve_gym.envs.configuration import ConfigurationError

FAILS = """
from conserve_gym.baselines.colocate import Colocate

class Mine(Colocate):
    def decide(self, observation):
        raise IndexError("engine 9")
"""


@pytest.fixture(autouse=True)
def in_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def pool(workers: int, **_: object) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(workers)

    monkeypatch.setattr(campaign, "ProcessPoolExecutor", pool)
    yield


def stored(folder: Path) -> list[str]:
    return (folder / campaign.RESULTS).read_text("utf-8").splitlines()


def test_the_grid_is_played_once_and_grows(tmp_path: Path) -> None:
    first = played(spec(tmp_path))
    assert len(first.results) == len(stored(tmp_path)) == 2 * 2 * 2
    assert {cell.seed for cell in first.results} == {500_000, 500_001}
    assert played(spec(tmp_path)).results == first.results
    more = played(spec(tmp_path, submission="random", seeds=3))
    assert len(more.results) == len(stored(tmp_path)) == 3 * 2 * 3
    assert first.results.items() <= more.results.items()


def test_estimate_and_what_is_stored_are_told(tmp_path: Path) -> None:
    for says in (("8 cells, of which 0 are stored", "6 are left: about "), ("8 are stored",)):
        told = io.StringIO()
        Benchmark(spec(tmp_path), Console(file=told)).play()
        assert all(one in told.getvalue() for one in says)


def test_a_capacity_is_searched_for_between_the_loads(tmp_path: Path) -> None:
    workload = WorkloadSpec(("workload=miniswe", "workload.conversations=60"), (0.5, 8.0))
    asked = spec(tmp_path, workloads={"miniswe": workload}, capacity_tolerance=0.5)
    found = played(asked)
    search = found.searches["a40_1p3d", "miniswe", "colocate"]
    assert 0.5 <= search.carried < search.failed <= 8.0
    assert search.failed - search.carried <= 0.5 * search.carried
    rows = results.frame(found)
    assert set(rows.loc[rows["phase"] == "capacity", "rate"]) >= set(search.attained) - {0.5, 8.0}
    assert set(results.loads(rows)["rate"]) == {0.5, 8.0}
    before = stored(tmp_path)
    assert played(asked).searches == found.searches
    assert stored(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"workloads": {"miniswe": WorkloadSpec(("workload=miniswe",), (1.0,))}},
            r"another workloads\.miniswe",
        ),
        ({"arrivals": "bursty"}, r"another workloads\.miniswe"),
        ({"clusters": ("nowhere",)}, "clusters=nowhere, workloads.miniswe: .*cluster/nowhere"),
        (
            {"workloads": {"mine": WorkloadSpec(("workload=nothing",), (1.0,))}},
            "workloads.mine: .*workload/nothing",
        ),
        ({"policies": ("nobody",)}, "'nobody'"),
    ],
)
def test_what_cannot_be_played_is_refused_before(
    tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    played(spec(tmp_path))
    before = stored(tmp_path)
    with pytest.raises(ConfigurationError, match=says):
        played(spec(tmp_path, **changes))
    assert stored(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seeds": (1_000_000,)}, "training has those above"),
        ({"workloads": {"miniswe": None}}, "all are left out"),
        ({"policies": ("colocate", "colocate")}, "names one twice"),
        ({"workloads": {"a": WorkloadSpec((), (1.0, 1.0))}}, r"workloads\.a\.rates"),
    ],
)
def test_wrong_settings(tmp_path: Path, changes: dict[str, object], says: str) -> None:
    with pytest.raises((ConfigurationError, ValueError), match=says):
        spec(tmp_path, **changes)


def test_who_fails_is_left_out_but_a_submission_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FAILS)
    asked = f"{tmp_path / 'mine.py'}:Mine"
    found = played(spec(tmp_path / "out", policies=("colocate", asked)))
    assert {cell.policy for cell in found.results} == {"colocate"}
    (reason,) = found.competitors[1].left_out.values()
    assert "IndexError: engine 9" in reason
    with pytest.raises(ConfigurationError, match=r"fails on a40_1p3d, miniswe.*IndexError"):
        played(spec(tmp_path / "out", submission=asked))


def test_a_bound_is_played_by_its_own_function_and_has_no_capacity(
    tmp_path: Path,
) -> None:
    bound = {"look_ahead": {"base": "conserve"}}
    found = played(spec(tmp_path, policies=("conserve", bound), capacity_tolerance=0.5))
    assert {key for *_, key in found.searches} == {"conserve"}
    rows = results.loads(results.frame(found))
    assert set(rows["policy"]) == {"conserve", "look_ahead(conserve)", results.HINDSIGHT}
    lines = first_lines(found, rows, leaderboard.table(found, rows))
    assert any("look_ahead(conserve) † +0.0 at 1, +0.0 at 3" in line for line in lines)


def test_the_best_in_hindsight_is_the_best_honest_one_of_each_episode(tmp_path: Path) -> None:
    found = played(spec(tmp_path, policies=("colocate", "random", "conserve_oracle")))
    rows = results.loads(results.frame(found))
    best = rows[rows["policy"] == results.HINDSIGHT]
    assert len(best) == 4 and best["sees_future"].all()
    assert best["decision_us_mean"].isna().all()
    honest = rows[~rows["sees_future"]]
    for _, one in best.iterrows():
        same = honest[(honest["rate"] == one["rate"]) & (honest["seed"] == one["seed"])]
        assert one["slo_attainment_pct"] == same["slo_attainment_pct"].max()


def test_rows_come_back_exactly_and_a_changed_figure_is_found(tmp_path: Path) -> None:
    found = played(spec(tmp_path))
    rows = results.frame(found)
    latencies = results.conversations(found)
    results.write(tmp_path, rows, latencies)
    read = pd.read_parquet(tmp_path / results.RESULTS)
    numbers = rows.select_dtypes("number").columns
    assert np.array_equal(read[numbers], rows[numbers], equal_nan=True)
    assert len(pd.read_parquet(tmp_path / results.CONVERSATIONS)) == len(rows) * 12
    told = io.StringIO()
    assert verify(tmp_path, 2, Console(file=told, width=500))
    assert told.getvalue().count("are the same to the last digit") == 2

    texts = json.loads((tmp_path / playing.SCENARIOS).read_text())
    row = read.iloc[0].to_dict()
    row["ttfet_p95"] = np.nextafter(row["ttfet_p95"], np.inf)
    verdict = again(row, texts)
    assert len(verdict.differing) == 1 and verdict.differing[0].startswith("ttfet_p95")
    with pytest.raises(ConfigurationError, match="does not have the scenario"):
        again(row, {key: text.replace("12", "13") for key, text in texts.items()})
