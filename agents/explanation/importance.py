"""Permutation importance: which decisions change when one thing is shuffled between them.

An observation field is shuffled as it was observed, before scaling: each decision is shown the
field's value, on all engines at once, of another decision of the same episode, and the estimates
are computed again from it. An estimate is shuffled as the network is shown it, in all placements at
once, and the observation stays. What a decision may choose from, and which of it finds room, stays
too. So a field counts with everything that is computed from it; an estimate counts alone, and only
for how it varies between decisions: one that merely tells the placements of every decision apart
in the same way changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from conserve_gym.agents.explanation.contributions import ESTIMATE, FIELD
from conserve_gym.agents.explanation.counterfactual import FIRST_ESTIMATE, Counterfactual, IntArray
from conserve_gym.agents.explanation.recording import Recording, Step
from conserve_gym.agents.runtime.mlp import Float32Array
from conserve_gym.agents.statistics import Estimate, estimate
from conserve_gym.estimates import COLUMNS


class Importance(NamedTuple):
    """What one field or estimate is worth to a policy.

    Attributes:
        kind: ``observation`` or ``estimate``.
        name: Of it.
        changed_pct: Decisions that change, in per cent: mean over episodes, with its interval.
    """

    kind: str
    name: str
    changed_pct: Estimate


def importance(
    recordings: Sequence[Recording], asked: Counterfactual, repeats: int
) -> list[Importance]:
    """Return the importance of every field and every estimate that the network reads.

    Decisions of the fallback rule are left out.

    Args:
        recordings: The episodes.
        asked: The policy.
        repeats: How often each is shuffled, drawn from the episode's seed; one permutation serves
            all fields and estimates.
    """
    changed: dict[tuple[str, str], list[float]] = {}
    for recording in recordings:
        steps = [step for step in recording.steps if not step.decision.fallback]
        if not steps:
            continue
        rng = np.random.default_rng(recording.episode.seed)
        orders = [rng.permutation(len(steps)) for _ in range(repeats)]
        for kind, name, share in _changed(steps, asked, orders):
            changed.setdefault((kind, name), []).append(100.0 * share)
    return [Importance(kind, name, estimate(each)) for (kind, name), each in changed.items()]


def _changed(
    steps: Sequence[Step], asked: Counterfactual, orders: Sequence[IntArray]
) -> Iterator[tuple[str, str, float]]:
    """Yield kind, name and the share of decisions that change."""
    raws = np.stack([step.observation.raw for step in steps])
    tables = np.stack([asked.table(step) for step in steps])
    masks = np.stack([asked.mask(step) for step in steps])
    actions = np.array([step.decision.action for step in steps])

    def share(scores: Sequence[Float32Array]) -> float:
        return float((np.where(masks, scores, -np.inf).argmax(axis=1) != actions).mean())

    for name, positions in asked.fields.items():
        shares = [0.0]
        if np.ptp(raws[:, positions], axis=0).any():  # else shuffling changes nothing
            shares = []
            for order in orders:
                shuffled = raws.copy()
                shuffled[:, positions] = raws[order][:, positions]
                shares.append(share(list(map(asked.scores_of, steps, shuffled, tables))))
        yield FIELD, name, float(np.mean(shares))
    if not asked.reads_estimates:
        return
    for i, column in enumerate(COLUMNS, start=FIRST_ESTIMATE):
        shares = [0.0]
        if np.ptp(tables[:, :, i], axis=0).any():
            shares = []
            for order in orders:
                shuffled_tables = tables.copy()
                shuffled_tables[:, :, i] = tables[order, :, i]
                shares.append(share(list(map(asked.scores, raws, shuffled_tables))))
        yield ESTIMATE, column.name, float(np.mean(shares))
