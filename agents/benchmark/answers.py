"""What a benchmark says, in sentences with figures: the first lines of everything it writes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pandas as pd

from conserve_gym.agents.benchmark.comparisons import SIGNIFICANT, pairs
from conserve_gym.agents.benchmark.competitors import HINDSIGHT, Competitor
from conserve_gym.agents.benchmark.leaderboard import ALL
from conserve_gym.agents.benchmark.playing import Played
from conserve_gym.agents.benchmark.winners import METRIC, Winner, ranking, winners

_MOVES = "kv_moves_per_conversation"


def first_lines(played: Played, rows: pd.DataFrame, board: pd.DataFrame) -> list[str]:
    """Return what the benchmark answers.

    Args:
        played: What was played.
        rows: A row an episode, as from ``results.loads``.
        board: As from ``leaderboard.table``.
    """
    bounds = [one for one in played.competitors if one.is_bound]
    leads = (_leads(cluster, rows, board) for cluster in played.spec.clusters)
    lines = [*_submission(played, board), *leads]
    for (cluster, workload), here in rows.groupby(["cluster", "workload"], sort=False):
        setting = f"{workload} on {cluster}"
        ahead = winners(here)
        lines.append(f"{setting}: {_disaggregation(here)}")
        lines.append(f"{setting}: {_wins(ahead)}")
        lines.append(f"{setting}: {_left_to_win(here, ahead, bounds)}")
    return [*lines, *_left_out(played)]


def _submission(played: Played, board: pd.DataFrame) -> Iterator[str]:
    asked = played.spec.submission
    for one in played.competitors:
        if asked is None or one.asked != asked:
            continue
        for cluster in played.spec.clusters:
            ranked = board[(board["cluster"] == cluster) & board["rank"].notna()]
            whole = ranked[ranked["workload"] == ALL]
            mine = ranked[ranked["policy"] == one.name].set_index("workload")
            if cluster in one.left_out:
                continue
            if mine.empty:
                yield f"{one.label} on {cluster} has no rank: it sees the future"
                continue
            parts = [
                f"{workload} {row['rank']:.0f} ({row[METRIC]:.1f} %)"
                for workload, row in mine.iterrows()
                if workload != ALL
            ]
            yield (
                f"{one.label} ranks {mine.loc[ALL, 'rank']:.0f} of {len(whole)} on {cluster} "
                f"with {mine.loc[ALL, METRIC]:.1f} % mean SLO attainment; by workload: "
                + ", ".join(parts)
            )


def _leads(cluster: str, rows: pd.DataFrame, board: pd.DataFrame) -> str:
    """Say who is ahead over all workloads and loads of a cluster, in the order of its ranks."""
    here = rows[(rows["cluster"] == cluster) & ~rows["sees_future"]]
    by_workload = here.groupby(["policy", "workload", "seed"], sort=False)[METRIC].mean()
    means = by_workload.groupby(["policy", "seed"], sort=False).mean().reset_index()
    means = means.assign(rate=0.0)
    ranked = board[(board["cluster"] == cluster) & (board["workload"] == ALL)].sort_values("rank")
    order = ranked.loc[ranked["rank"].notna(), "policy"].tolist()
    attained = means.loc[means["policy"] == order[0], METRIC].mean()
    over = f"on {cluster} with {attained:.1f} % mean SLO attainment over all workloads and loads"
    if len(order) == 1:
        return f"{order[0]} is alone {over}"
    leads = pairs(means, order[0], order[1:], METRIC).set_index("policy")
    level = leads.index[~(leads["p_holm"] < SIGNIFICANT)].tolist()
    lead = leads.loc[order[1]]
    doubt = _doubt(lead["ci95_low"], lead["ci95_high"], lead["p_holm"])
    says = f"{order[0]} leads {over}, {lead['difference']:+.1f} points to {order[1]}{doubt}"
    return f"{says}; not significantly different: {', '.join(level)}" if level else says


def _disaggregation(rows: pd.DataFrame) -> str:
    """Say where the best policy that moves KV is ahead of the best that moves none."""
    honest = rows[~rows["sees_future"]]
    moves = honest.groupby("policy")[_MOVES].mean()
    order = ranking(rows)
    moving = [one for one in order if moves[one] > 0.0]
    staying = [one for one in order if moves[one] == 0.0]
    if not moving or not staying:
        kind = "moves none" if moving else "moves any"
        return f"whether disaggregation pays is not known: no policy that {kind} KV was played"
    first, second = moving[0], staying[0]
    leads = pairs(honest, first, [second], METRIC).sort_values("rate")
    clear = leads["p_holm"] < SIGNIFICANT
    pays = leads.loc[clear & (leads["difference"] > 0.0), "rate"]
    costs = leads.loc[clear & (leads["difference"] < 0.0), "rate"]
    says = (
        f"disaggregation pays at {_rates(pays)}"
        if len(pays)
        else "disaggregation pays nowhere significantly"
    )
    if len(costs):
        says += f" and costs at {_rates(costs)}"
    if not leads["p_holm"].notna().any():
        says = "one seed cannot tell whether disaggregation pays"
    parts = [
        f"{_points(one.difference)} at {one.rate:g}"
        + _doubt(one.ci95_low, one.ci95_high, one.p_holm)
        for one in leads.itertuples()
    ]
    return (
        f"{says}. SLO attainment of {first} ({moves[first]:.2f} KV moves a conversation, the best "
        f"that moves any) less that of {second} (the best that moves none), in points: "
        + ", ".join(parts)
    )


def _wins(ahead: list[Winner]) -> str:
    parts = []
    for one in ahead:
        says = f"at {one.rate:g} {one.policy}, {one.attained:.1f} %"
        if one.clear:
            says += f", {one.lead:+.1f} to {one.next}{_doubt(one.low, one.high, one.p)}"
        elif one.level:
            more = f" and {len(one.level) - 1} more" if len(one.level) > 1 else ""
            says += f", level with {one.level[0]}{more} ({one.lead:+.1f} to {one.next})"
        parts.append(says)
    return "most SLO attainment has " + "; ".join(parts)


def _left_to_win(rows: pd.DataFrame, ahead: list[Winner], bounds: list[Competitor]) -> str:
    means = rows.groupby(["policy", "rate"])[METRIC].mean()
    parts = []
    for name, label in ((HINDSIGHT, f"{HINDSIGHT} †"), *((one.name, one.label) for one in bounds)):
        if name in means:
            gaps = [f"{_points(means[name, w.rate] - w.attained)} at {w.rate:g}" for w in ahead]
            parts.append(f"{label} {', '.join(gaps)}")
    if len(parts) == 1:
        parts.append("look-ahead: bound not played")
    return "left to win over the best honest policy, in points: " + "; ".join(parts)


def _left_out(played: Played) -> Iterator[str]:
    for one in played.competitors:
        for cluster, reason in one.left_out.items():
            yield f"{one.name} is not applicable on {cluster}: {reason}"


def _doubt(low: float, high: float, p: float) -> str:
    if math.isnan(p):
        return ""
    return f" ({_points(low)} to {_points(high)}, {_p(p)})"


def _points(difference: float) -> str:
    return f"{round(difference, 1) + 0.0:+.1f}"  # no -0.0


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def _rates(rates: pd.Series) -> str:
    return " and ".join(f"{rate:g}" for rate in rates) + " conversations/s"
