"""Measures the speed of the simulator and of training; writes bench.csv.

Run it on a quiet machine. Times are those of one core; the best of several runs is shown, because
everything else on the machine only adds to it. With ``--scaling`` the simulator's time is measured
over engines and conversations instead; that writes scaling.csv and scaling.png. With
``--decisions`` it is what a router's decisions take, written to decisions.csv.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from conserve_gym.envs.placement_env import PlacementEnv

REPEATS = 5
CONVERSATIONS = 255  # of an episode by default
RATE = 0.2  # conversations a second and engine while scaling: for ever, no queue builds up
PEER_TRACE = Path(__file__).with_name("peer_trace.py")
TRACES = Path(__file__).resolve().parents[2] / "shared/traces"

Row = tuple[str, float, str, str]


def paper_cell() -> Iterator[Row]:
    """Time one 255-conversation, 5-turn episode on the paper's cluster."""
    seconds, _ = _episode_s(["arrivals.rate=1.634"], REPEATS)
    yield "paper_cell_s", seconds, "s", "255 conversations x 5 turns on 1P3D, metrics included"


def peers_process() -> Iterator[Row]:
    """Time the process that plays the trace that other simulators were timed on."""
    printed: list[dict[str, float]] = []

    def run() -> None:
        process = subprocess.run([sys.executable, PEER_TRACE], check=True, capture_output=True)
        printed.append(json.loads(process.stdout))

    yield (
        "peer_trace_process_s",
        _best(run),
        "s",
        "others, 2026-11-22 on two cores: Dynamo replay 1.2, BLIS 1.4, splitwise-sim 2.8, "
        "simdistserve 2.9, Vidur 9.7",
    )
    yield (
        "peer_trace_rss_mb",
        min(values["rss_mb"] for values in printed),
        "MB",
        "its peak; others: BLIS 74, Dynamo replay 92, splitwise-sim 167, simdistserve 218, "
        "Vidur 1,036",
    )


def peers_loop() -> Iterator[Row]:
    """Time the same trace within a process: placing and playing, without metrics."""
    import peer_trace

    spec, requests = peer_trace.one_engine(), peer_trace.requests()
    steps = peer_trace.play(spec, requests).engines[0].steps
    seconds = _best(lambda: peer_trace.play(spec, requests), 4 * REPEATS)
    tokens = peer_trace.REQUESTS * peer_trace.OUTPUT_TOKENS
    yield "peer_trace_requests_per_s", peer_trace.REQUESTS / seconds, "1/s", "without metrics"
    yield "peer_trace_tokens_per_s", tokens / seconds, "1/s", "output tokens"
    yield (
        "peer_trace_steps_per_s",
        steps / seconds,
        "1/s",
        "batch steps; others, a CPU-second: Vidur 9k, splitwise-sim 15k, simdistserve 31k",
    )


def full_trace(path: Path) -> Iterator[Row]:
    """Time every conversation of the paper's trace on the paper's cluster."""
    yield _trace_row("full_trace_s", path)


def coding_agents(path: Path) -> Iterator[Row]:
    """Time recorded coding agents with the pauses of their tools and users."""
    yield _trace_row(
        "weka_fresh_s",
        path,
        "workload.max_first_input_tokens=32768",  # longer ones were recorded from their middle on
        "workload.max_context_tokens=131072",
        "workload.empty_output_tokens=1",
        "arrivals.rate=0.05",
    )


def _trace_row(name: str, path: Path, *overrides: str) -> Row:
    everything = ["workload.conversations=null", "workload.max_turns=null"]
    seconds, workload = _episode_s(
        ["workload=trace", f"workload.path={path}", *everything, *overrides], 3
    )
    return name, seconds, "s", f"{workload} on 1P3D, metrics included"


