"""Reality and simulation side by side, and whether they agree on the policies."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import kendalltau

from conserve_gym.agents.statistics import Estimate, estimate
from conserve_gym.agents.twin.reality import Played
from conserve_gym.files import whole
from conserve_gym.ledger import Event, Placed
from conserve_gym.metrics import ConversationRecord, RecordReader

METRICS = tuple(
    f"{name}_s_{percentile}"
    for name in ("ttft", "tbt", "ttfet", "e2e")
    for percentile in ("p50", "p95")
)
"""Latencies in seconds, on the user's clock: of every turn (TTFT), of a conversation's last turn
(TBT, TTFET), and to its end (E2E); all are better when they are low."""


class Run(NamedTuple):
    """One policy on one episode, on both sides.

    Attributes:
        policy: Its name.
        seed: Of the episode.
        real: Metrics by name.
        simulated: The same.
        same_placements: Share of conversations that were placed alike.
        ttfet_s: Of every conversation, real and simulated, shape (2, conversations).
        router_share: Processor time of router and clients over the episode's time.
        waited_pct: Time that engines waited for a processor, of that which they had or wanted.
    """

    policy: str
    seed: int
    real: dict[str, float]
    simulated: dict[str, float]
    same_placements: float
    ttfet_s: np.ndarray
    router_share: float
    waited_pct: float


class Agreement(NamedTuple):
    """How a metric of the simulator stands to reality.

    Attributes:
        metric: Its name.
        errors_pct: Simulated over real less 1, of the mean of each policy, in percent.
        rank: Kendall's tau of the policies' means.
        same_winner: Whether the same policy has the lowest mean.
        real_winner: That of reality.
        winner_certain: Whether it is below every other's in reality, by paired 95 % intervals.
        signs: Of the pairs whose difference in reality is certain, how many differ in the same
            direction in the simulator.
        pairs: Number of such pairs.
    """

    metric: str
    errors_pct: dict[str, Estimate]
    rank: float
    same_winner: bool
    real_winner: str
    winner_certain: bool
    signs: int
    pairs: int

    @property
    def error_pct(self) -> float:
        """Mean absolute error over the policies."""
        return float(np.mean([abs(error.mean) for error in self.errors_pct.values()]))


def records(events: Iterable[Event]) -> list[ConversationRecord]:
    """Return what a ledger says of the conversations, in their order."""
    return sorted(RecordReader().read(events), key=lambda record: record.conversation)


def metrics(events: Sequence[Event]) -> dict[str, float]:
    """Return every metric of an episode by name."""
    found = records(events)
    tbt = np.array([record.last_tbt_s for record in found])
    values = {
        "ttft": [seconds for record in found for seconds in record.ttft_s],
        "tbt": tbt[~np.isnan(tbt)],
        "ttfet": [record.first_token_s - record.arrived_s for record in found],
        "e2e": [record.ended_s - record.arrived_s for record in found],
    }
    return {
        f"{name}_s_p{percent}": float(np.percentile(of, percent)) if len(of) else math.nan
        for name, of in values.items()
        for percent in (50, 95)
    }


def compared(policy: str, seed: int, played: Played, simulated: Sequence[Event]) -> Run:
    """Return what both ledgers of an episode say."""
    real = played.events
    placements = [
        {event.conversation: event[3:5] for event in events if isinstance(event, Placed)}
        for events in (real, simulated)
    ]
    alike = [placements[0][i] == placements[1][i] for i in placements[0]]
    ttfet = [[r.first_token_s - r.arrived_s for r in records(side)] for side in (real, simulated)]
    return Run(
        policy,
        seed,
        metrics(real),
        metrics(simulated),
        sum(alike) / len(alike),
        np.array(ttfet),
        played.router_share,
        played.waited_pct,
    )


def agreements(runs: Sequence[Run]) -> list[Agreement]:
    """Return how every metric agrees."""
    return [_agreement(runs, metric) for metric in METRICS]


def _agreement(runs: Sequence[Run], metric: str) -> Agreement:
    policies = list(dict.fromkeys(run.policy for run in runs))
    by_policy = {p: [run for run in runs if run.policy == p] for p in policies}
    real = {p: np.array([run.real[metric] for run in of]) for p, of in by_policy.items()}
    simulated = {p: np.array([run.simulated[metric] for run in of]) for p, of in by_policy.items()}
    # Over the mean of reality, so that the interval is that of a ratio of means.
    errors = {p: estimate(100.0 * (simulated[p] - real[p]) / real[p].mean()) for p in policies}
    means = [[float(side[p].mean()) for p in policies] for side in (real, simulated)]
    winners = [policies[int(np.argmin(side))] for side in means]
    signs = pairs = 0
    certain = True
    for i, one in enumerate(policies):
        for other in policies[i + 1 :]:
            difference = estimate(real[one] - real[other])
            if difference.low > 0.0 or difference.high < 0.0:
                pairs += 1
                signs += (simulated[one].mean() > simulated[other].mean()) == (difference.mean > 0)
            elif winners[0] in (one, other):
                certain = False
    rank = float(kendalltau(*means).statistic) if len(policies) > 1 else math.nan
    return Agreement(
        metric, errors, rank, winners[0] == winners[1], winners[0], certain, signs, pairs
    )


def write(folder: Path, runs: Sequence[Run], found: Sequence[Agreement]) -> list[Path]:
    """Write every run, their means and the verdict as csv; files appear whole or not at all."""
    about = ("same_placements", "router_share", "waited_pct")
    paths = [folder / name for name in ("results.csv", "summary.csv", "verdict.csv")]
    _csv(
        paths[0],
        ("policy", "seed", "metric", "real", "simulated", *about),
        (
            (
                run.policy,
                run.seed,
                m,
                run.real[m],
                run.simulated[m],
                *(getattr(run, a) for a in about),
            )
            for run in runs
            for m in METRICS
        ),
    )
    intervals = [f"{side}_{part}" for side in ("real", "simulated") for part in Estimate._fields]
    intervals += [f"error_pct_{part}" for part in Estimate._fields]
    rows = []
    for agreement in found:
        for policy, error in agreement.errors_pct.items():
            of = [run for run in runs if run.policy == policy]
            sides = [[run.real for run in of], [run.simulated for run in of]]
            means = [estimate([one[agreement.metric] for one in side]) for side in sides]
            rows.append((policy, agreement.metric, *means[0], *means[1], *error))
    _csv(paths[1], ("policy", "metric", *intervals), rows)
    _csv(
        paths[2],
        (
            "metric",
            "mean_absolute_error_pct",
            "kendall_tau",
            "same_winner",
            "real_winner",
            "winner_certain",
            "certain_differences",
            "same_sign",
        ),
        (
            (
                a.metric,
                a.error_pct,
                a.rank,
                a.same_winner,
                a.real_winner,
                a.winner_certain,
                a.pairs,
                a.signs,
            )
            for a in found
        ),
    )
    return paths


def _csv(path: Path, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(heads)
        writer.writerows(rows)
