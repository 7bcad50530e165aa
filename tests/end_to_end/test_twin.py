"""Real engines beside the simulator that is calibrated on them, by the real script."""

from __future__ import annotations

import csv
import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (importlib.util.find_spec("xllamacpp") and importlib.util.find_spec("gguf")),
        reason="needs xllamacpp and gguf, which the extra dev has where there are wheels",
    ),
]

TWIN = Path(__file__).parents[2] / "scripts" / "twin.py"


def test_a_twin(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(TWIN),
            "model=tiny_llama",
            "max_sequences=8",
            "policies=[colocate,conserve,tuned]",
            "seeds=1",
            "tuning.seeds=2",
            "workload.conversations=4",
            "arrivals.rate=4",
            "plan.repeats=2",
            "plan.decode_steps=8",
            "plan.contexts=[256,1024]",
            "plan.batch_sizes=[1,2,4]",
            "check_requests=0",
            "output=out",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    assert (out / "twin.png").read_bytes().startswith(b"\x89PNG")
    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 8
    for row in rows:
        ratio = float(row["simulated"]) / float(row["real"])
        assert math.isfinite(ratio), row
        # Others may take the processor at any time, but not most of it for long.
        if row["metric"].startswith(("ttfet", "e2e")):
            assert 0.1 < ratio < 10.0, row
    assert (out / "calibration" / "cluster" / "twin.yaml").is_file()
    assert "certain differences" in (out / "verdict.txt").read_text()
