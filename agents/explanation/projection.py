"""Fits routers' thresholds to what a policy did, and says what is lost by them.

Such routers decide every turn. A policy that decides once a conversation has decided for the later
turns too: they stay where they are decoded, or go to its prefiller from so many new tokens on. So
its ledger is read as if it had decided each turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from conserve_gym import rules
from conserve_gym.agents.evaluation import Episode, play
from conserve_gym.agents.explanation.knobs import KNOBS, Knobs, Setting
from conserve_gym.agents.statistics import Estimate, estimate
from conserve_gym.baselines.baseline import Value
from conserve_gym.baselines.per_turn import uncached_tokens
from conserve_gym.baselines.registry import BASELINES
from conserve_gym.deployment import Deployment
from conserve_gym.envs.configuration import Scenario
from conserve_gym.envs.reward import RewardWeights, reward_terms, weighted
from conserve_gym.fleet import Fleet
from conserve_gym.ledger import Ledger, Placed, TurnArrived
from conserve_gym.observation import Observation
from conserve_gym.observer import Observer
from conserve_gym.placement import Placement
from conserve_gym.policy import Policy
from conserve_gym.site import Site

_TOKENS, _SHARES, _LOADS = 96, 21, 48  # values of each threshold that are tried

TURNS = ("first", "later")
"""The sorts of turns that agreement is told of."""

Answers = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.float64]


class Decision(NamedTuple):
    """What a policy did with a turn.

    Attributes:
        observation: What a router that decides every turn would have known.
        disaggregates: Whether its prompt was prefilled away from its decoder.
    """

    observation: Observation
    disaggregates: bool


class Rows(NamedTuple):
    """What thresholds look at, an entry a decision that leaves a choice.

    Attributes:
        first: Whether it is a conversation's first turn.
        uncached: Prompt tokens that the decoder has not cached.
        share: The same over the whole prompt.
        load: Prompt tokens in flight at the prefiller over its token budget.
        disaggregates: What the policy did.
    """

    first: Answers
    uncached: Numbers
    share: Numbers
    load: Numbers
    disaggregates: Answers


class Agreement(NamedTuple):
    """How often a router decides as the policy does, in per cent over unseen episodes.

    Attributes:
        rule: The router's.
        turns: Which turns.
        agrees: How often.
        majority: How often what the policy does most, in the episodes of the fit, is what it does.
        gain: The first less the second, paired by seed.
    """

    rule: str
    turns: str
    agrees: Estimate
    majority: Estimate
    gain: Estimate


class Loss(NamedTuple):
    """How somebody in the policy's place fares, paired by seed.

    Attributes:
        name: Who.
        attainment_pct: SLO attainment, in per cent.
        attainment_less: The same less the policy's.
        reward: Reward a conversation, without the imbalance, which counts decisions.
        reward_less: The same less the policy's.
    """

    name: str
    attainment_pct: Estimate
    attainment_less: Estimate
    reward: Estimate
    reward_less: Estimate


def decisions(ledger: Ledger, fleet: Fleet, deployment: Deployment) -> Iterator[Decision]:
    """Yield what was decided of each turn, whether it passed the door or not.

    Args:
        ledger: Of an episode.
        fleet: Its engines, as the policy saw them.
        deployment: The policy's.
    """
    observer = Observer(Ledger(), fleet, replace(deployment, decides_every_turn=True))
    placements: dict[int, Placement] = {}
    for event in ledger:
        if isinstance(event, Placed):
            time, conversation, turn, at, to, offload_above = event
            placement = placements[conversation] = Placement(at, to, offload_above)
            observation = observer.observe(time, conversation, turn)
            yield Decision(observation, placement.disaggregates)
        observer.read((event,))
        if isinstance(event, TurnArrived) and event.turn and not deployment.decides_every_turn:
            time, conversation, turn, _, new = event
            placement = placements[conversation]
            offloads = placement.offloads(False, new)
            yield Decision(observer.observe(time, conversation, turn), offloads)
            at = placement.prefill_at if offloads else placement.decode_at
            to = placement.decode_at
            observer.read((Placed(time, conversation, turn, at, to, placement.offload_above),))


def rows(decided: Sequence[Decision], site: Site) -> Rows:
    """Return what thresholds look at; turns that have no prefiller are left out."""
    found = []
    for observation, disaggregates in decided:
        decode_at = rules.home_decoder(observation)
        prefill_at = rules.prefiller_or_self(observation, decode_at)
        if prefill_at == decode_at:
            continue
        uncached = uncached_tokens(observation, decode_at)
        share = uncached / max(observation["prompt"], 1.0)
        in_flight = observation.engine_field("prompt_in_flight")[prefill_at]
        load = in_flight / site.engines[prefill_at].token_budget
        found.append((observation.turn == 0, uncached, share, load, disaggregates))
    table = np.array(found, dtype=np.float64).reshape(-1, len(Rows._fields))
    columns = dict(zip(Rows._fields, table.T, strict=True))
    return Rows(
        columns["first"].astype(bool),
        columns["uncached"],
        columns["share"],
        columns["load"],
        columns["disaggregates"].astype(bool),
    )


def fit(knobs: Knobs, given: Rows) -> Setting:
    """Return the thresholds that agree best with a policy.

    First turns count as much as all later ones, which are more and decide over less. Of equally
    good thresholds those in the middle are taken.

    Args:
        knobs: What may be set.
        given: The policy's decisions.
    """
    parameters = BASELINES[knobs.rule].parameters
    shorts: list[tuple[Value, ...]] = [()]
    if knobs.short:
        tokens = [0, *_spaced(int(parameters["tokens"].low), given.uncached.max(), _TOKENS)]
        ratios = [round(float(r), 2) for r in np.linspace(0.0, 1.0, _SHARES)]
        shorts = [(n,) for n in tokens]
        if len(knobs.short) > 1:
            shorts = [(n, r) for n in tokens for r in ratios]
    busies = [
        float(f"{b:.3g}") for b in np.geomspace(0.05, 2.0 * max(given.load.max(), 0.05), _LOADS)
    ]
    # stays = short or busy, so that agreement is linear in: short, busy, and both.
    short = np.array([_short(knobs, one, given) for one in shorts], dtype=np.float32)
    busy = np.array([given.load > one for one in busies], dtype=np.float32)
    if not knobs.busy:
        busies, busy = [0.0], np.zeros((1, given.load.size), dtype=np.float32)
    weight = _weights(given).astype(np.float32) * np.where(given.disaggregates, -1.0, 1.0)
    weight = weight.astype(np.float32)
    score = (short @ weight)[:, None] + busy @ weight - (short * weight) @ busy.T
    best = np.flatnonzero(np.isclose(score, score.max(), rtol=0.0, atol=1e-5))
    i, j = divmod(int(best[len(best) // 2]), len(busies))
    values = dict(zip(knobs.short, shorts[i], strict=True))
    return Setting(knobs, values | ({knobs.busy: busies[j]} if knobs.busy else {}))


def _spaced(low: int, high: float, count: int) -> list[int]:
    """Return whole numbers up to twice the largest, at equal ratios."""
    return [int(n) for n in np.unique(np.geomspace(low, max(2.0 * high, low + 1), count).round())]


def _short(knobs: Knobs, thresholds: tuple[Value, ...], given: Rows) -> Answers:
    """Return which prompts stay for their length."""
    if not thresholds:
        return np.zeros(given.uncached.size, dtype=bool)
    below = given.uncached < float(thresholds[0])
    if len(thresholds) > 1:
        return below & (given.share < float(thresholds[1]))
    return below if thresholds[0] else np.ones(given.uncached.size, dtype=bool)


def _weights(given: Rows) -> Numbers:
    """Return weights with which both sorts of turns count the same, and that add up to 1."""
    weights = np.zeros(given.first.size)
    sorts = [sort for sort in (given.first, ~given.first) if sort.any()]
    for sort in sorts:
        weights[sort] = 1.0 / (len(sorts) * sort.sum())
    return weights


def agreements(
    settings: Sequence[Setting],
    fitted: Sequence[Decision],
    unseen: Sequence[Sequence[Decision]],
    site: Site,
) -> list[Agreement]:
    """Return how often the routers decide as the policy does.

    The rules themselves are asked, not what the fit made of them.

    Args:
        settings: The routers'.
        fitted: Decisions of the fit, for what the policy does most.
        unseen: Decisions of each unseen episode.
        site: The cluster.
    """
    sorts: dict[str, Callable[[Decision], bool]] = {
        "first": lambda one: one.observation.turn == 0,
        "later": lambda one: one.observation.turn > 0,
    }
    found = []
    for setting in settings:
        policy = setting.policy(site)
        for name in TURNS:
            answers = [one.disaggregates for one in fitted if sorts[name](one)]
            usual = 2 * sum(answers) > len(answers)
            agrees, majority = [], []
            for episode in unseen:
                asked = [one for one in episode if sorts[name](one)]
                if not asked:
                    continue
                same = [policy.decide(o).disaggregates == answer for o, answer in asked]
                agrees.append(100.0 * float(np.mean(same)))
                majority.append(100.0 * float(np.mean([a == usual for _, a in asked])))
            if agrees:
                gain = [mine - theirs for mine, theirs in zip(agrees, majority, strict=True)]
                estimates = estimate(agrees), estimate(majority), estimate(gain)
                found.append(Agreement(setting.knobs.rule, name, *estimates))
    return found


def losses(
    scenario: Scenario,
    policy: Policy,
    episodes: Sequence[Episode],
    others: Sequence[Policy],
) -> list[Loss]:
    """Play routers' rules in a policy's place.

    Args:
        scenario: What is played on.
        policy: The policy.
        episodes: As it has played them.
        others: Who plays them instead.
    """
    own = [_outcome(episode, scenario.reward) for episode in episodes]
    found = [_loss(policy.name, own, own)]
    for other in others:
        theirs = [
            _outcome(play(scenario, other, episode.seed), scenario.reward) for episode in episodes
        ]
        found.append(_loss(other.name, theirs, own))
    return found


def _outcome(episode: Episode, weights: RewardWeights) -> tuple[float, float]:
    """Return SLO attainment in per cent, and the reward a conversation."""
    joules = 1e3 * sum(episode.energy_kj.values())
    terms = reward_terms(episode.normalised, joules, np.zeros(1))
    reward = weighted(terms, weights) / len(episode.normalised)
    return episode.metrics["slo_attainment_pct"], reward


def _loss(
    name: str, theirs: Sequence[tuple[float, float]], own: Sequence[tuple[float, float]]
) -> Loss:
    estimates = []
    for i in range(2):
        estimates.append(estimate([one[i] for one in theirs]))
        estimates.append(estimate([a[i] - b[i] for a, b in zip(theirs, own, strict=True)]))
    return Loss(name, *estimates)


def project(given: Rows) -> list[Setting]:
    """Return the best thresholds of every router."""
    return [fit(knobs, given) for knobs in KNOBS]
