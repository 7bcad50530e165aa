"""An evaluation on the screen, as csv files and as a picture."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from conserve_gym.agents.evaluation import Episode
from conserve_gym.agents.statistics import Estimate, estimate
from conserve_gym.envs import timeline_picture
from conserve_gym.envs.configuration import Scenario
from conserve_gym.envs.serving import chrome_trace
from conserve_gym.envs.serving.timeline import Timeline
from conserve_gym.files import whole
from conserve_gym.metrics import SLO_FACTOR, Clock

Summary = dict[str, dict[str, Estimate]]
"""Policy -> metric -> estimate over seeds; see ``paired`` for differences."""

_BY_CLOCK = (
    ("slo_attainment_pct", "SLO attainment, %", "{:.1f}"),
    ("goodput_per_s", "goodput, conv./s", "{:.2f}"),
    *(
        (f"{name}_{statistic}", f"{says} {shown}", form)
        for name, says in (("ttfet", "TTFET"), ("tbt", "last TBT"), ("e2e", "E2E"))
        for statistic, shown, form in (
            ("gmean", "gmean ×", "{:.2f}"),
            ("p50", "p50 ×", "{:.2f}"),
            ("p95", "p95 ×", "{:.2f}"),
            ("p99", "p99 ×", "{:.2f}"),
            ("slo_violation_pct", "> SLO, %", "{:.1f}"),
        )
    ),
)
_ON_ONE_CLOCK = (
    ("ttft_s_p50", "TTFT p50, s", "{:.2f}"),
    ("ttft_s_p95", "TTFT p95, s", "{:.2f}"),
    ("ttft_s_p99", "TTFT p99, s", "{:.2f}"),
    ("tokens_per_joule", "tokens/J", "{:.1f}"),
    ("tokens_per_joule_no_history", "same, history once", "{:.1f}"),
    ("kv_moves_per_conversation", "KV moves/conv.", "{:.2f}"),
    ("kv_moved_gb", "KV moved, GB", "{:.0f}"),
    ("imbalance", "imbalance", "{:.2f}"),
    ("decode_entropy", "entropy of decoding", "{:.2f}"),
    ("fallback_pct", "left to the rule, %", "{:.1f}"),  # exported policies only
)


class Setting(NamedTuple):
    """What episodes were played on, in words.

    Attributes:
        traffic: Workload and arrivals.
        cluster: The engines.
        caveats: What of the hardware was not measured.
    """

    traffic: str
    cluster: str
    caveats: tuple[str, ...]

    @classmethod
    def of(cls, played: Sequence[Scenario]) -> Setting:
        """Describe the scenarios of all seeds."""
        traffic = {f"{one.workload.name}; {one.arrivals.name}" for one in played}
        clusters = {f"cluster {one.cluster.name}" for one in played}
        return cls(
            traffic.pop() if len(traffic) == 1 else f"{len(traffic)} kinds of traffic drawn",
            clusters.pop() if len(clusters) == 1 else f"{len(clusters)} clusters drawn",
            tuple(dict.fromkeys(caveat for one in played for caveat in one.cluster.caveats)),
        )


def summarise(episodes: Iterable[Episode]) -> Summary:
    """Return the estimate of every metric of every policy, in the order they were played."""
    values: dict[str, dict[str, list[float]]] = {}
    for episode in episodes:
        of_policy = values.setdefault(episode.policy, {})
        for metric, value in episode.metrics.items():
            of_policy.setdefault(metric, []).append(value)
    return {
        policy: {metric: estimate(sample) for metric, sample in metrics.items()}
        for policy, metrics in values.items()
    }


def paired(episodes: Iterable[Episode]) -> Summary:
    """Return each policy's difference to the first one in every metric, seed by seed.

    All play the same episodes, so the difference has a far narrower interval than the means.
    """
    played = list(episodes)
    base = {e.seed: e.metrics for e in played if e.policy == played[0].policy}
    differences = (
        replace(
            episode,
            metrics={
                metric: value - base[episode.seed][metric]
                for metric, value in episode.metrics.items()
                if metric in base[episode.seed]
            },
        )
        for episode in played
        if episode.policy != played[0].policy
    )
    return summarise(differences)


def table(
    summary: Summary,
    episodes: Sequence[Episode],
    setting: Setting,
    clock: Clock,
    overrides: Sequence[str] = (),
) -> Table:
    """Return the table for the screen, with everything that is needed to read it."""
    seeds = sorted({episode.seed for episode in episodes})
    caveats = "; ".join(setting.caveats)
    future = {episode.policy for episode in episodes if episode.sees_future}
    clock_says = (
        "user's clock: from arrival, every queue counted"
        if clock == "user"
        else "artifact's clock: from admission, turn 1's prefiller queue left out"
    )
    shown = Table(
        title=f"{setting.traffic}\n{setting.cluster}; {clock_says}",
        caption=(f"Set: {' '.join(overrides)}. " if overrides else "")
        + (
            f"Mean over {len(seeds)} seeds ({seeds[0]} to {seeds[-1]}) ± half of the 95 % "
            "confidence interval; differences are paired by seed. "
            if len(seeds) > 1
            else f"One seed ({seeds[0]}): no interval. "
        )
        + "× standalone: the conversation alone "
        f"on one engine; the SLO is {SLO_FACTOR:g} × in all three latencies. Goodput and tokens/J "
        "count the time until the last conversation has ended; tokens/J counts the whole history "
        "in every turn, as the paper does."
        + (" † sees the future." if future else "")
        + (f" Caveats: {caveats}." if caveats else ""),
    )
    shown.add_column("", overflow="fold")
    for policy in summary:
        heading = policy + (" †" if policy in future else "")
        shown.add_column(heading, justify="right", overflow="fold")
    prefix = "artifact_" if clock == "artifact" else ""
    rows = [(prefix + metric, *rest) for metric, *rest in _BY_CLOCK]
    for metric, heading, form in (*rows, *_ON_ONE_CLOCK):
        cells = [_cell(metrics.get(metric), form) for metrics in summary.values()]
        if any(cells):
            shown.add_row(heading, *cells)
    first = next(iter(summary))
    differences = paired(episodes)
    if differences:
        shown.add_section()
        for metric, heading, form in rows[:2]:
            cells = [_cell(difference[metric], form) for difference in differences.values()]
            shown.add_row(f"{heading}: less {first}", "", *cells)
    return shown


def _cell(value: Estimate | None, form: str) -> str:
    if value is None:
        return ""
    interval = "" if np.isnan(value.low) else f" ±{form.format((value.high - value.low) / 2)}"
    return form.format(value.mean) + interval


def write(
    folder: Path, summary: Summary, episodes: Sequence[Episode], setting: Setting
) -> list[Path]:
    """Write results.csv, summary.csv and evaluation.png; each appears whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    future = {episode.policy: episode.sees_future for episode in episodes}
    caveats = "; ".join(setting.caveats)
    results = (
        (episode.policy, episode.sees_future, episode.seed, metric, value, caveats)
        for episode in episodes
        for metric, value in (episode.metrics | episode.energy_kj).items()
    )
    differences = paired(episodes)
    nothing = Estimate(math.nan, math.nan, math.nan)
    rows = (
        (
            policy,
            future[policy],
            metric,
            *one,
            *differences.get(policy, {}).get(metric, nothing),
            caveats,
        )
        for policy, metrics in summary.items()
        for metric, one in metrics.items()
    )
    heads = ("policy", "sees_future", "metric", "mean", "ci95_low", "ci95_high")
    paired_heads = ("less_first_mean", "less_first_ci95_low", "less_first_ci95_high")
    paths = [folder / name for name in ("results.csv", "summary.csv", "evaluation.png")]
    with whole(paths[0]) as partial:
        _csv(partial, ("policy", "sees_future", "seed", "metric", "value", "caveats"), results)
    with whole(paths[1]) as partial:
        _csv(partial, (*heads, *paired_heads, "caveats"), rows)
    with whole(paths[2]) as partial:
        figure(summary, episodes, setting).savefig(partial, dpi=150, format="png")
    return paths


