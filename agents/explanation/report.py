"""An explanation to read: a report, csv files and a picture."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from conserve_gym.agents.explanation.contributions import (
    ESTIMATE,
    EXACT,
    FIELD,
    Contribution,
    Explained,
)
from conserve_gym.agents.explanation.counterfactual import FIRST_ESTIMATE, Counterfactual
from conserve_gym.agents.explanation.distillation import Agreement, Loss
from conserve_gym.agents.explanation.importance import Importance
from conserve_gym.agents.explanation.recording import Recording
from conserve_gym.agents.explanation.rule import DistilledRule
from conserve_gym.agents.runtime.scheduler import Scheduler
from conserve_gym.agents.statistics import Estimate, estimate
from conserve_gym.envs.configuration import Scenario
from conserve_gym.estimates import COLUMNS
from conserve_gym.files import whole
from conserve_gym.observation import FIELDS
from conserve_gym.placement import HOLD

REPORT, RULE, IMPORTANCE = "report.md", "rule.json", "importance"

_SHOWN = 6
"""Rows of a table in the report; the csv files have all."""
_COLUMN = {column.name: i for i, column in enumerate(COLUMNS)}
_FIELD = {f"{field.group}.{field.name}": field for field in FIELDS}


@dataclass(frozen=True, eq=False)
class Explanation:
    """All that was found out about a policy.

    Attributes:
        scheduler: The policy.
        scenario: What it played on.
        asked: Its network.
        recordings: Unseen episodes.
        decisions: Rows of ``decisions.csv``.
        candidates: Rows of ``candidates.csv``.
        examples: Decisions of the first episode to be written out.
        importance: Of every field and estimate.
        rule: What imitates it.
        training_episodes: What the rule was fitted to.
        agreement: Of rules by depth, the rule's own last.
        losses: The policy's and those in its place.
        shares: Rows of ``placements.csv``.
    """

    scheduler: Scheduler
    scenario: Scenario
    asked: Counterfactual
    recordings: Sequence[Recording]
    decisions: list[dict[str, Any]]
    candidates: list[dict[str, Any]]
    examples: Sequence[Explained]
    importance: Sequence[Importance]
    rule: DistilledRule
    training_episodes: int
    agreement: Sequence[Agreement]
    losses: Sequence[Loss]
    shares: list[dict[str, Any]]


def write(folder: Path, found: Explanation, stamp: dict[str, Any]) -> list[Path]:
    """Write everything; each file appears whole or not at all.

    Args:
        folder: Where to.
        found: What was found out.
        stamp: What the rule's file says of its making.
    """
    tables = {
        "decisions": found.decisions,
        "candidates": found.candidates,
        IMPORTANCE: [
            {"kind": one.kind, "name": one.name, **flat("changed_pct", one.changed_pct)}
            for one in found.importance
        ],
        "agreement": [
            {"depth": a.depth, **flat("plain_pct", a.plain), **flat("balanced_pct", a.balanced)}
            for a in found.agreement
        ],
        "losses": [
            {
                "policy": loss.name,
                **flat("slo_attainment_pct", loss.attainment_pct),
                **flat("less_policy", loss.less_policy),
            }
            for loss in found.losses
        ],
        "placements": found.shares,
    }
    written = []
    for name, rows in tables.items():
        written.append(folder / f"{name}.csv")
        with whole(written[-1]) as partial:
            pd.DataFrame(rows).to_csv(partial, index=False)
    written.append(folder / f"{IMPORTANCE}.png")
    with whole(written[-1]) as partial:
        _picture(found).savefig(partial, dpi=150, format="png")
    texts = {
        RULE: json.dumps({**found.rule.to_json(), **stamp}, indent=1) + "\n",
        REPORT: text(found),
    }
    for name, content in texts.items():
        written.append(folder / name)
        with whole(written[-1]) as partial:
            partial.write_text(content, encoding="utf-8")
    return written


def text(found: Explanation) -> str:
    """Return the report."""
    parts = [
        f"# Why {found.scheduler.name} decides as it does",
        _setting(found),
        "## Some decisions",
        _how_decisions_are_explained(found),
        *(_example(one, found) for one in found.examples),
        "## What decisions hang on",
        _importance(found),
        "## A rule that imitates it",
        _rule(found),
        "## Where placements go",
        _shares(found),
    ]
    return "\n\n".join(parts) + "\n"


def _setting(found: Explanation) -> str:
    artifact, scenario = found.scheduler.artifact, found.scenario
    assert artifact is not None
    steps = [step for recording in found.recordings for step in recording.steps]
    seeds = [recording.episode.seed for recording in found.recordings]
    reasons = Counter(step.decision.fallback for step in steps if step.decision.fallback)
    says = (
        f"{artifact.header['network']['kind']} network, {artifact.action_kind} actions. "
        f"{scenario.workload.name}; {scenario.arrivals.name}; cluster {scenario.cluster.name}. "
        f"{len(steps):,} decisions of {_episodes(seeds)}. Intervals are Student's, 95 %, over the "
        "episodes."
    )
    held = sum(step.decision.placement == HOLD for step in steps)
    if held:
        says += f" Of the decisions {held:,} hold the conversation at the door for now."
    if not reasons:
        return says
    fields = Counter(reason.partition(" is ")[0] for reason in reasons.elements())
    most = "; ".join(f"{name} ({count:,})" for name, count in fields.most_common(3))
    return says + (
        f"\n\n**The fallback rule took {reasons.total():,} of the decisions "
        f"({100.0 * reasons.total() / len(steps):.1f} %)**, because of: {most}. They have no "
        "scores; the rule below imitates them too."
    )


def _how_decisions_are_explained(found: Explanation) -> str:
    says = (
        "The chosen placement's score less the best other one's that found room is what was moved. "
        "Observation fields: by occlusion, which is how much less the difference is with the "
        "field's mean over the episode in its place, on all engines at once"
    )
    if not found.asked.reads_estimates:
        return says + ". Such losses need not add up."
    says += ", and the estimates computed again. Such losses need not add up. Estimates: "
    if found.asked.weights is not None:
        return says + "exact, weight × difference; they add up to the difference."
    return says + "by occlusion too, each alone, with the observation as it was."


def _example(one: Explained, found: Explanation) -> str:
    observation, decision = one.step.observation, one.step.decision
    heading = (
        f"### Decision {one.number}: {observation.time:.1f} s, conversation "
        f"{observation.conversation}, turn {observation.turn}"
    )
    if decision.fallback:
        at, to, _ = decision.placement
        says = f"The fallback rule: prefill at {at}, decode at {to}, because {decision.fallback}."
        return f"{heading}\n\n{says}"
    order = np.where(one.mask, -decision.scores, np.inf).argsort(kind="stable")
    candidates = _table(
        ("", "prefill at", "decode at", "score"),
        (
            (
                _mark(int(action), one),
                *(_engine(end) for end in one.table[action, :2]),
                f"{decision.scores[action]:.3f}" + ("" if one.mask[action] else ", no room"),
            )
            for action in order[:_SHOWN]
        ),
    )
    left_out = len(order) - _SHOWN
    more = f"\n\n{left_out} more candidates score less or find no room." if left_out > 0 else ""
    if one.other < 0:
        return f"{heading}\n\n{candidates}{more}\n\nNo other placement found room."
    tables = []
    for kind in (FIELD, ESTIMATE):
        moved = [each for each in one.contributions if each.kind == kind]
        if moved:
            tables.append(_moved(kind, moved, one))
    return "\n\n".join(
        [f"{heading}\n\n{candidates}{more}", f"Chosen by {one.margin:.3f}.", *tables]
    )


def _engine(end: np.float32) -> str:
    return "hold" if end < 0 else f"{end:.0f}"


def _mark(action: int, one: Explained) -> str:
    if action == one.step.decision.action:
        return "chosen"
    return "best other" if action == one.other else ""


def _moved(kind: str, moved: list[Contribution], one: Explained) -> str:
    """Return what moved a decision most, with the values that did."""
    moved = sorted(moved, key=lambda each: -abs(each.moved))[:_SHOWN]
    if kind == FIELD:
        rows = [(each.name, _seen(each.name, one), f"{each.moved:+.3f}") for each in moved]
        return _table(("observation field", "value", "moved, by occlusion"), rows)
    estimates = one.table[[one.step.decision.action, one.other], FIRST_ESTIMATE:]
    scaled = [
        [f"{value * COLUMNS[i].scale:.3g}" for value in estimates[:, i]]
        for i in (_COLUMN[each.name] for each in moved)
    ]
    how = "exactly" if moved[0].method == EXACT else "by occlusion"
    return _table(
        ("estimate", "of the chosen", "of the best other", f"moved, {how}"),
        (
            (each.name, *values, f"{each.moved:+.3f}")
            for each, values in zip(moved, scaled, strict=True)
        ),
    )


def _seen(name: str, one: Explained) -> str:
    group, _, field = name.partition(".")
    observation = one.step.observation
    values = observation.engine_field(field) if group == "engines" else [observation[field]]
    return f"{', '.join(f'{value:.3g}' for value in values)} {_FIELD[name].unit}"


def _importance(found: Explanation) -> str:
    says = (
        "Share of the decisions that change when one thing is shuffled between the decisions of "
        "an episode. An observation field is shuffled as observed, on all engines at once, "
    )
    if found.asked.reads_estimates:
        says += (
            "and the estimates are computed again from it; an estimate is shuffled as the network "
            "is shown it, and the observation stays. An estimate that is the same in every "
            "decision, such as `away`, has 0 here, whatever its weight. "
        )
    says += (
        "Candidates, and which of them find room, stay as they were. One shuffled without those "
        "that go with it makes observations that do not occur: this is what the network hangs on, "
        "not what its decisions are worth."
    )
    if not found.importance:
        return says + " Nothing to show: the fallback rule took every decision."
    rows = (
        (one.kind, one.name, _shown(one.changed_pct))
        for one in sorted(found.importance, key=lambda one: -one.changed_pct.mean)[: 2 * _SHOWN]
    )
    return f"{says}\n\n{_table(('', 'name', 'decisions changed, %'), rows)}"


def _rule(found: Explanation) -> str:
    agreement = _table(
        ("questions in a row", "agrees, %", "balanced, %"),
        (
            (one.depth or "0: always the same", _shown(one.plain), _shown(one.balanced))
            for one in found.agreement
        ),
    )
    losses = _table(
        ("", "SLO attainment, %", "less the policy's"),
        (
            (loss.name, _shown(loss.attainment_pct), _shown(loss.less_policy) if i else "")
            for i, loss in enumerate(found.losses)
        ),
    )
    return "\n\n".join(
        [
            f"Whether to disaggregate, fitted to {found.training_episodes} training episodes; "
            "where it goes is the shared rule's: decoded where it was, or at the engine with most "
            "free KV, and prefilled there or at the least loaded prefiller. It never holds a "
            "conversation.",
            f"```\n{found.rule.text()}\n```",
            "On unseen episodes, as the policy played them (balanced: mean over decisions that "
            "disaggregate and those that do not):",
            agreement,
            "Played in the policy's place on the same seeds. Between them stands the policy's own "
            "choice to disaggregate, placed by the shared rule: what that loses is lost by where, "
            "not by the tree.",
            losses,
        ]
    )


def _shares(found: Explanation) -> str:
    engines = [key for key in found.shares[0] if key.startswith("engine_")]
    rows = []
    for end, says in (("prefill_at", "prefill"), ("decode_at", "decode")):
        mine = [row for row in found.shares if row["end"] == end]
        entropy = [row["entropy"] for row in mine]
        rows.append(
            (
                says,
                *(_shown(estimate([row[engine] for row in mine])) for engine in engines),
                _shown(estimate(entropy), "{:.2f}"),
                f"{min(entropy):.2f}",
            )
        )
    heads = (f"engine {key.split('_')[1]}, %" for key in engines)
    return (
        "Share of the placements of an episode at each engine, and its entropy over the largest "
        "there could be: 1 is as even as can be, 0 all at one. A colocated conversation counts at "
        "the same engine twice.\n\n"
        + _table(("", *heads, "normalised entropy", "of the lowest episode"), rows)
    )


def _picture(found: Explanation) -> Figure:
    """Draw importances as bars, fields beside estimates."""
    kinds = [kind for kind in (FIELD, ESTIMATE) if any(i.kind == kind for i in found.importance)]
    picture = Figure(figsize=(6.0 * max(len(kinds), 1), 7.0), layout="constrained")
    picture.suptitle(
        f"{found.scheduler.name}: decisions that change when one thing is shuffled\n"
        f"{found.scenario.workload.name}; {found.scenario.arrivals.name}; "
        f"cluster {found.scenario.cluster.name}",
        fontsize="medium",
    )
    for i, kind in enumerate(kinds):
        axes = picture.add_subplot(1, len(kinds), i + 1)
        mine = sorted(
            (one for one in found.importance if one.kind == kind),
            key=lambda one: one.changed_pct.mean,
        )
        shares = [one.changed_pct for one in mine]
        axes.barh(
            [one.name for one in mine],
            [share.mean for share in shares],
            xerr=[[s.mean - s.low for s in shares], [s.high - s.mean for s in shares]],
            color=f"C{i}",
            error_kw={"ecolor": "0.3", "capsize": 2},
        )
        axes.set(xlabel="decisions changed, %", title=f"{kind} fields" if not i else f"{kind}s")
        axes.set_xlim(left=0.0)
        axes.tick_params(axis="y", labelsize="small")
        axes.grid(axis="x", alpha=0.3)
    return picture


def _table(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    head = list(heads)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _shown(value: Estimate, form: str = "{:.1f}") -> str:
    half = (value.high - value.low) / 2
    return form.format(value.mean) + ("" if math.isnan(half) else f" ±{form.format(half)}")


def flat(name: str, value: Estimate) -> dict[str, float]:
    """Return an estimate as columns of a table."""
    return {name: value.mean, f"{name}_ci95_low": value.low, f"{name}_ci95_high": value.high}


def _episodes(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"one unseen episode (seed {seeds[0]}: no intervals)"
    return f"{len(seeds)} unseen episodes (seeds {min(seeds)} to {max(seeds)})"
