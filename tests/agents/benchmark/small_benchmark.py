"""Benchmarks of a few conversations, and made-up results, for tests."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from conserve_gym.agents.benchmark.leaderboard import COLUMNS
from conserve_gym.agents.benchmark.playing import Benchmark, Played
from conserve_gym.agents.benchmark.results import loads
from conserve_gym.agents.benchmark.spec import BenchmarkSpec, WorkloadSpec

MINISWE = WorkloadSpec(("workload=miniswe", "workload.conversations=12"), (1.0, 3.0))


def spec(output: Path, **changes: Any) -> BenchmarkSpec:
    """Return a tiny benchmark with changes."""
    settings: dict[str, Any] = {
        "policies": ("colocate", "conserve"),
        "submission": None,
        "clusters": ("a40_1p3d",),
        "workloads": {"miniswe": MINISWE},
        "arrivals": "poisson",
        "seeds": 2,
        "capacity_tolerance": None,
        "workers": 1,
        "output": output,
    }
    return BenchmarkSpec(**(settings | changes))


def played(asked: BenchmarkSpec) -> Played:
    return Benchmark(asked, Console(file=io.StringIO())).play()


def rows(
    attained: Mapping[str, Mapping[float, Sequence[float]]],
    future: Sequence[str] = (),
    moves: Sequence[str] = (),
) -> pd.DataFrame:
    """Return episodes with these SLO attainments by policy and load, one a seed.

    Args:
        attained: In percent.
        future: Policies that see the future.
        moves: Policies that move KV once a conversation.
    """
    metrics = dict.fromkeys((column.metric for column in COLUMNS), 1.0)
    found = [
        {
            "cluster": "four",
            "workload": "talk",
            "rate": rate,
            "phase": "load",
            "seed": seed,
            "policy": policy,
            "asked": policy,
            "version": "",
            "reads": "the future" if policy in future else "bookkeeping",
            "sees_future": policy in future,
            "seconds": 0.1,
            **metrics,
            "slo_attainment_pct": value,
            "goodput_per_s": value / 100.0,
            "kv_moves_per_conversation": float(policy in moves),
        }
        for policy, by_rate in attained.items()
        for rate, values in by_rate.items()
        for seed, value in enumerate(values)
    ]
    return loads(pd.DataFrame(found))
