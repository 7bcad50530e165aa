"""Real engines beside the simulator that is calibrated on them, by the real script."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest
from commands import rows, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (importlib.util.find_spec("xllamacpp") and importlib.util.find_spec("gguf")),
        reason="needs xllamacpp and gguf, which the extra dev has where there are wheels",
    ),
]


def test_a_twin(tmp_path: Path) -> None:
    done = run(
        "twin",
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
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    assert (out / "twin.png").read_bytes().startswith(b"\x89PNG")
    results = rows(out / "results.csv")
    assert len(results) == 3 * 8
    for row in results:
        ratio = float(row["simulated"]) / float(row["real"])
        assert math.isfinite(ratio), row
        # Others may take the processor at any time, but not most of it for long.
        if row["metric"].startswith(("ttfet", "e2e")):
            assert 0.1 < ratio < 10.0, row
    assert (out / "calibration" / "cluster" / "twin.yaml").is_file()
    assert "certain differences" in (out / "verdict.txt").read_text()
