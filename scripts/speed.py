"""Measures the speed of the simulator, of training and of the runtime; writes bench.csv.

Run it on a quiet machine. Times are those of one core; the smallest of several runs is shown,
because everything else on the machine only adds to it.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from conserve_gym.fleet import Fleet

REPEATS = 5
EPISODES = 8

Row = tuple[str, float, str, str]


def paper_cell() -> Iterator[Row]:
    """Time one 255-conversation, 5-turn episode on the paper's cluster."""
    from conserve_gym.agents.evaluation import play
    from conserve_gym.baselines.registry import make_baseline
    from conserve_gym.envs.configuration import load_scenario

    scenario = load_scenario(["arrivals.rate=1.634"])
    policy = make_baseline("conserve")
    seconds = _best(lambda: play(scenario, policy, 0))
    yield "paper_cell_s", seconds, "s", "255 conversations x 5 turns on 1P3D, metrics included"


def training_and_runtime() -> Iterator[Row]:
    """Time PPO with 8 environments in one process, and decisions of what it exports."""
    import hydra

    from conserve_gym.agents.export import export
    from conserve_gym.agents.training import train

    steps = 16_384
    with tempfile.TemporaryDirectory() as folder:
        runs = (Path(folder) / str(number) for number in itertools.count())
        overrides = ("progress_bar=false", "experiment=quick", f"total_timesteps={steps}")

        def configured(run: Path, *more: str) -> DictConfig:
            with hydra.initialize_config_module("conserve_gym.conf", version_base="1.3"):
                return hydra.compose("train", [*overrides, f"run={run}", *more])

        train(configured(next(runs), "total_timesteps=1"))  # imports, and first use of torch
        configs = [configured(next(runs)) for _ in range(REPEATS)]
        seconds = _best(lambda: train(configs.pop()))
        yield (
            "ppo_decisions_per_s",
            steps / seconds,
            "1/s",
            "PPO, 8 environments, learning included",
        )
        run = Path(folder) / "1"
        export(run, Path(folder) / "policy")
        yield from runtime(Path(folder) / "policy", Path(folder))


def runtime(policy: Path, folder: Path) -> Iterator[Row]:
    """Time decisions along recorded episodes, in a process that has the runtime alone."""
    from conserve_gym.agents.evaluation import play
    from conserve_gym.agents.runtime.scheduler import Scheduler
    from conserve_gym.envs.configuration import load_scenario

    scenario = load_scenario(["arrivals.rate=1.5"])
    scheduler = Scheduler.load(policy)
    ledgers = [folder / f"{seed}.jsonl" for seed in range(EPISODES)]
    for seed, path in enumerate(ledgers):
        play(scenario, scheduler, seed).ledger.save(path)
    fleet = scenario.cluster.fleet(scheduler.deployment)
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh) as process:
        spans = process.submit(time_decisions, policy, ledgers, fleet).result()
    for i, (name, says) in enumerate(
        (
            ("runtime_decision", "scaling, checks, network, placement"),
            ("runtime_observe_and_decide", "the same, and reading the ledger's new events"),
        )
    ):
        for percent in (50, 99):
            microseconds = np.percentile(spans[:, :, i], percent, axis=1).min() / 1e3
            yield f"{name}_p{percent}_us", float(microseconds), "us", says


def time_decisions(policy: Path, ledgers: list[Path], fleet: Fleet) -> npt.NDArray[np.int64]:
    """Return nanoseconds, shape (passes, decisions, 2): deciding; observing and deciding."""
    from conserve_gym.agents.runtime.scheduler import Scheduler
    from conserve_gym.ledger import Ledger, Placed
    from conserve_gym.observer import Observer

    episodes = [Ledger.load(path) for path in ledgers]
    scheduler = Scheduler.load(policy)
    spans: list[list[list[int]]] = []
    for _ in range(REPEATS):
        spans.append([])
        for recorded in episodes:
            past = Ledger()
            observer = Observer(past, fleet, scheduler.deployment)
            for event in recorded:
                if isinstance(event, Placed):
                    began = time.perf_counter_ns()
                    observation = observer.observe(event.time, event.conversation)
                    observed = time.perf_counter_ns()
                    scheduler.decision(observation)
                    ended = time.perf_counter_ns()
                    spans[-1].append([ended - observed, ended - began])
                past.append(event)
    return np.array(spans)


def runtime_import() -> Iterator[Row]:
    """Time a process that imports the runtime and ends, NumPy included."""
    command = [sys.executable, "-c", "import conserve_gym.agents.runtime.scheduler"]
    seconds = _best(lambda: subprocess.run(command, check=True))
    yield "runtime_import_s", seconds, "s", "whole process, Python's own start included"


def _best(run: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("bench.csv"))
    output: Path = parser.parse_args().output
    console = Console()
    table = Table("name", "value", "unit", "what")
    table.columns[0].no_wrap = True
    rows: list[Row] = []
    for measure in (runtime_import, paper_cell, training_and_runtime):
        with console.status(f"measuring {measure.__name__}"):
            rows += measure()
    for name, value, unit, says in rows:
        table.add_row(name, f"{value:.4g}", unit, says)
    console.print(table)
    with output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("name", "value", "unit"))
        writer.writerows((name, json.dumps(value), unit) for name, value, unit, _ in rows)
    console.print(f"written: {output}")


if __name__ == "__main__":
    main()
