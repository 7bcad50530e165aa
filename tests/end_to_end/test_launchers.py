"""Several jobs from one command line, with every launcher that is installed."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import time
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from commands import call, command, rows, run

TINY_RUN = (
    "experiment=quick",
    "workload.conversations=16",
    "agent.n_envs=2",
    "agent.n_steps=64",
    "agent.batch_size=64",
    "checkpoint_every=256",
)
LAUNCHERS = {
    "joblib": ("joblib", ["hydra/launcher=joblib"]),
    "slurm": ("submitit", ["hydra/launcher=submitit_local"]),  # what SLURM runs, without it
    "ray": ("ray", ["hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2"]),
}


def launched(script: str, *arguments: str, cwd: Path) -> CompletedProcess[str]:
    # Ray writes a token below HOME.
    return run(script, "--multirun", *arguments, cwd=cwd, HOME=str(cwd), RAY_AUTH_MODE="disabled")


def test_a_job_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    arguments = ("seeds=1", "workload.conversations=8", "policies=conserve", "output=out")
    done = launched("evaluate", "arrivals.rate=-1,1", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "error: arrivals.rate=-1" in done.stderr
    assert "Traceback" not in done.stderr
    failed, played = rows(tmp_path / "out" / "jobs.csv")
    assert failed["job"] == "arrivals.rate_-1"
    assert failed["error"].startswith("arrivals.rate=-1")
    assert played["error"] == ""
    assert 0.0 <= float(played["conserve, %"]) <= 100.0
    stamp = json.loads((tmp_path / "out" / "arrivals.rate_1" / "evaluation.json").read_text())
    assert stamp["command"] == [
        "scripts/evaluate.py",
        "arrivals.rate=1",
        *arguments[:3],
        f"output={tmp_path / 'out' / 'arrivals.rate_1'}",
    ]
    again = call("evaluate", "--multirun", "arrivals.rate=1", *arguments, "seeds=2", cwd=tmp_path)
    assert again.returncode == 2  # the folder's table still has the one that failed
    left = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert left == {"out"}  # matplotlib keeps its fonts in .cache of HOME


@pytest.mark.slow
@pytest.mark.parametrize("extra", LAUNCHERS)
def test_two_trainings_and_once_more(tmp_path: Path, extra: str) -> None:
    module, launcher = LAUNCHERS[extra]
    for needed in (module, f"hydra_plugins.hydra_{module}_launcher"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"needs the extra {extra}: pip install 'conserve-gym[{extra}]'")
    arguments = (*TINY_RUN, "total_timesteps=512", "run=study", *launcher)
    done = launched("train", "seed=0,1", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = rows(tmp_path / "study" / "jobs.csv")
    assert [row["job"] for row in table] == ["seed_0", "seed_1"]
    for seed in (0, 1):
        folder = tmp_path / "study" / f"seed_{seed}"
        assert f"seed: {seed}" in (folder / "config.yaml").read_text()
        assert (folder / "model.zip").is_file()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("model.zip")}
    more = launched("train", "seed=0,1,2", *arguments, cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert len(rows(tmp_path / "study" / "jobs.csv")) == 3
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())


@pytest.mark.slow
def test_killed_jobs_resume(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs the extra joblib")
    arguments = (*TINY_RUN, "total_timesteps=4096", "run=study", "hydra/launcher=joblib")
    process = subprocess.Popen(
        command("train", "--multirun", "seed=0,1", *arguments),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    folders = [tmp_path / "study" / f"seed_{seed}" for seed in (0, 1)]
    deadline = time.monotonic() + 120
    while not all(list(folder.glob("checkpoints/*.zip")) for folder in folders):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(3.0)  # workers look for their parent once a second
    done = launched("train", "seed=0,1", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("resuming ") == 2
    for folder in folders:
        parts = json.loads((folder / "run.json").read_text())
        assert [part["steps_done"] > 0 for part in parts] == [False, True]


@pytest.mark.slow
def test_jobs_that_have_workers_of_their_own(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs the extra joblib")
    evolution = ("agent=evolution", "environment=joint", "agent.population_size=4")
    length = ("workload.conversations=16", "total_timesteps=64", "agent.workers=1", "run=study")
    arguments = ("seed=0,1", *evolution, *length, "hydra/launcher=joblib")
    done = launched("train", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "study").glob("seed_*/model.zip"))) == 2
