"""Hardware files are read as they were written, by the configuration of a cluster too."""

from __future__ import annotations

from dataclasses import astuple, replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from conserve_gym.envs.calibration import derive, hardware_file
from conserve_gym.envs.configuration import validated
from conserve_gym.envs.serving.hardware import Hardware

GPU = derive.Gpu("some GPU", 500.0, 2000.0, 80.0, 2.0, 500.0)
MODEL = derive.Model("some model", 32, 4096, 32, 8, 128, 14336, 128256)


def test_a_tier_comes_back_with_four_digits(tmp_path: Path) -> None:
    tier = derive.hardware(GPU, MODEL)
    tier = replace(tier, decode=replace(tier.decode, kv_us=0.123456, sequence_us=1e-13))
    hardware_file.write(tmp_path / "tier.yaml", tier, ["One line.", "", "Another one."])
    text = (tmp_path / "tier.yaml").read_text()
    assert text.startswith("# One line.\n#\n# Another one.\n")
    again = validated(Hardware, OmegaConf.load(tmp_path / "tier.yaml"))
    assert again.decode.kv_us == 0.1235
    assert again.decode.sequence_us == 0.0
    assert astuple(again.figures) == pytest.approx(astuple(tier.figures), rel=1e-7)
    assert again.provenance == tier.provenance
    assert again.prefill.token_us == pytest.approx(tier.prefill.token_us, rel=1e-3)


def test_figures_of_a_model_follow_from_its_shape() -> None:
    figures = MODEL.figures
    # Llama-3.1-8B: 8.03e9 parameters, of which 0.53e9 look tokens up; 128 KiB of KV a token.
    assert figures.weights_gb == pytest.approx(2 * (8.03 - 0.525), rel=0.001)
    assert figures.gflop_per_token == pytest.approx(2 * (8.03 - 2 * 0.525), rel=0.001)
    assert figures.kv_bytes_per_token == 131_072
    assert figures.kflop_per_attended_token == pytest.approx(4 * 32 * 32 * 128 / 1e3)


def test_a_cache_is_scanned_by_one_multiprocessor_or_by_many() -> None:
    assert derive.scan_us(GPU, MODEL, kv_us=0.1) == pytest.approx(57 * 32 / 2000)
    assert derive.scan_us(replace(GPU, splits_caches=True), MODEL, kv_us=0.1) == 0.1
