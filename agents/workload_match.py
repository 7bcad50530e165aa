"""Recordings and draws of a fitted workload beside each other: played, on the screen, written."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from conserve_gym.agents.evaluation import measured
from conserve_gym.agents.statistics import Estimate, estimate
from conserve_gym.baselines.registry import make_baseline
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.envs.serving.profile import site
from conserve_gym.envs.workloads.arrivals import Poisson
from conserve_gym.envs.workloads.conversation import Conversation, Turn
from conserve_gym.envs.workloads.match import Difference, difference
from conserve_gym.envs.workloads.samples import Samples
from conserve_gym.envs.workloads.workload import Workload
from conserve_gym.files import whole

POLICY = "conserve"
METRIC = "ttfet_p95"


class Load(NamedTuple):
    """Normalised TTFET of recordings and draws at a rate.

    Attributes:
        rate: Conversations a second.
        recorded: The recordings' p95 over seeds.
        drawn: The draws'.
    """

    rate: float
    recorded: Estimate
    drawn: Estimate

    @property
    def difference(self) -> Difference:
        """How far the draws' mean is from the recordings'."""
        quantity = f"p95 normalised TTFET at {self.rate:g} conversations/s"
        return difference(quantity, "mean", self.recorded.mean, self.drawn.mean)


def play_both(
    cluster: ClusterSpec,
    recorded: Sequence[Sequence[Turn]],
    workload: Workload,
    episode: int,
    rate: float,
    seeds: int,
    step: Callable[[], None] = lambda: None,
) -> Load:
    """Play recordings and draws with ConServe, with Poisson arrivals from the same seeds.

    Args:
        cluster: On which.
        recorded: The recordings; each seed has its own order of them and takes an episode's first.
            A gap that nobody knows counts as 0 s.
        workload: The draws.
        episode: Conversations in an episode; recordings have no more than there are.
        rate: Conversations a second.
        seeds: Episodes of each.
        step: Called after each episode.
    """
    values: tuple[list[float], list[float]] = ([], [])
    for seed in range(seeds):
        order_rng, draw_rng, arrival_rng = np.random.default_rng(seed).spawn(3)
        order = order_rng.permutation(len(recorded))[:episode]
        episodes = [_known(recorded[i]) for i in order], workload.draw(draw_rng)
        first_inputs = [0] * max(len(turns) for turns in episodes)
        times = Poisson(rate).draw(arrival_rng, first_inputs)
        for of, turns in zip(values, episodes, strict=True):
            conversations = [
                Conversation(time, one) for time, one in zip(times, turns, strict=False)
            ]
            policy = make_baseline(POLICY, site(cluster))
            played = Cluster(cluster, policy.deployment, conversations)
            of.append(measured(played, policy, seed).metrics[METRIC])
            step()
    return Load(rate, estimate(values[0]), estimate(values[1]))


def _known(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    return tuple(turn._replace(gap_s=0.0) if math.isnan(turn.gap_s) else turn for turn in turns)


def table(name: str, found: Sequence[Difference], loads: Sequence[Load], cluster: str) -> Table:
    """Return the table of lengths, gaps and latencies."""
    shown = Table(
        title=f"{name}: what was recorded, and what is drawn",
        caption=f"{POLICY} on {cluster}, 95 % intervals over seeds" if loads else None,
    )
    for head in ("", "", "recorded", "drawn", "error, %"):
        shown.add_column(head, justify="right" if head else "left")
    for one in found:
        if not math.isnan(one.error_pct):
            shown.add_row(
                one.quantity if one.statistic == "p50" else "",
                one.statistic,
                f"{one.recorded:,.0f}",
                f"{one.drawn:,.0f}",
                f"{one.error_pct:+.1f}",
                end_section=one.statistic == "p99",
            )
    for i, load in enumerate(loads):
        shown.add_row(
            "" if i else "p95 TTFET, ×",
            f"{load.rate:g}/s",
            *(f"{e.mean:.3g} ({e.low:.3g} to {e.high:.3g})" for e in (load.recorded, load.drawn)),
            f"{load.difference.error_pct:+.1f}",
        )
    return shown


def write(
    folder: Path,
    recorded: Samples,
    drawn: Samples,
    found: Sequence[Difference],
    loads: Sequence[Load],
) -> list[Path]:
    """Write ``match.csv`` and ``match.png``, and return their paths."""
    csv_path, png_path = folder / "match.csv", folder / "match.png"
    with whole(csv_path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Difference._fields)
        writer.writerows([*found, *(load.difference for load in loads)])
    figure = Figure(figsize=(13, 7), layout="constrained")
    others = drawn.marginals()
    for axes, (name, values) in zip(
        figure.subplots(2, 3).flat, recorded.marginals().items(), strict=True
    ):
        for label, of, style in (("recorded", values, "-"), ("drawn", others[name], "--")):
            if of.size:
                levels = np.arange(1, of.size + 1) / of.size
                axes.plot(np.sort(of), levels, style, label=label)
        axes.set(xscale="symlog", title=name.replace("_", " "), ylabel="share up to")
        axes.legend(fontsize=8)
    with whole(png_path) as partial:
        figure.savefig(partial, format="png", dpi=120)
    return [csv_path, png_path]
