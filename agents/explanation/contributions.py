"""What moved each decision: the chosen placement's score against the best other one's.

Scores of a linear network are sums over the estimates, so that the difference of two is split
among them exactly. Everything else is told by occlusion: what the difference loses when one field
or estimate is replaced by its mean over the episode's decisions. Such losses need not add up. An
observation field is replaced on all engines at once, each by its own mean, and the estimates are
computed again from it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from conserve_gym.agents.explanation.counterfactual import FIRST_ESTIMATE, Counterfactual, IntArray
from conserve_gym.agents.explanation.recording import Recording, Step
from conserve_gym.agents.runtime.mlp import Float32Array
from conserve_gym.estimates import COLUMNS

FIELD, ESTIMATE = "observation", "estimate"
EXACT, OCCLUSION = "exact", "occlusion"


class Contribution(NamedTuple):
    """What one field or estimate did for the chosen placement.

    Attributes:
        kind: ``FIELD`` or ``ESTIMATE``.
        name: Of it.
        method: ``EXACT`` or ``OCCLUSION``.
        moved: By how much it widened the difference of scores; negative if it narrowed it.
    """

    kind: str
    name: str
    method: str
    moved: float


class Explained(NamedTuple):
    """A decision explained.

    Attributes:
        number: Its number in the episode, from 0.
        step: The decision.
        table: The placements as the network saw them.
        mask: Which of them found room.
        other: Action of the best other placement that found room; -1 where there is none, or the
            fallback rule decided.
        contributions: What moved it; empty without another placement.
    """

    number: int
    step: Step
    table: Float32Array
    mask: npt.NDArray[np.bool_]
    other: int
    contributions: tuple[Contribution, ...]

    @property
    def margin(self) -> float:
        """Score of the chosen placement less that of the best other; NaN without one."""
        decision = self.step.decision
        if self.other < 0:
            return float("nan")
        return float(decision.scores[decision.action] - decision.scores[self.other])


def explain(recording: Recording, asked: Counterfactual) -> list[Explained]:
    """Explain every decision of an episode."""
    steps = recording.steps
    tables = [asked.table(step) for step in steps]
    raws = np.stack([step.observation.raw for step in steps])
    mean_raw, mean_table = raws.mean(axis=0), np.mean(tables, axis=0)
    varying = [i for i in asked.fields.items() if np.ptp(raws[:, i[1]], axis=0).any()]
    explained = []
    for number, (step, table) in enumerate(zip(steps, tables, strict=True)):
        mask = asked.mask(step)
        other = _best_other(step, mask)
        found: list[Contribution] = []
        if other >= 0:
            pair = step.decision.action, other
            found += _of_fields(step, table, pair, asked, mean_raw, dict(varying))
            if asked.weights is not None:
                found += _exact(table, pair, asked.weights)
            elif asked.reads_estimates:
                found += _of_estimates(step, table, pair, asked, mean_table)
        explained.append(Explained(number, step, table, mask, other, tuple(found)))
    return explained


def _best_other(step: Step, mask: npt.NDArray[np.bool_]) -> int:
    others = mask.copy()
    if step.decision.action < 0:
        return -1
    others[step.decision.action] = False
    if not others.any():
        return -1
    return int(np.where(others, step.decision.scores, -np.inf).argmax())


def _of_fields(
    step: Step,
    table: Float32Array,
    pair: tuple[int, int],
    asked: Counterfactual,
    mean: npt.NDArray[np.float64],
    varying: dict[str, IntArray],
) -> list[Contribution]:
    """Occlude each observation field; one that never changes has moved nothing."""
    found = []
    for name in asked.fields:
        moved = 0.0
        if name in varying:
            raw = step.observation.raw.copy()
            raw[varying[name]] = mean[varying[name]]
            moved = _difference(step.decision.scores, pair)
            moved -= _difference(asked.scores_of(step, raw, table), pair)
        found.append(Contribution(FIELD, name, OCCLUSION, moved))
    return found


def _of_estimates(
    step: Step,
    table: Float32Array,
    pair: tuple[int, int],
    asked: Counterfactual,
    mean: Float32Array,
) -> list[Contribution]:
    """Occlude each estimate, of all placements at once."""
    found = []
    for i, column in enumerate(COLUMNS, start=FIRST_ESTIMATE):
        changed = table.copy()
        changed[:, i] = mean[:, i]
        moved = _difference(step.decision.scores, pair)
        moved -= _difference(asked.scores(step.observation.raw, changed), pair)
        found.append(Contribution(ESTIMATE, column.name, OCCLUSION, moved))
    return found


def _exact(table: Float32Array, pair: tuple[int, int], weights: Float32Array) -> list[Contribution]:
    """Split the difference of two weighted sums among their terms."""
    terms = weights * (table[pair[0], FIRST_ESTIMATE:] - table[pair[1], FIRST_ESTIMATE:])
    names = (column.name for column in COLUMNS)
    return [
        Contribution(ESTIMATE, name, EXACT, float(term))
        for name, term in zip(names, terms, strict=True)
    ]


def _difference(scores: Float32Array, pair: tuple[int, int]) -> float:
    return float(scores[pair[0]]) - float(scores[pair[1]])


def decision_rows(recording: Recording, explained: list[Explained]) -> list[dict[str, Any]]:
    """Return a row a decision: what was chosen, against what, and what moved it."""
    rows = []
    for one in explained:
        observation, decision = one.step.observation, one.step.decision
        row: dict[str, Any] = {
            "seed": recording.episode.seed,
            "decision": one.number,
            "time_s": observation.time,
            "conversation": observation.conversation,
            "turn": observation.turn,
            "fallback": decision.fallback,
            "action": decision.action,
            "prefill_at": decision.placement.prefill_at,
            "decode_at": decision.placement.decode_at,
            "other": one.other,
            "margin": one.margin,
        }
        for each in one.contributions:
            row[f"{each.method}.{each.kind}.{each.name}"] = each.moved
        rows.append(row)
    return rows


def candidate_rows(recording: Recording, explained: list[Explained]) -> list[dict[str, Any]]:
    """Return a row for each placement of each decision that the network took, with its score."""
    return [
        {
            "seed": recording.episode.seed,
            "decision": one.number,
            "action": action,
            "prefill_at": int(one.table[action, 0]),
            "decode_at": int(one.table[action, 1]),
            "finds_room": bool(one.mask[action]),
            "score": float(score),
            "chosen": action == one.step.decision.action,
        }
        for one in explained
        for action, score in enumerate(one.step.decision.scores)
    ]
