"""The real scripts: the whole path, a kill, and wrong input."""

from __future__ import annotations

import csv
import functools
import gzip
import json
import math
import signal
import subprocess
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from commands import call, command, rows, run

TRACE = Path(__file__).parents[3] / "shared" / "traces" / "conserve_miniswe_trace.csv.gz"
TINY_RUN = (
    "experiment=quick",
    "workload.conversations=16",
    "agent.n_envs=2",
    "agent.n_steps=64",
    "agent.batch_size=64",
)


def test_train_export_evaluate(tmp_path: Path) -> None:
    trained = call("train", *TINY_RUN, "total_timesteps=256", "run=runs/tiny", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    exported = run("export", "run=runs/tiny", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert "verified" in exported.stdout
    evaluated = call(
        "evaluate",
        "policies=[colocate,full_disagg,conserve,conserve_oracle,random,runs/tiny,runs/tiny/policy]",
        "seeds=2",
        "workload.conversations=16",
        "timeline=true",
        "output=out",
        cwd=tmp_path,
    )
    assert evaluated.returncode == 0, evaluated.stderr
    for says in (
        "less colocate",
        "2 seeds",
        "95 %",
        "miniswe",
        "Poisson",
        "a40_1p3d",
        "conserve_oracle †",
    ):
        assert says in evaluated.stdout
    results = rows(tmp_path / "out" / "results.csv")
    assert {row["policy"] for row in results} >= {"colocate", "runs/tiny", "runs/tiny/policy"}
    assert {row["seed"] for row in results} == {"0", "1"}
    future = {row["policy"] for row in results if row["sees_future"] == "True"}
    assert future == {"conserve_oracle"}
    assert all(math.isfinite(float(row["value"])) for row in results)
    by_policy = {
        row["policy"]: float(row["value"])
        for row in results
        if row["metric"] == "kv_moves_per_conversation" and row["seed"] == "0"
    }
    assert by_policy["colocate"] == 0.0
    assert by_policy["conserve"] == 1.0
    assert by_policy["full_disagg"] == 5.0
    assert (tmp_path / "out" / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    timelines = sorted(path.name for path in (tmp_path / "out").glob("timeline-*"))
    assert len(timelines) == 2 * 7
    assert {"timeline-conserve.json", "timeline-runs%2Ftiny%2Fpolicy.png"} <= set(timelines)
    for name in timelines:
        assert f"out/{name}" in evaluated.stdout
    recorded = json.loads((tmp_path / "out" / "timeline-runs%2Ftiny.json").read_text())
    placed = [e for e in recorded["traceEvents"] if e["name"].startswith("placed")]
    assert len(placed) == 16
    assert rows(tmp_path / "out" / "summary.csv")[0].keys() >= {"mean", "ci95_low", "ci95_high"}
    assert not list(tmp_path.rglob("*.partial"))
    again = call("evaluate", "seeds=2", "workload.conversations=16", "output=again", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert not list((tmp_path / "again").glob("timeline-*"))
    first = {tuple(row.values()) for row in results if row["policy"] in ("colocate", "conserve")}
    assert first <= {tuple(row.values()) for row in rows(tmp_path / "again" / "results.csv")}


def test_an_evaluation_of_clusters_that_are_drawn(tmp_path: Path) -> None:
    done = call(
        "evaluate",
        "policies=[colocate,fleet]",
        "randomise=fleet",
        "randomise.cluster.engines=[2,4]",
        "~randomise.workloads.claude_code",  # slow to compose, as is chat
        "~randomise.workloads.chat",
        "randomise.conversations=20",
        "seeds=3",
        "output=out",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "drawn" in done.stdout
    results = rows(tmp_path / "out" / "results.csv")
    assert {(row["policy"], row["seed"]) for row in results} == {
        (policy, seed) for policy in ("colocate", "fleet") for seed in "012"
    }
    decided = [row["value"] for row in results if row["metric"] == "fallback_pct"]
    assert set(decided) == {"0.0"}


def test_a_killed_run_resumes_within_a_checkpoint_interval(tmp_path: Path) -> None:
    arguments = (*TINY_RUN, "total_timesteps=2048", "checkpoint_every=256", "run=run")
    process = subprocess.Popen(
        command("train", *arguments, "progress_bar=false"),
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoints = tmp_path / "run" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("*.zip")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    newest = max(int(path.stem) for path in checkpoints.glob("*.zip"))
    resumed = call("train", *arguments, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert f"at {newest:,} of 2,048 steps" in resumed.stdout
    assert (tmp_path / "run" / "model.zip").is_file()
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    ("script", "arguments", "says"),
    [
        ("evaluate", ["policies=[conserve,clairvoyance]"], "clairvoyance"),
        ("evaluate", ["cluster=a41"], "a41"),
        ("evaluate", ["workload.conversation=3"], "workload.conversation"),
        ("evaluate", ["arrivals.rate=-1"], "arrivals.rate=-1"),
        ("evaluate", ["arrivals.rate=fast"], "arrivals.rate"),
        ("evaluate", ["seeds=0"], "seeds=0"),
        ("evaluate", ["seeds=[1,1]"], "none twice"),
        ("evaluate", ["seeds=[1000000]"], "1000000"),
        ("evaluate", ["policies=[]"], "policies=[]"),
        ("evaluate", ["policies=[conserve,conserve]"], "none twice"),
        ("evaluate", ["cluster.engines.0.role=decode"], "cannot disaggregate"),
        ("evaluate", ["clock=sundial"], "clock='sundial'"),
        ("evaluate", ["timeline=all"], "timeline='all'"),
        ("evaluate", ["cluster.engines.1.role=prefill"], "no engine decodes"),
        ("evaluate", ["cluster.engines.0.kv_capacity_tokens=8192"], "8192"),
        ("evaluate", ["workload=trace", "workload.path=broken.csv"], "line 3: output_tokens='0'"),
        ("evaluate", ["workload=trace", "workload.path=absent.csv"], "absent.csv"),
        ("evaluate", ["policies=[broken_policy]"], "policy.json"),
        ("export", ["run=nowhere"], "nowhere"),
        ("workload", [], "what to do is needed: profile FILE"),
        ("workload", ["look", "broken.csv"], "'look' is none of profile FILE, convert FILE"),
        ("workload", ["do=profile"], "path is needed: path=..."),
        ("workload", ["do=profile", "path=absent.csv", "output=out"], "absent.csv: no such file"),
        ("workload", ["profile", "is absent.csv", "output=out"], "is absent.csv: no such file"),
        ("workload", ["do=convert", "path=broken.csv", "output=a.csv"], "output_tokens='0'"),
        ("workload", ["do=fit", "path=broken.csv", "output=out"], "source is needed"),
        ("validate", ["measurements=nowhere"], "measurements=nowhere: no such folder"),
        ("validate", ["traces=nowhere"], "traces=nowhere: no such folder"),
        ("train", ["agent.n_step=3"], "agent.n_step"),
        ("train", ["experiment=unheard_of"], "unheard_of"),
    ],
)
def test_wrong_input_is_one_clear_error_and_leaves_nothing(
    tmp_path: Path, script: str, arguments: list[str], says: str
) -> None:
    (tmp_path / "broken.csv").write_text(
        "conv_id,turn,gap_s,input_tokens,new_tokens,output_tokens\na,0,,100,100,5\na,1,0,110,5,0\n"
    )
    (tmp_path / "broken_policy").mkdir()
    (tmp_path / "broken_policy" / "policy.json").write_text('{"schema": 1')
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    extra = ["output=out"] if script in ("evaluate", "validate") else []
    failed = call(script, *arguments, *extra, cwd=tmp_path)
    assert failed.returncode in (1, 2)
    assert says in failed.stderr
    assert "Traceback" not in failed.stderr
    after = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_a_report_names_the_files_that_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = call("validate", "measurements=empty", "output=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "other tiers: empty/aic_iteration_grid.csv.gz: no such file" in done.stdout
    assert "A40 power: the paper's trace is not there: traces=FOLDER" in done.stdout  # a default
    checks = rows(tmp_path / "out" / "fidelity.csv")
    assert f"{len(checks)} of {len(checks)} checks hold; 7 groups not checked" in done.stdout


@pytest.mark.skipif(not TRACE.exists(), reason="the paper's trace is not beside the checkout")
def test_the_papers_trace_at_saturation(tmp_path: Path) -> None:
    """On the artifact's clock the published order of the arms; figures in the reproduction."""
    evaluated = call(
        "evaluate",
        "workload=trace",
        f"workload.path={TRACE}",
        "arrivals=paper_saturation",
        "policies=[colocate_oracle,conserve_oracle,full_disagg]",
        "seeds=3",
        "output=out",
        cwd=tmp_path,
    )
    assert evaluated.returncode == 0, evaluated.stderr
    assert "1020 blank gaps taken as 0 s" in " ".join(evaluated.stdout.split())
    mean = {
        (row["policy"], row["metric"]): float(row["mean"])
        for row in rows(tmp_path / "out" / "summary.csv")
    }
    assert (
        mean["conserve_oracle", "artifact_ttfet_p95"]
        < mean["colocate_oracle", "artifact_ttfet_p95"]
        < mean["full_disagg", "artifact_ttfet_p95"]
    )
    assert mean["colocate_oracle", "ttfet_p95"] < mean["conserve_oracle", "ttfet_p95"]


def test_public_recordings_are_listed_and_what_cannot_be_fetched_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    listed = run("fetch_traces", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "azure_2023_code: requests of a code service" in listed.stdout
    assert "CC-BY-4.0\n  https://raw.githubusercontent.com/Azure/" in listed.stdout
    nobody = "originals.azure_2023_code.address=http://127.0.0.1:9/x"
    for arguments, says in (
        (["names=[azure]"], "error: names=azure is none of all, conserve_miniswe, moon"),
        (["names=azure_2023_code", nobody], "error: http://127.0.0.1:9/x: Connection refused"),
        (["originals.azure_2023_code.file=../x"], "error: originals.azure_2023_code.file='../x'"),
        (["convert=yes please"], "error: convert='yes please' must be true or false"),
    ):
        refused = call("fetch_traces", *arguments, "output=out", cwd=tmp_path)
        assert refused.returncode == 2
        assert refused.stderr.startswith(says)
        assert refused.stderr.count("\n") == 1


def test_a_recording_is_fetched_and_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    (tmp_path / "home").mkdir()
    rows = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    rows += [f"2023-11-16 18:17:0{i}.0,{100 + i},{i}" for i in range(3)]
    (tmp_path / "home" / "azure.csv").write_text("\n".join(rows))
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "home"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        address = f"http://127.0.0.1:{server.server_port}/azure.csv"
        arguments = ("names=azure_2023_code", f"originals.azure_2023_code.address={address}")
        fetched = call("fetch_traces", *arguments, "convert=true", "output=out", cwd=tmp_path)
        server.shutdown()
    assert fetched.returncode == 0, fetched.stderr
    assert "fetched, its SHA-256 now written down in SHA256SUMS" in fetched.stdout
    assert "2 conversations, 2 turns; 1 with bad rows left out" in fetched.stdout
    converted = tmp_path / "out" / "azure_2023_code.conserve.csv.gz"
    with gzip.open(converted, "rt", newline="") as file:
        assert [row["input_tokens"] for row in csv.DictReader(file)] == ["101", "102"]
