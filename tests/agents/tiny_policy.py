"""Exported policies of one layer, made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from conserve_gym.agents.twin import length_policy
from conserve_gym.deployment import DEFAULT_DEPLOYMENT, Deployment
from conserve_gym.estimates import COLUMNS, TABLE_COLUMNS
from conserve_gym.fleet import Fleet
from conserve_gym.observation import Scaler


def write(
    folder: Path,
    fleet: Fleet,
    disaggregate_from: float,
    *,
    name: str = "tiny",
    deployment: Deployment = DEFAULT_DEPLOYMENT,
) -> Path:
    """Write a policy that disaggregates prompts from a number of tokens on; infinity is never."""
    return length_policy.write(folder, fleet, disaggregate_from, name=name, deployment=deployment)


def write_holding(folder: Path, fleet: Fleet) -> Path:
    """Write a policy that holds conversations while anything is under way."""
    weights = np.array([10.0 * (column.name == "hold") for column in COLUMNS], dtype="<f4")
    rng = np.random.default_rng(0)
    tables = rng.random((4, 3, TABLE_COLUMNS), dtype=np.float32)
    observations = rng.random((4, Scaler(len(fleet.roles)).size), dtype=np.float32)
    network = {"kind": "linear", "columns": [column.name for column in COLUMNS]}
    header = length_policy.header("holding", fleet, Deployment(may_hold=True), "joint", network)
    for bound in ("seen_low", "seen_high"):  # engines stand there once
        header["observation"][bound] = header["observation"][bound][: Scaler(1).size]
    golden = {
        "observations": observations.tolist(),
        "placements": tables.tolist(),
        "scores": (tables[:, :, -len(COLUMNS) :] @ weights).tolist(),
    }
    return length_policy.save(folder, header, {"weights": weights}, golden)
