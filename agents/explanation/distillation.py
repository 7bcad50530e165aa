"""Fits a short tree to a policy's choice to disaggregate, and says what is lost by it.

Where a policy holds a conversation at the door it has not chosen yet: such decisions are left out.
The tree never holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from conserve_gym.agents.evaluation import Episode, play
from conserve_gym.agents.explanation.recording import Recording
from conserve_gym.agents.explanation.rule import (
    FEATURES,
    DistilledRule,
    Leaf,
    Node,
    Split,
    features,
    placed_by_rule,
)
from conserve_gym.agents.runtime.scheduler import Scheduler
from conserve_gym.agents.statistics import Estimate, estimate
from conserve_gym.envs.configuration import ConfigurationError, Scenario
from conserve_gym.observation import FloatArray, Observation
from conserve_gym.placement import HOLD, Placement

Answers = npt.NDArray[np.bool_]

SMALLEST_LEAF = 0.01
"""Share of the training decisions that a leaf holds at least: fewer would be an accident."""


class Agreement(NamedTuple):
    """How often a rule says what the policy says, in per cent over unseen episodes.

    Attributes:
        depth: Of the rule's tree; 0 always says what the policy says most often in training.
        plain: Of all decisions.
        balanced: Mean over those that disaggregate and those that do not; where an episode has
            none of one sort, the other counts alone.
    """

    depth: int
    plain: Estimate
    balanced: Estimate


class Loss(NamedTuple):
    """SLO attainment of somebody in the policy's place, in per cent, paired by seed.

    Attributes:
        name: Who.
        attainment_pct: Its own.
        less_policy: Its own less the policy's.
    """

    name: str
    attainment_pct: Estimate
    less_policy: Estimate


class PlacedByRule:
    """Asks a policy whether to disaggregate, and leaves to the rules where.

    It stands between the policy and the tree: what it loses is not the tree's fault.

    Args:
        scheduler: The policy.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        """Take the policy."""
        self.name = f"{scheduler.name}, placed by rule"
        self.deployment = scheduler.deployment
        self.reset = scheduler.reset
        self._scheduler = scheduler

    def decide(self, observation: Observation) -> Placement:
        """Choose where the conversation runs; hold it where the policy does."""
        placement = self._scheduler.decide(observation)
        if placement == HOLD:
            return HOLD
        return placed_by_rule(observation, disaggregate=placement.disaggregates)


def distil(
    recordings: Sequence[Recording], scheduler: Scheduler, depth: int, balanced: bool = True
) -> DistilledRule:
    """Fit a tree to what a policy did.

    Thresholds are rounded to three digits, so that they can be read.

    Args:
        recordings: Training episodes.
        scheduler: Who played them.
        depth: Questions in a row that the tree may ask; 0 for none.
        balanced: Whether both answers weigh the same in all, however rare one is; else every
            decision does.

    Raises:
        ConfigurationError: scikit-learn is missing.
    """
    rows, answers = _decisions(recordings)
    name = f"{scheduler.name}_rule"
    if depth == 0:
        return DistilledRule(name, scheduler.deployment, _leaf(2 * answers.sum() > answers.size))
    fitted = tree_classifier()(
        max_depth=depth,
        min_samples_leaf=SMALLEST_LEAF,
        class_weight="balanced" if balanced else None,
        random_state=0,
    )
    fitted.fit(rows, answers)
    return DistilledRule(name, scheduler.deployment, _node(fitted, 0))


def tree_classifier() -> Any:
    """Return scikit-learn's class of decision trees.

    Raises:
        ConfigurationError: scikit-learn is missing.
    """
    try:
        from sklearn.tree import DecisionTreeClassifier
    except ImportError:
        raise ConfigurationError(
            "distilling needs scikit-learn: pip install 'conserve-gym[explain]'"
        ) from None
    return DecisionTreeClassifier


def _decisions(recordings: Sequence[Recording]) -> tuple[FloatArray, Answers]:
    """Return the features of every decision that places, and whether it disaggregates."""
    steps = [
        step
        for recording in recordings
        for step in recording.steps
        if step.decision.placement != HOLD
    ]
    rows = np.stack([features(step.observation) for step in steps])
    return rows, np.array([step.decision.placement.disaggregates for step in steps])


def _node(fitted: Any, index: int) -> Node:
    """Return a node of scikit-learn's tree as one of ours.

    A question whose answers lead to the same is not asked.
    """
    tree = fitted.tree_
    if tree.children_left[index] < 0:
        return _leaf(bool(fitted.classes_[tree.value[index, 0].argmax()]))
    at_most = _node(fitted, tree.children_left[index])
    above = _node(fitted, tree.children_right[index])
    if at_most == above and not isinstance(at_most, Split):
        return at_most
    feature = list(FEATURES)[tree.feature[index]]
    return Split(feature, float(f"{tree.threshold[index]:.3g}"), at_most, above)


def _leaf(disaggregates: bool) -> Leaf:
    return "disaggregate" if disaggregates else "colocate"


def agreement(recordings: Sequence[Recording], rule: DistilledRule, depth: int) -> Agreement:
    """Return how often a rule says what the policy said.

    Args:
        recordings: Unseen episodes, as the policy played them.
        rule: The rule.
        depth: Of its tree.
    """
    plain, balanced = [], []
    for recording in recordings:
        rows, answers = _decisions([recording])
        agrees = np.array([rule.disaggregates(row) for row in rows]) == answers
        sorts = [agrees[answers == sort] for sort in (False, True)]
        plain.append(100.0 * float(agrees.mean()))
        balanced.append(100.0 * float(np.mean([each.mean() for each in sorts if each.size])))
    return Agreement(depth, estimate(plain), estimate(balanced))


def losses(
    recordings: Sequence[Recording],
    scenario: Scenario,
    scheduler: Scheduler,
    rule: DistilledRule,
    majority: DistilledRule,
) -> list[Loss]:
    """Play a rule, and what it is to be compared with, on the policy's own unseen episodes.

    Args:
        recordings: The episodes as the policy played them.
        scenario: What they ran on.
        scheduler: The policy.
        rule: The rule.
        majority: The rule that always says the same.
    """
    attained = [_attainment_pct(recording.episode) for recording in recordings]
    seeds = [recording.episode.seed for recording in recordings]
    always = f"always {majority.tree}"
    found = [Loss(scheduler.name, estimate(attained), estimate([0.0] * len(attained)))]
    players = ((rule.name, rule), (always, majority))
    for name, player in ((f"{scheduler.name}, placed by rule", PlacedByRule(scheduler)), *players):
        own = [_attainment_pct(play(scenario, player, seed)) for seed in seeds]
        less = [mine - theirs for mine, theirs in zip(own, attained, strict=True)]
        found.append(Loss(name, estimate(own), estimate(less)))
    return found


def _attainment_pct(episode: Episode) -> float:
    return episode.metrics["slo_attainment_pct"]
