"""The real script of the benchmark: the whole path, a kill, a submission, and wrong input."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
from commands import call, command, rows, run

QUICK_TO_COMPOSE = ("workloads.claude_code=null", "workloads.chat=null")
TINY = (
    "policies=[colocate,conserve]",
    "clusters=[a40_1p3d]",
    *QUICK_TO_COMPOSE,
    "workloads.miniswe.overrides=[workload\\=miniswe,workload.conversations\\=12]",
    "workloads.miniswe.rates=[1.0,4.0]",
    "seeds=2",
    "output=out",
)
MINE = """
from conserve_gym import rules
from conserve_gym.deployment import Deployment


class Mine:
    def __init__(self, site):
        self.name = "mine"
        self.deployment = Deployment()
        self.far = site.fleet

    def reset(self, seed):
        pass

    def decide(self, observation):
        return rules.place(observation, disaggregate=observation["prompt"] > 9000)
"""


def kill_after_first_result(*arguments: str, cwd: Path) -> None:
    """Start a benchmark and kill it once it has played something."""
    process = subprocess.Popen(
        command("benchmark", *arguments),
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    path = cwd / "out" / "cells.jsonl"
    deadline = time.monotonic() + 120
    while not (path.exists() and path.stat().st_size):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait(60)


@pytest.mark.slow
def test_a_benchmark_is_killed_resumed_checked_and_takes_a_submission(tmp_path: Path) -> None:
    kill_after_first_result(*TINY, cwd=tmp_path)
    out = tmp_path / "out"
    kept = (out / "cells.jsonl").read_bytes().rpartition(b"\n")[0]
    done = run("benchmark", *TINY, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "8 cells, of which" in done.stdout
    assert (out / "cells.jsonl").read_bytes().startswith(kept)
    names = {path.name for path in out.iterdir()}
    assert names >= {
        "report.html",
        "leaderboard.md",
        "leaderboard.csv",
        "comparisons.csv",
        "results.parquet",
        "results.csv",
        "conversations.parquet",
        "load_curves_a40_1p3d.png",
        "winners_a40_1p3d.png",
        "pareto_a40_1p3d.png",
        "distributions_a40_1p3d.png",
    }
    assert not [name for name in names if name.endswith(".partial")]
    results = pd.read_parquet(out / "results.parquet")
    grid = results[results["phase"] == "load"]
    assert len(grid) == 2 * 2 * 2
    assert not grid.duplicated(["policy", "rate", "seed"]).any()
    first = (out / "leaderboard.md").read_text("utf-8").splitlines()[0].removeprefix("- ")
    assert " leads on a40_1p3d with " in first
    assert first in " ".join(done.stdout.split())

    verified = run("benchmark", "verify=out", "rows=2", cwd=tmp_path)
    assert verified.returncode == 0, verified.stderr
    assert verified.stdout.count("are the same to the last digit") == 2

    (tmp_path / "mine.py").write_text(MINE)
    scored = run("benchmark", *TINY, "submission=mine.py:Mine", cwd=tmp_path)
    assert scored.returncode == 0, scored.stderr
    assert "12 cells, of which 8 are stored" in scored.stdout
    assert "mine ranks " in scored.stdout and " of 3 on a40_1p3d" in scored.stdout
    ranked = {row["policy"] for row in rows(out / "leaderboard.csv") if row["rank"]}
    assert ranked == {"colocate", "conserve", "mine"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["policies=[nobody]"], "'nobody'"),
        (["+workloads.mine={overrides: ['workload=nothing'], rates: [1.0]}"], "workloads.mine"),
    ],
)
def test_wrong_input_is_one_clear_error_and_leaves_nothing(
    tmp_path: Path, arguments: list[str], says: str
) -> None:
    failed = call("benchmark", *QUICK_TO_COMPOSE, *arguments, "output=out", cwd=tmp_path)
    assert failed.returncode == 2
    assert says in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
