"""The cluster that a twin has calibrated is one that every other command takes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from omegaconf import OmegaConf

from conserve_gym.agents.fidelity_check import tier
from conserve_gym.agents.twin import calibration
from conserve_gym.agents.twin.spec import StartedEngines, Tuning, TwinSpec
from conserve_gym.envs.calibration import hardware_file
from conserve_gym.envs.configuration import validated
from conserve_gym.envs.serving.cluster_spec import ClusterSpec
from conserve_gym.envs.serving.network_spec import LinkSpec
from conserve_gym.fleet import Role

LINK = LinkSpec(2.0, 1.0, 1.0, stops_engines=True)
SPEC = TwinSpec(
    engines=StartedEngines((Role.PREFILL, Role.DECODE), 4096),
    token_budget=256,
    max_sequences=8,
    link=None,
    slot_folder=None,
    policies=("colocate",),
    tuning=Tuning((0.0,), 1, "ttfet_s_p95"),
    calibrated=None,
    output=Path("out"),
)


def test_it_is_written_as_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "hardware").mkdir()
    hardware = tier("a40_qwen3_0.6b_300w")
    hardware_file.write(tmp_path / "hardware" / "twin.yaml", hardware, [])
    (tmp_path / "link.json").write_text(json.dumps(asdict(LINK)))
    cluster = calibration.read(SPEC, tmp_path)
    assert cluster.network.same_node == LINK
    assert [engine.kv_capacity_tokens for engine in cluster.engines] == [8 * 4096] * 2
    section = OmegaConf.load(tmp_path / "cluster" / "twin.yaml")
    assert validated(ClusterSpec, section) == cluster
