"""What imitating the look-ahead is asked to do, validated."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from conserve_gym.envs.fields import STRICT, Positive


@dataclass(frozen=True, config=STRICT)
class ImitationSpec:
    """How the look-ahead is asked, and how a policy is fitted to its answers.

    Attributes:
        base: The rule or the run that plays on after each action that is tried.
        dagger_rounds: Times that the learner plays and the look-ahead is asked what was best
            there; 0 is plain behaviour cloning.
        validation_fraction: Share of the episodes that is held out.
        n_epochs: At most so many passes over the others.
        patience: Passes without a better loss on what is held out, until it stops.
        batch_size: Decisions in a step of the optimiser.
        learning_rate: Of Adam.
        workers: Processes that play; None takes one a core.
        policy_kwargs: As for the Stable-Baselines3 policy.
    """

    base: str
    dagger_rounds: NonNegativeInt
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)]
    n_epochs: PositiveInt
    patience: PositiveInt
    batch_size: PositiveInt
    learning_rate: Positive
    workers: PositiveInt | None
    policy_kwargs: dict[str, Any]