def _episode_s(overrides: Sequence[str], repeats: int) -> tuple[float, str]:
    """Return the seconds that an episode under ConServe takes, and its workload's name."""
    from conserve_gym.agents.evaluation import play
    from conserve_gym.agents.policies import resolve
    from conserve_gym.envs.configuration import load_scenario

    scenario = load_scenario(overrides)
    policy = resolve("conserve", scenario.cluster)
    return _best(lambda: play(scenario, policy, 0), repeats), scenario.workload.name


def training() -> Iterator[Row]:
    """Time PPO with 8 environments in one process."""
    import hydra

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
    yield "ppo_decisions_per_s", steps / seconds, "1/s", "PPO, 8 environments, learning included"


def environment() -> Iterator[Row]:
    """Time the steps of environments on the paper's cluster."""
    from conserve_gym.envs.placement_env import ConversationPlacementEnv, JointPlacementEnv

    load = "arrivals.rate=1.5"
    conversation = ConversationPlacementEnv([load])
    joint = JointPlacementEnv([load, "deployment.all_mixed=true"])
    for name, env in (("conversation", conversation), ("joint", joint)):
        seconds = _best(partial(_walk, env))
        what = "steps of an environment, observation and table of placements included"
        yield f"{name}_steps_per_s", CONVERSATIONS / seconds, "1/s", what


def _walk(env: PlacementEnv) -> None:
    env.reset(seed=0)
    ended = False
    while not ended:
        env.placements()
        _, _, ended, _, _ = env.step(np.int64(env.action_masks().argmax()))


def decisions(output: Path, console: Console) -> None:
    """Time decisions at a router of every kind of policy, and of actions, on 4 to 64 engines."""
    import decision_speed

    with output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for row in decision_speed.rows(decision_speed.measure()):
            row = tuple(f"{value:.1f}" if isinstance(value, float) else value for value in row)
            writer.writerow(row)
            console.print("{:>7} {:8} {:12} {:18} {:>10}".format(*row), *row[5:])
    console.print(f"written: {output}")


def runtime_import() -> Iterator[Row]:
    """Time a process that imports the runtime and ends, NumPy included."""
    command = [sys.executable, "-c", "import conserve_gym.agents.runtime.scheduler"]
    seconds = _best(lambda: subprocess.run(command, check=True))
    yield "runtime_import_s", seconds, "s", "whole process, Python's own start included"


