"""The runtime scheduler: an exported policy that decides, and a rule for when it cannot."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np

from conserve_gym import rules
from conserve_gym.actions import HOLD_MEANING
from conserve_gym.agents.runtime.artifact import Artifact, ArtifactError
from conserve_gym.agents.runtime.linear import Linear
from conserve_gym.agents.runtime.mlp import Float32Array, Mlp
from conserve_gym.agents.runtime.preference import checked_preference
from conserve_gym.agents.runtime.scorer import Scorer
from conserve_gym.deployment import DEFAULT_DEPLOYMENT, Deployment
from conserve_gym.fleet import Fleet
from conserve_gym.ledger import Ledger, Placed
from conserve_gym.observation import FloatArray, Observation, Scaler
from conserve_gym.observer import Observer
from conserve_gym.placement import Placement

_log = logging.getLogger(__name__)

SEEN_MARGIN = np.float32(0.05)
"""How far, in scaled units, a field may lie outside what training saw."""

FALLBACK_RULE = "disaggregate where the roles allow it, to the decoder with most free KV"


class DecidedBy(StrEnum):
    """Why a decision is what it is, in few words."""

    POLICY = "policy"
    NO_POLICY = "no_policy"
    OTHER_FLEET = "other_fleet"
    OUTSIDE_TRAINING = "outside_training"
    ENGINE_DOWN = "engine_down"


class Decision(NamedTuple):
    """A decision and how it came about.

    Attributes:
        placement: Where the conversation runs.
        action: The action chosen; -1 where the rule decided.
        scores: The network's scores; empty where the rule decided.
        fallback: Why the rule decided; empty where the network did.
        by: The same in few words.
    """

    placement: Placement
    action: int
    scores: Float32Array
    fallback: str = ""
    by: DecidedBy = DecidedBy.POLICY


class Scheduler:
    """Decides with an exported policy, or with the rule when anything is off.

    Args:
        artifact: The exported policy; None leaves every decision to the rule.
        reason: Why there is no policy.
        preference: How much energy counts, from 0 to 1, for a policy that was trained for any;
            None takes the default of its export.
        deployment: How the engines are run where there is no policy to say so.

    Attributes:
        reason: Why there is no policy; empty where there is one.
        checksum: What tells this policy from any other; empty where there is none.
        decisions: Decisions taken since ``reset``.
        fallbacks: Of these, taken by the rule.

    Raises:
        PreferenceError: The policy was trained for one weight of energy, or the preference is not
            from 0 to 1.
    """

    def __init__(
        self,
        artifact: Artifact | None,
        reason: str = "",
        preference: float | None = None,
        deployment: Deployment = DEFAULT_DEPLOYMENT,
    ) -> None:
        """Prepare to decide."""
        self.artifact = artifact
        self.reason = reason
        self.name = artifact.name if artifact else "rule"
        self.checksum = artifact.checksum if artifact else ""
        self.deployment = artifact.deployment if artifact else deployment
        self.decisions = self.fallbacks = 0
        self._preference = artifact.preference if artifact else None
        if preference is not None:
            self.preference = preference
            self.name += f"(preference={preference:g})"
        if artifact:
            self._fit(artifact, artifact.fleet)

    @classmethod
    def load(
        cls, path: str | Path, *, strict: bool = True, preference: float | None = None
    ) -> Scheduler:
        """Load an exported policy.

        Args:
            path: Folder or zip.
            strict: Raise when it cannot be used; otherwise log why and let the rule decide.
            preference: As for the class.

        Raises:
            ArtifactError: It cannot be used, and ``strict`` is true.
            PreferenceError: As for the class.
        """
        try:
            artifact = Artifact.load(path)
        except ArtifactError as error:
            if strict:
                raise
            _log.error("falling back to the rule: %s", error)
            return cls(None, str(error), preference)
        return cls(artifact, preference=preference)

    @property
    def preference(self) -> float | None:
        """How much energy counts, from 0 to 1; it may be set at any time."""
        return self._preference

    @preference.setter
    def preference(self, preference: float) -> None:
        artifact = self.artifact
        has_knob = artifact is None or artifact.preference is not None
        value = checked_preference(preference, self.name, has_knob)
        if artifact is not None:  # the rule has none
            self._preference = value

    def reset(self, seed: int) -> None:
        """Start counting anew; decisions are not random."""
        self.decisions = self.fallbacks = 0

    def decide(self, observation: Observation) -> Placement:
        """Choose where the conversation runs."""
        return self.decision(observation).placement

    def decision(self, observation: Observation, *, must_place: bool = False) -> Decision:
        """Choose where the conversation runs, and say how.

        Args:
            observation: What is known.
            must_place: Whether a policy that may hold the conversation must not.
        """
        self.decisions += 1
        artifact = self.artifact
        if artifact is None:
            return self._fall_back(observation, DecidedBy.NO_POLICY, self.reason)
        if observation.fleet is not self._fleet:
            if not artifact.serves(observation.fleet):
                return self._fall_back(
                    observation, DecidedBy.OTHER_FLEET, "the policy does not serve these engines"
                )
            self._fit(artifact, observation.fleet)
        raw = observation.raw
        # A NaN fails both comparisons.
        inside = (raw >= self._least) & (raw <= self._largest)
        if np.count_nonzero(inside) < len(raw):
            off = self._what_is_off(raw, int(inside.argmin()))
            return self._fall_back(observation, DecidedBy.OUTSIDE_TRAINING, off)
        scores = self._scores(artifact.network, observation)
        mask = self._actions.mask(observation)
        if must_place and self._may_hold:
            mask[-1] = False
        action = int(scores.argmax())
        if not mask[action]:
            action = int(np.where(mask, scores, -np.inf).argmax())
        return Decision(self._actions.placement(observation, action), action, scores)

    def _scores(self, network: Mlp | Scorer | Linear, observation: Observation) -> Float32Array:
        preference = self._preference
        if isinstance(network, Linear):
            return self._actions.weighted(observation, network.at(preference or 0.0))
        scaled = self._scaler(observation.raw)
        if preference is not None:
            scaled = np.concatenate((np.array([preference], dtype=np.float32), scaled))
        if isinstance(network, Mlp):
            return network.scores(scaled)
        return network.scores(scaled, self._actions.table(observation))

    def action_of(self, observation: Observation, placement: Placement) -> int | None:
        """Return the action that leads to a placement; None if no action of the policy does."""
        if self.artifact is None or observation.fleet is not self._fleet:
            return None
        for action in range(len(self._actions.meanings)):
            if self._actions.placement(observation, action) == placement:
                return action
        return None

    def _fit(self, artifact: Artifact, fleet: Fleet) -> None:
        """Prepare to decide for a fleet that the policy serves."""
        self._fleet = fleet
        self._actions = artifact.actions(fleet)
        self._may_hold = self._actions.meanings[-1] == HOLD_MEANING
        self._scaler = Scaler(len(fleet.roles))
        low, high = artifact.seen(len(fleet.roles))
        self._low, self._high = low - SEEN_MARGIN, high + SEEN_MARGIN
        self._least = self._scaler.largest_raw(self._low)
        self._largest = self._scaler.largest_raw(self._high)

    def _fall_back(self, observation: Observation, by: DecidedBy, reason: str) -> Decision:
        self.fallbacks += 1
        placement = rules.place(observation, disaggregate=observation.fleet.can_disaggregate)
        return Decision(placement, -1, np.empty(0, dtype=np.float32), reason, by)

    def _what_is_off(self, raw: FloatArray, index: int) -> str:
        name, scaled = self._scaler.names[index], self._scaler(raw)
        if np.isnan(scaled[index]):
            return f"{name} is not a number"
        return (
            f"{name} is {scaled[index]:.3f} (scaled), outside the "
            f"{self._low[index]:.3f} to {self._high[index]:.3f} of the training"
        )


def replay(ledger: Ledger, fleet: Fleet, scheduler: Scheduler) -> Iterator[tuple[Placed, Decision]]:
    """Decide again on a recorded ledger.

    Args:
        ledger: As a simulator or a router wrote it, with one decision a conversation.
        fleet: Its engines.
        scheduler: The policy.

    Yields:
        Each recorded placement with what the policy decides on the events before it.
    """
    past = Ledger()
    observer = Observer(past, fleet, scheduler.deployment)
    for event in ledger:
        if isinstance(event, Placed):
            observation = observer.observe(event.time, event.conversation, event.turn)
            yield event, scheduler.decision(observation)
        past.append(event)