def write_timeline(folder: Path, episode: Episode, timeline: Timeline) -> list[Path]:
    """Write what ran when as a Chrome trace and as a picture; each appears whole or not at all."""
    name = f"timeline-{quote(episode.policy, safe='')}"  # policies may be called by their path
    paths = [folder / f"{name}.json", folder / f"{name}.png"]
    chrome_trace.save(paths[0], timeline, episode.ledger)
    ended = max(event.time for event in episode.ledger)
    heading = f"{episode.policy}, seed {episode.seed}"
    with whole(paths[1]) as partial:
        drawn = timeline_picture.figure(timeline, 0.0, ended, ended, heading)
        drawn.savefig(partial, dpi=150, format="png")
    return paths


def figure(summary: Summary, episodes: Sequence[Episode], setting: Setting) -> Figure:
    """Draw the distribution of normalised TTFET, and latency against energy."""
    picture = Figure(figsize=(11, 4.5), layout="constrained")
    picture.suptitle(
        f"{setting.traffic}; {setting.cluster}; "
        f"{len({episode.seed for episode in episodes})} seeds; user's clock"
        + "".join(f"\n{caveat}" for caveat in setting.caveats),
        fontsize="medium",
    )
    left, right = picture.subplots(1, 2)
    for i, (policy, metrics) in enumerate(summary.items()):
        color = f"C{i}"
        # Policies that choose alike lie on each other: later ones are drawn thinner.
        boldness = 1.0 - i / len(summary)
        ttfet = np.sort([one.ttfet for e in episodes if e.policy == policy for one in e.normalised])
        left.plot(
            ttfet,
            np.arange(1, ttfet.size + 1) / ttfet.size,
            color=color,
            linewidth=1.0 + 4.0 * boldness,
            label=policy,
        )
        latency, energy = metrics["ttfet_p95"], metrics["tokens_per_joule"]
        right.errorbar(
            energy.mean,
            latency.mean,
            xerr=None if np.isnan(energy.low) else (energy.high - energy.low) / 2,
            yerr=None if np.isnan(latency.low) else (latency.high - latency.low) / 2,
            fmt="o",
            markersize=4.0 + 8.0 * boldness,
            color=color,
            capsize=3,
            label=policy,
        )
    left.axvline(SLO_FACTOR, color="0.5", linestyle=":", label="SLO")
    left.set(
        xscale="log",
        xlabel="TTFET / standalone",
        ylabel="share of conversations",
        title="TTFET: time to first effective token",
    )
    right.set(
        yscale="log",
        xlabel="tokens per joule (history counted)",
        ylabel="p95 of TTFET / standalone",
        title="Latency against energy (95 % confidence)",
    )
    left.legend()
    left.grid(alpha=0.3)
    right.grid(alpha=0.3, which="both")
    return picture


def _csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)
