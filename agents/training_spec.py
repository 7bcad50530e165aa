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


@dataclass(frozen=True, config=STRICT)
class AgentSpec:
    """The algorithm and its network.

    Attributes:
        algorithm: Which one.
        network: A perceptron on the whole observation, a scorer of placements, or weights of what
            they are estimated to cost.
        n_envs: Environments in one process; evolution and cloning have none of their own.
        n_steps: Steps that each plays between two updates.
        train_freq: The same, as DQN calls it.
        warm_start: Run whose weights it begins with.
        settings: The algorithm's other arguments.

    Raises:
        ValueError: Not those of ``n_envs``, ``n_steps`` and ``train_freq`` are given that the
            algorithm has, or it does not train such a network.
    """

    algorithm: Literal["ppo", "maskable_ppo", "dqn", "qrdqn", "bc", "evolution"]
    network: Literal["mlp", "scorer", "linear"]
    n_envs: PositiveInt | None
    n_steps: PositiveInt | None
    train_freq: PositiveInt | None
    warm_start: str | None
    settings: dict[str, Any]

    def __post_init__(self) -> None:
        """Check that the algorithm is told when to learn, and that it can learn the network."""
        if (self.algorithm == "evolution") is not (self.network == "linear"):
            raise ValueError(
                f"agent.algorithm={self.algorithm} does not train agent.network={self.network}: "
                "evolution trains linear, the others mlp and scorer"
            )
        takes = {
            "evolution": (),
            "bc": (),
            "dqn": ("n_envs", "train_freq"),
            "qrdqn": ("n_envs", "train_freq"),
        }
        expected = takes.get(self.algorithm, ("n_envs", "n_steps"))
        for name in ("n_envs", "n_steps", "train_freq"):
            if (getattr(self, name) is not None) is not (name in expected):
                takes_them = " and ".join(expected) or "none of them"
                raise ValueError(
                    f"agent.{name}={getattr(self, name)}: of n_envs, n_steps and train_freq "
                    f"agent.algorithm={self.algorithm} takes {takes_them}"
                )
        if self.warm_start is not None and self.algorithm == "bc":
            raise ValueError(f"agent.algorithm={self.algorithm} does not take warm_start")

    @property
    def rollout_steps(self) -> int:
        """Decisions between two updates; 0 where whole episodes are played."""
        return (self.n_envs or 0) * (self.n_steps or self.train_freq or 0)


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
        preference: Whether each episode draws how much energy counts, and the policy is shown it.

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
    preference: bool

    def __post_init__(self) -> None:
        """Check the values against each other."""
        rollout = self.agent.rollout_steps
        if self.checkpoint_every < rollout:
            name = "n_steps" if self.agent.n_steps else "train_freq"
            raise ValueError(
                f"checkpoint_every={self.checkpoint_every} is below a rollout of "
                f"agent.n_envs * agent.{name} = {rollout} steps"
            )
        if self.preference and self.agent.algorithm == "bc":
            raise ValueError("preference=true: agent=bc has nothing to prefer, but SLO attainment")
        if self.environment == "joint" and self.agent.algorithm in ("ppo", "dqn", "qrdqn"):
            raise ValueError(
                "environment=joint has action masks: choose agent=maskable_ppo, bc or evolution"
            )
