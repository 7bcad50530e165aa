"""Every algorithm's network, of either kind, gives the same scores without torch."""

from __future__ import annotations

import numpy as np
import pytest

from conserve_gym.agents.algorithms import ALGORITHMS, VIEWS
from conserve_gym.agents.networks.exported import exported, scores
from conserve_gym.agents.runtime.mlp import Mlp
from conserve_gym.agents.runtime.scorer import Scorer
from conserve_gym.envs.configuration import load_scenario
from conserve_gym.envs.placement_env import ConversationPlacementEnv

EPISODE = load_scenario(["workload.conversations=20", "arrivals.rate=3"])


@pytest.mark.parametrize("network", VIEWS)
@pytest.mark.parametrize("name", [name for name in ALGORITHMS if ALGORITHMS[name].policies])
def test_scores_without_torch_are_those_of_the_training_framework(name: str, network: str) -> None:
    env = VIEWS[network](ConversationPlacementEnv(EPISODE))
    algorithm = ALGORITHMS[name]
    buffer = {} if algorithm.on_policy else {"buffer_size": 10}
    kind = algorithm.policies[network]
    widths = {"net_arch": [16, 8]}
    model = algorithm.model(kind, env, policy_kwargs=widths, device="cpu", seed=0, **buffer)
    shown = [env.reset(seed=0)[0]]
    rows = [env.unwrapped.placements()]
    while len(shown) < 10:
        shown.append(env.step(np.int64(len(shown) % 2))[0])
        rows.append(env.unwrapped.placements())
    theirs = scores(model, np.stack(shown), 2)
    assert theirs.shape == (10, 2)

    header, tensors = exported(model)
    if network == "mlp":
        ours = list(map(Mlp.from_header(header, tensors).scores, shown))
    else:
        seen = [one[: -table.size] for one, table in zip(shown, rows, strict=True)]
        ours = list(map(Scorer.from_header(header, tensors).scores, seen, rows))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert np.ptp(theirs, axis=0).min() > 1e-4
