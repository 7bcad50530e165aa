"""The real script of the reproduction: the whole path, a kill, and wrong input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from commands import call, command, rows, run

# Hydra merges dictionaries: to leave the packaged settings out, the key goes and comes again.
SCENARIOS_ANEW = (
    "~scenarios",
    "+scenarios={four: {says: four times the KV budget, rates: [1.0], cluster: a40_1p3d, "
    "arrivals: paper_saturation, workload: null, changes: "
    "['cluster.engines.1.kv_capacity_tokens=1233792']}}",
)
TINY = (
    "workload.conversations=12",
    "rates=[1.0,1.634]",
    "seeds=[42,0]",
    "caps=[300/300]",
    "misrouted_shares=[0.0,0.5]",
    "sensitivity.constants=[prefill]",
    "sensitivity.factors=[2.0]",
    "output=out",
    *SCENARIOS_ANEW,
)
PARTS = ("table", "shares", "scenarios", "sensitivity")
PICTURES = ("headline", "headline_user", "energy", "shares", "scenarios", "sensitivity")


def cells(folder: Path) -> list[str]:
    """Return the cells of the whole lines of the results."""
    whole, _, _ = (folder / "cells.jsonl").read_text().rpartition("\n")
    return [json.dumps(json.loads(line)["cell"]) for line in whole.splitlines()]


def test_a_reproduction_writes_tables_pictures_and_a_report(tmp_path: Path) -> None:
    done = run("reproduce", *TINY, "workers=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    names = {f"{part}.csv" for part in PARTS} | {f"{name}.png" for name in PICTURES}
    assert {path.name for path in out.iterdir()} == {
        *names,
        "report.md",
        "cells.jsonl",
        "settings.json",
    }
    assert not list(tmp_path.rglob("*.partial"))
    for name in (*names, "report.md"):
        assert f"out/{name}" in done.stdout
    for name in PICTURES:
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    heading, verdict, *_ = (out / "report.md").read_text().split("\n\n")
    assert heading.startswith("# ")
    assert "the user's clock" in verdict
    assert any(says in verdict for says in ("the winner round", "the two level", "parts the two"))
    assert " ".join(verdict.split()) in " ".join(done.stdout.split())
    table = rows(out / "table.csv")
    assert {row["rate"] for row in table} == {"1.0", "1.634"}
    assert {row["caps"] for row in table} == {"300/300"}
    assert {row["clock"] for row in table} == {"artifact", "user"}
    shown = {
        row["arm"]: row["paper"]
        for row in table
        if (row["clock"], row["rate"], row["metric"], row["statistic"])
        == ("artifact", "1.634", "ttfet", "p95")
    }
    assert {arm: float(paper) for arm, paper in shown.items() if paper} == {
        "colocate_oracle": 5.56,
        "full_disagg": 104.0,
        "ampd": 8.3,
        "conserve_oracle": 4.06,
    }
    # 15 arms on clocks at 2 rates, 2 shares, 6 arms beyond, 6 arms on clocks at 2 rates; 2 seeds.
    assert len(cells(out)) == len(set(cells(out))) == 2 * (15 * 2 + 2 + 6 + 6 * 2)


def stopped(signum: signal.Signals, *arguments: str, cwd: Path) -> tuple[int, list[str]]:
    """Start a reproduction, stop it once it has played something, and return exit code and errors.

    Ctrl-C goes to all processes of a group, a kill to one.
    """
    results = cwd / "out" / "cells.jsonl"
    size = results.stat().st_size if results.exists() else 0
    with (cwd / "errors").open("w") as errors:
        process = subprocess.Popen(
            command("reproduce", *arguments),
            cwd=cwd,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,  # its workers are in its group
        )
    try:
        deadline = time.monotonic() + 120
        while not (results.exists() and results.stat().st_size > size):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        send = os.kill if signum is signal.SIGKILL else os.killpg
        send(process.pid, signum)
        process.wait(60)
        deadline = time.monotonic() + 30
        while group_lives(process.pid):
            assert time.monotonic() < deadline, "workers go on without who started them"
            time.sleep(0.05)
    finally:
        if group_lives(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, (cwd / "errors").read_text().splitlines()


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_a_stopped_reproduction_goes_on_and_leaves_nobody_behind(tmp_path: Path) -> None:
    arguments = (
        *(one for one in TINY if not one.startswith(("rates", "seeds", "misrouted", "~", "+"))),
        "rates=[1.0]",
        "seeds=[42,0,1,2,3,4,5,6]",
        "misrouted_shares=[]",
        "sensitivity.factors=[]",
        "~scenarios",
        "+scenarios={}",
        "workers=2",
    )
    out, total = tmp_path / "out", 8 * 15
    code, _ = stopped(signal.SIGKILL, *arguments, cwd=tmp_path)
    assert code == -signal.SIGKILL
    killed = cells(out)
    assert 0 < len(killed) < total

    code, errors = stopped(signal.SIGINT, *arguments, cwd=tmp_path)
    assert code == 130
    assert "goes on when it is started again" in errors[-1]
    interrupted = cells(out)
    assert interrupted[: len(killed)] == killed

    kept = (out / "cells.jsonl").read_bytes().rpartition(b"\n")[0]
    resumed = run("reproduce", *arguments, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert (out / "cells.jsonl").read_bytes().startswith(kept)
    assert len(cells(out)) == len(set(cells(out))) == total
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["caps=[100/100]"], "'100/100' is none of"),
        (["workload.path=absent.csv"], "absent.csv: no such file"),
        (["rate=[1.0]"], "'rate'"),
    ],
)
def test_wrong_input_is_one_clear_error_and_leaves_nothing(
    tmp_path: Path, arguments: list[str], says: str
) -> None:
    failed = call("reproduce", *arguments, "output=out", cwd=tmp_path)
    assert failed.returncode in (1, 2)
    assert says in failed.stderr
    assert "Traceback" not in failed.stderr
    if failed.returncode == 2:
        assert len(failed.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_another_workload_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "settings.json").write_text('{"workload": {"path": "another.csv"}}')
    failed = call("reproduce", *TINY, cwd=tmp_path)
    assert failed.returncode == 2
    assert "output=out holds results with another" in failed.stderr
    assert "workload" in failed.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["settings.json"]
