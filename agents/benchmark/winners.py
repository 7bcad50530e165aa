"""Who is ahead where, and whether that can be told from the next."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from conserve_gym.agents.benchmark.comparisons import SIGNIFICANT, holm, pairs

METRIC = "slo_attainment_pct"


class Winner(NamedTuple):
    """The honest policy with most SLO attainment at one load.

    Attributes:
        rate: The load, in conversations/s.
        policy: Its name.
        attained: Its mean, in percent.
        next: The next one's name; empty if it is alone.
        lead: Its lead over the next one, in percent points.
        low: Lower end of the lead's 95 % interval.
        high: Upper end.
        p: Of the lead over the next one, corrected over all loads and others.
        level: Who cannot be told from it.
    """

    rate: float
    policy: str
    attained: float
    next: str
    lead: float
    low: float
    high: float
    p: float
    level: tuple[str, ...]

    @property
    def clear(self) -> bool:
        """Whether it is significantly ahead of everybody."""
        return bool(self.next) and not self.level


def ranking(rows: pd.DataFrame) -> list[str]:
    """Return the honest policies by mean SLO attainment over all loads, then goodput."""
    honest = rows[~rows["sees_future"]]
    means = honest.groupby("policy", sort=False)[[METRIC, "goodput_per_s"]].mean()
    return list(means.sort_values([METRIC, "goodput_per_s"], ascending=False, kind="stable").index)


def winners(rows: pd.DataFrame) -> list[Winner]:
    """Return who is ahead at each load.

    Args:
        rows: Of one cluster and workload.
    """
    honest = rows[~rows["sees_future"]]
    tops = {rate: ranking(at) for rate, at in honest.groupby("rate")}
    leads = [
        pairs(honest[honest["rate"] == rate], order[0], order[1:], METRIC)
        for rate, order in tops.items()
        if len(order) > 1
    ]
    found = pd.concat(leads, ignore_index=True) if leads else pd.DataFrame()
    if leads:
        found["p_holm"] = holm(found["p"])
    return [_winner(rate, order, honest, found) for rate, order in tops.items()]


def _winner(rate: float, order: list[str], honest: pd.DataFrame, leads: pd.DataFrame) -> Winner:
    at = honest[(honest["rate"] == rate) & (honest["policy"] == order[0])]
    attained = float(at[METRIC].mean())
    nan = float("nan")
    if len(order) == 1:
        return Winner(rate, order[0], attained, "", nan, nan, nan, nan, ())
    here = leads[leads["rate"] == rate].set_index("policy")
    following = here.loc[order[1]]
    ahead = set(here.index[here["p_holm"] < SIGNIFICANT])
    return Winner(
        rate,
        order[0],
        attained,
        order[1],
        float(following["difference"]),
        float(following["ci95_low"]),
        float(following["ci95_high"]),
        float(following["p_holm"]),
        tuple(one for one in order[1:] if one not in ahead),
    )
