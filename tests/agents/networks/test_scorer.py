"""The scorer: permuting engines permutes scores, and weights fit any number of engines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.policies import ActorCriticPolicy

from conserve_gym.agents.networks.actor_critic import MaskableScorerPolicy, ScorerPolicy
from conserve_gym.agents.networks.placement_view import (
    N_CONTEXT,
    N_ENGINE,
    view,
    view_space,
    without_padding,
)
from conserve_gym.agents.networks.scorer import Scorer
from conserve_gym.agents.runtime.scorer import Scorer as RuntimeScorer
from conserve_gym.agents.runtime.scorer import shapes
from conserve_gym.estimates import COLUMNS, TABLE_COLUMNS
from conserve_gym.fleet import Fleet, Role
from conserve_gym.placement import Placement, as_table, candidates


def rows_of(placements: Sequence[Placement], rng: np.random.Generator) -> np.ndarray:
    """Placements as networks see them, with estimates that are drawn."""
    drawn = rng.normal(size=(len(placements), len(COLUMNS))).astype(np.float32)
    return np.concatenate([as_table(placements), drawn], axis=1)


def policy_for(kind: type[ActorCriticPolicy], n_engines: int, n_placements: int):
    space = view_space(n_engines, n_placements)
    torch.manual_seed(0)
    policy = kind(space, spaces.Discrete(n_placements), lambda _: 1e-3, net_arch=[8, 16])
    with torch.no_grad():  # the initial scores are all but equal
        policy.mlp_extractor.scorer.score.weight.normal_()
    return policy


def scores_and_value(policy, seen: np.ndarray) -> tuple[np.ndarray, float]:
    batch = torch.from_numpy(seen)[None]
    with torch.no_grad():
        scores = policy.get_distribution(batch).distribution.logits[0].numpy()
        return scores, float(policy.predict_values(batch))


@settings(max_examples=40, deadline=None)
@given(
    roles=st.lists(st.sampled_from(list(Role)), min_size=1, max_size=9).filter(
        lambda roles: any(role.decodes for role in roles)
    ),
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from([ScorerPolicy, MaskableScorerPolicy]),
)
def test_permuting_engines_permutes_scores_and_keeps_the_value(
    roles: list[Role], seed: int, kind: type[ActorCriticPolicy]
) -> None:
    rng = np.random.default_rng(seed)
    n = len(roles)
    order = rng.permutation(n)  # engine order[i] becomes engine i
    now_at = np.argsort(order)
    context = rng.random(N_CONTEXT, dtype=np.float32)
    engines = rng.random((n, N_ENGINE), dtype=np.float32)
    offload_above = (np.inf, 512.0, 0.0)
    before = candidates(Fleet(tuple(roles), (1,) * n), offload_above)
    after = candidates(Fleet(tuple(roles[i] for i in order), (1,) * n), offload_above)
    moved = [
        after.index(p._replace(prefill_at=now_at[p.prefill_at], decode_at=now_at[p.decode_at]))
        for p in before
    ]

    rows, permuted = rows_of(before, rng), rows_of(after, rng)
    permuted[moved, 3:] = rows[:, 3:]
    policy = policy_for(kind, n, len(before))
    flat = np.concatenate([context, engines.ravel()])
    scores, value = scores_and_value(policy, view(flat, rows))
    flat = np.concatenate([context, engines[order].ravel()])
    permuted_scores, permuted_value = scores_and_value(policy, view(flat, permuted))
    np.testing.assert_allclose(permuted_scores[moved], scores, atol=1e-5)
    assert permuted_value == pytest.approx(value, abs=1e-5)
    if len(before) > 1:
        assert np.ptp(scores) > 1e-3


def test_the_same_weights_fit_2_and_64_engines() -> None:
    small, large = (policy_for(MaskableScorerPolicy, *size) for size in ((2, 2), (64, 800)))
    large.load_state_dict(small.state_dict())
    rng = np.random.default_rng(0)
    context = rng.random(N_CONTEXT, dtype=np.float32)
    engines = np.tile(rng.random(N_ENGINE, dtype=np.float32), 2)
    row = rows_of(candidates(Fleet((Role.PREFILL, Role.DECODE), (1, 1))), rng)
    few, value_of_few = scores_and_value(small, view(np.concatenate([context, engines]), row))
    many, value_of_many = scores_and_value(
        large, view(np.concatenate([context, np.tile(engines, 32)]), np.tile(row, (400, 1)))
    )
    # 64 engines that are all alike look like 2 of them: the summary is the same.
    assert value_of_many == pytest.approx(value_of_few, abs=1e-5)
    np.testing.assert_allclose(many[1] - many[0], few[1] - few[0], atol=1e-5)


def test_every_part_of_a_placement_counts() -> None:
    different = [[1, 1, 1.0], [0, 1, 1.0], [2, 1, 1.0], [0, 2, 1.0], [0, 1, 0.5]]
    rows = np.zeros((5 + len(COLUMNS), TABLE_COLUMNS), dtype=np.float32)
    rows[:5, :3] = different
    rows[5:, :3] = different[0]  # and in one estimate each
    rows[5:, 3:] = np.eye(len(COLUMNS))
    policy = policy_for(ScorerPolicy, 3, len(rows))
    flat = np.random.default_rng(0).random(N_CONTEXT + 3 * N_ENGINE, dtype=np.float32)
    scores, _ = scores_and_value(policy, view(flat, rows))
    assert len(set(scores.round(5))) == len(rows)


@pytest.mark.parametrize("n_engines", [2, 9, 64])
def test_the_runtime_gives_the_scores_of_the_training_framework(n_engines: int) -> None:
    rng = np.random.default_rng(0)
    placements = rows_of(candidates(Fleet((Role.MIXED,) * n_engines, (1,) * n_engines)), rng)
    torch.manual_seed(n_engines)
    scorer = Scorer(len(placements), 8, 16)
    flat = rng.random(N_CONTEXT + n_engines * N_ENGINE, dtype=np.float32)
    with torch.no_grad():
        theirs = scorer(torch.from_numpy(view(flat, placements))[None])[0].numpy()
    tensors = {name: weight.numpy() for name, weight in scorer.state_dict().items()}
    assert {name: weight.shape for name, weight in tensors.items()} == shapes(8, 16)
    ours = RuntimeScorer(tensors).scores(flat, placements)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert len(set(ours.tolist())) > len(placements) / 2


@settings(max_examples=40, deadline=None)
@given(
    roles=st.lists(st.sampled_from(list(Role)), min_size=1, max_size=6).filter(
        lambda roles: any(role.decodes for role in roles)
    ),
    more_engines=st.integers(0, 5),
    more_placements=st.integers(0, 9),
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from([ScorerPolicy, MaskableScorerPolicy]),
)
def test_padding_changes_no_score_and_no_value(
    roles: list[Role],
    more_engines: int,
    more_placements: int,
    seed: int,
    kind: type[ActorCriticPolicy],
) -> None:
    rng = np.random.default_rng(seed)
    n = len(roles)
    rows = rows_of(candidates(Fleet(tuple(roles), (1,) * n), (np.inf, 512.0)), rng)
    context = rng.random(N_CONTEXT, dtype=np.float32)
    engines = 0.05 + 0.95 * rng.random((n, N_ENGINE), dtype=np.float32)
    small = policy_for(kind, n, len(rows))
    # Away from 0, so that an embedding of a row of zeros would not be 0.
    with torch.no_grad():
        for weight in small.parameters():
            weight.normal_(std=0.5)
    large = policy_for(kind, n + more_engines, len(rows) + more_placements)
    large.load_state_dict(small.state_dict())

    unpadded = view(np.concatenate([context, engines.ravel()]), rows)
    scores, value = raw_scores_and_value(small, unpadded)
    longer = np.zeros((n + more_engines, N_ENGINE), dtype=np.float32)
    longer[:n] = engines
    more_rows = np.zeros((len(rows) + more_placements, rows.shape[1]), dtype=np.float32)
    more_rows[: len(rows)] = rows
    padded = view(np.concatenate([context, longer.ravel()]), more_rows)
    padded_scores, padded_value = raw_scores_and_value(large, padded)
    np.testing.assert_allclose(padded_scores[: len(rows)], scores, rtol=1e-5, atol=1e-5)
    assert padded_value == pytest.approx(value, rel=1e-5, abs=1e-5)

    known = without_padding(padded[None], len(more_rows))[0]
    of_engines = known[N_CONTEXT : N_CONTEXT + longer.size].reshape(longer.shape)
    assert np.isnan(of_engines[n:]).all() and np.isfinite(of_engines[:n]).all()
    assert np.isfinite(known).sum() == padded.size - more_engines * N_ENGINE


def raw_scores_and_value(policy, seen: np.ndarray) -> tuple[np.ndarray, float]:
    batch = torch.from_numpy(seen)[None]
    with torch.no_grad():
        return policy.mlp_extractor.forward_actor(batch)[0].numpy(), float(
            policy.predict_values(batch)
        )
