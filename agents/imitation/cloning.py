"""Fits a Stable-Baselines3 policy to recordings.

An action counts as much as it is better than the worst one: the loss is the sum over actions of
(value - smallest value) * -log(probability). Decisions without a difference weigh nothing, and the
action that is best on the average over what cannot be seen becomes the most probable one (after
Ross and Bagnell, *Reinforcement and Imitation Learning via Interactive No-Regret Learning*, 2014).
The critic learns the discounted rewards that followed.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from conserve_gym.agents.imitation.imitation_spec import ImitationSpec
from conserve_gym.agents.imitation.recording import Recorded
from conserve_gym.agents.training_spec import DiscountSpec


class Fit(NamedTuple):
    """How a fit went, on episodes that were held out.

    Attributes:
        epochs: Passes until the best loss.
        loss: It.
        agreement_pct: Share of the decisions with a difference that are the look-ahead's.
        gain_pct: Share of the look-ahead's gain over actions drawn evenly that is reached; its own
            100 % are out of reach, for they need the future.
    """

    epochs: int
    loss: float
    agreement_pct: float
    gain_pct: float


class _Decisions(NamedTuple):
    shown: torch.Tensor
    better: torch.Tensor  # than the worst action, 0 without room
    allowed: torch.Tensor
    returns: torch.Tensor


def fit(
    model: Any,
    training: Sequence[Recorded],
    held_out: Sequence[Recorded],
    spec: ImitationSpec,
    discount: DiscountSpec,
) -> Fit:
    """Fit a model's policy; it keeps the weights with the best loss on what is held out."""
    policy = model.policy
    train, validation = (_decisions(part, discount) for part in (training, held_out))
    scale = train.better.sum(dim=1).mean()
    optimizer = torch.optim.Adam(policy.parameters(), lr=spec.learning_rate)
    generator = torch.Generator().manual_seed(model.seed)
    best, best_epoch, weights = float("inf"), 0, policy.state_dict()
    for epoch in range(1, spec.n_epochs + 1):
        order = torch.randperm(len(train.shown), generator=generator)
        for start in range(0, len(order), spec.batch_size):
            drawn = _Decisions(*(part[order[start : start + spec.batch_size]] for part in train))
            optimizer.zero_grad()
            loss = _actor_loss(policy, drawn) / scale + _critic_loss(policy, drawn)
            torch.autograd.backward(loss)
            optimizer.step()
        with torch.no_grad():
            unseen = float(_actor_loss(policy, validation) / scale)
        if unseen < best:
            best, best_epoch, weights = unseen, epoch, copy.deepcopy(policy.state_dict())
        elif epoch - best_epoch >= spec.patience:
            break
    policy.load_state_dict(weights)
    return Fit(best_epoch, best, *_on_unseen(policy, validation))


def _decisions(recordings: Sequence[Recorded], discount: DiscountSpec) -> _Decisions:
    values = torch.from_numpy(np.concatenate([one.values for one in recordings])).float()
    allowed = ~values.isnan()
    worst = values.nan_to_num(nan=torch.inf).amin(dim=1, keepdim=True)
    return _Decisions(
        torch.from_numpy(np.concatenate([one.shown for one in recordings])),
        (values - worst).nan_to_num(nan=0.0),
        allowed,
        torch.from_numpy(np.concatenate([_returns(one, discount) for one in recordings])),
    )


def _returns(recorded: Recorded, discount: DiscountSpec) -> npt.NDArray[np.float32]:
    """Return the discounted rewards that followed each decision of an episode."""
    if discount.kind == "per_second":
        factors = np.exp(-recorded.dt / discount.horizon_s)
    else:
        factors = np.full(len(recorded.dt), discount.gamma)
    returns = np.zeros(len(recorded.dt), dtype=np.float32)
    follows = 0.0
    for i in reversed(range(len(returns))):
        follows = recorded.rewards[i] + factors[i] * follows
        returns[i] = follows
    return returns


def _log_probabilities(policy: Any, decisions: _Decisions) -> torch.Tensor:
    scores = policy.action_net(policy.mlp_extractor.forward_actor(decisions.shown))
    masked: torch.Tensor = scores.masked_fill(~decisions.allowed, -1e9)
    return masked.log_softmax(dim=1)


def _actor_loss(policy: Any, decisions: _Decisions) -> torch.Tensor:
    return -(decisions.better * _log_probabilities(policy, decisions)).sum(dim=1).mean()


def _critic_loss(policy: Any, decisions: _Decisions) -> torch.Tensor:
    values = policy.value_net(policy.mlp_extractor.forward_critic(decisions.shown))
    return functional.mse_loss(values[:, 0], decisions.returns)


def _on_unseen(policy: Any, decisions: _Decisions) -> tuple[float, float]:
    with torch.no_grad():
        chosen = _log_probabilities(policy, decisions).argmax(dim=1, keepdim=True)
    better = decisions.better
    best, reached = better.amax(dim=1), better.gather(1, chosen)[:, 0]
    even = better.sum(dim=1) / decisions.allowed.sum(dim=1)
    agreed = (reached == best)[best > 0.0].float().mean()
    gain = (reached - even).sum() / (best - even).sum()
    return 100.0 * float(agreed), 100.0 * float(gain)
