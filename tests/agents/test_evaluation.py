"""What an evaluated episode reports."""

from __future__ import annotations

import pytest

from conserve_gym.agents.evaluation import play
from conserve_gym.baselines.registry import make_baseline
from conserve_gym.envs.configuration import load_scenario
from conserve_gym.envs.serving.profile import site


def test_energy_by_engine_and_phase_adds_up() -> None:
    scenario = load_scenario(["workload.conversations=20"])
    episode = play(scenario, make_baseline("conserve", site(scenario.cluster)), 0)
    metrics, parts = episode.metrics, episode.energy_kj
    assert len(parts) == 4 * 4
    assert sum(parts.values()) == pytest.approx(metrics["energy_kj"], rel=1e-12)
    # The prefiller does nothing but prefill; the decoders decode and prefill what is appended.
    assert parts["engine_0_prefill_kj"] > 0.0
    assert parts["engine_0_decode_kj"] == parts["engine_0_mixed_kj"] == 0.0
    assert all(parts[f"engine_{i}_decode_kj"] > 0.0 for i in (1, 2, 3))