def scaling(output: Path, console: Console) -> None:
    """Time clusters of the paper's kind under constant load an engine; draw both dependences."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    engines, conversations = (4, 16, 64), (255, 2_550, 25_500)
    turns = 5 * np.array(conversations)
    seconds = np.empty((len(engines), len(conversations)))
    for i, n_engines in enumerate(engines):
        for j, n_conversations in enumerate(conversations):
            with console.status(f"{n_engines} engines, {n_conversations:,} conversations"):
                seconds[i, j] = _play_s(n_engines, n_conversations)
    with output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("engines", "conversations", "turns", "seconds", "seconds_per_1000_turns"))
        for i, j in np.ndindex(seconds.shape):
            each = seconds[i, j] / turns[j] * 1e3
            row = (engines[i], conversations[j], turns[j], f"{seconds[i, j]:.4g}", f"{each:.4g}")
            writer.writerow(row)
            console.print(
                "{:3} engines {:6} conversations {:7} turns {:>7} s, {:>7} s/1,000".format(*row)
            )

    each = seconds / turns * 1e3
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
    for values, lines, x, axes, label, name in (
        (each, engines, turns, left, "{} engines", "turns played"),
        (each.T, turns, engines, right, "{:,} turns", "engines"),
    ):
        slopes = np.polyfit(np.log(x), np.log(values.T), 1)[0]
        for line, row, slope in zip(lines, values, slopes, strict=True):
            axes.loglog(x, row, "o-", label=f"{label.format(line)}: slope {slope:+.2f}")
        axes.set_xlabel(name)
        axes.set_xticks(x, [f"{tick:,}" for tick in x], minor=False)
        axes.xaxis.minorticks_off()
        axes.grid(visible=True, which="both", alpha=0.3)
        axes.legend(frameon=False)
    ticks = (0.01, 0.02, 0.05, 0.1, 0.2)
    left.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    left.yaxis.minorticks_off()
    left.set_ylim(ticks[0], ticks[-1])
    left.set_ylabel("CPU seconds per 1,000 turns")
    figure.suptitle(
        f"Cost of a turn at {RATE:g} conversations/s an engine (slope 0: total linear in turns)"
    )
    picture = output.with_suffix(".png")
    figure.savefig(picture, dpi=150)
    console.print(f"written: {output}, {picture}")


def _play_s(engines: int, conversations: int) -> float:
    """Return the CPU seconds for playing conversations where a quarter of the engines prefill."""
    from conserve_gym.agents.policies import resolve
    from conserve_gym.envs.configuration import load_scenario
    from conserve_gym.envs.serving.cluster import Cluster
    from conserve_gym.envs.workloads.workload import draw_episode

    scenario = load_scenario(
        [
            f"cluster.engines.0.count={engines // 4}",
            f"cluster.engines.1.count={engines - engines // 4}",
            f"workload.conversations={conversations}",
            f"arrivals.rate={RATE * engines}",
        ]
    )
    episode = draw_episode(scenario.workload, scenario.arrivals, np.random.default_rng(0))
    policy = resolve("conserve", scenario.cluster)

    def play() -> None:
        cluster = Cluster(scenario.cluster, policy.deployment, episode)
        while cluster.advance():
            cluster.place(policy.decide(cluster.observe()))

    return _best(play, 2 if conversations > 10_000 else REPEATS, time.process_time)


def _best(
    run: Callable[[], object],
    repeats: int = REPEATS,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    times = []
    for _ in range(repeats):
        began = clock()
        run()
        times.append(clock() - began)
    return min(times)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--output", type=Path, help="default: bench.csv, scaling.csv or decisions.csv"
    )
    parser.add_argument(
        "--traces",
        type=Path,
        default=TRACES,
        help="folder with recorded traces, whose rows are left out where they are missing; "
        "default: %(default)s",
    )
    parser.add_argument(
        "--scaling",
        action="store_true",
        help="measure the cost of a turn over engines and conversations instead (about a "
        "minute); writes a picture beside the csv file",
    )
    parser.add_argument(
        "--decisions",
        action="store_true",
        help="measure what a router's decisions take instead (about two minutes)",
    )
    arguments = parser.parse_args()
    console = Console()
    if arguments.scaling:
        scaling(arguments.output or Path("scaling.csv"), console)
        return
    if arguments.decisions:
        decisions(arguments.output or Path("decisions.csv"), console)
        return
    rows: list[Row] = []
    measures: list[Callable[[], Iterator[Row]]] = [
        peers_process,  # first: a child's peak memory starts from its parent's
        peers_loop,
        runtime_import,
        paper_cell,
    ]
    for measure, name in (
        (full_trace, "conserve_miniswe_trace.csv.gz"),
        (coding_agents, "weka_claude_code.csv.gz"),
    ):
        path = arguments.traces / name
        if path.is_file():
            measures.append(partial(measure, path))
        else:
            console.print(f"{measure.__name__} is left out: no {path}")
    for measured in (*measures, environment, training):
        with console.status(f"measured: {', '.join(row[0] for row in rows)}"):
            rows += measured()
    table = Table("name", "value", "unit", "what")
    table.columns[0].no_wrap = True
    for name, value, unit, says in rows:
        table.add_row(name, f"{value:.4g}", unit, says)
    console.print(table)
    output: Path = arguments.output or Path("bench.csv")
    with output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("name", "value", "unit"))
        writer.writerows((name, json.dumps(value), unit) for name, value, unit, _ in rows)
    console.print(f"written: {output}")


if __name__ == "__main__":
    main()
