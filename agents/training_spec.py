"""What a training run is asked to do, validated."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from conserve_gym.envs.fields import STRICT, Positive


@dataclass(frozen=True, config=STRICT)
class DiscountSpec:
    """How rewards to come are discounted.

    Attributes:
        kind: By the seconds that pass (semi-Markov), or by the number of decisions.
        horizon_s: Per second: a reward this far ahead counts 1/e.
        gamma: Per decision: what a reward counts one decision ahead.
    """

    kind: Literal["per_second", "per_decision"]
    horizon_s: Positive
    gamma: Annotated[float, Field(ge=0.0, le=1.0)]


_TAKES = {
    "ppo": ("n_envs", "n_steps"),
    "maskable_ppo": ("n_envs", "n_steps"),
    "dqn": ("n_envs", "train_freq"),
    "qrdqn": ("n_envs", "train_freq"),
    "bc": (),
}


@dataclass(frozen=True, config=STRICT)
class AgentSpec:
    """The algorithm and its network.

    Attributes:
        algorithm: Which one.
        network: A perceptron on the whole observation, or a scorer of placements.
        n_envs: Environments in one process; none for cloning, which plays apart.
        n_steps: Steps that each plays between two updates.
        train_freq: The same, as DQN calls it.
        warm_start: Run whose weights it begins with.
        settings: The algorithm's other arguments.

    Raises:
        ValueError: A key is missing that the algorithm takes, or one is given that it does not.
    """

    algorithm: Literal["ppo", "maskable_ppo", "dqn", "qrdqn", "bc"]
    network: Literal["mlp", "scorer"]
    n_envs: PositiveInt | None
    n_steps: PositiveInt | None
    train_freq: PositiveInt | None
    warm_start: str | None
    settings: dict[str, Any]

    def __post_init__(self) -> None:
        """Check that the algorithm is told when to learn."""
        takes = _TAKES[self.algorithm]
        for key in ("n_envs", "n_steps", "train_freq"):
            if (getattr(self, key) is not None) != (key in takes):
                does = "takes" if key in takes else "does not take"
                raise ValueError(f"agent.algorithm={self.algorithm} {does} {key}")
        if self.algorithm == "bc" and self.warm_start is not None:
            raise ValueError("agent.algorithm=bc does not take warm_start")

    @property
    def steps(self) -> int:
        """Steps that each environment plays between two updates."""
        return self.n_steps or self.train_freq or 0


@dataclass(frozen=True, config=STRICT)
class TrainingSpec:
    """A training run.

    Attributes:
        environment: Which environment.
        agent: Which algorithm, with its settings.
        seed: Seed of weights, actions and episodes.
        total_timesteps: Decisions to train for.
        checkpoint_every: Decisions that a kill may lose.
        discount: How rewards to come are discounted.

    Raises:
        ValueError: A checkpoint is asked for more often than the policy is updated, or the
            environment has masks and the algorithm none.
    """

    environment: Literal["conversation", "joint", "turn"]
    agent: AgentSpec
    seed: NonNegativeInt
    total_timesteps: PositiveInt
    checkpoint_every: PositiveInt
    discount: DiscountSpec

    def __post_init__(self) -> None:
        """Check the values against each other."""
        name = "n_steps" if self.agent.n_steps else "train_freq"
        if self.checkpoint_every < self.rollout_steps:
            raise ValueError(
                f"checkpoint_every={self.checkpoint_every} is below a rollout of "
                f"agent.n_envs * agent.{name} = {self.rollout_steps} steps"
            )
        if self.environment == "joint" and self.agent.algorithm not in ("maskable_ppo", "bc"):
            raise ValueError("environment=joint has action masks: choose agent=maskable_ppo or bc")

    @property
    def rollout_steps(self) -> int:
        """Decisions between two updates; 0 for cloning, which has none."""
        return (self.agent.n_envs or 0) * self.agent.steps
