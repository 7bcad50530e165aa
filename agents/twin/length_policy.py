"""Exported policies of one layer, made by hand: disaggregate from so many tokens of a prompt on.

From none on, that is ConServe's rule; from infinity on, nothing is ever disaggregated. A router and
the simulator load the same files, so that what differs between them is not the policy.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from conserve_gym.agents.runtime.artifact import GOLDEN, HEADER, SCHEMA, WEIGHTS, header_checksum
from conserve_gym.deployment import DEFAULT_DEPLOYMENT, Deployment
from conserve_gym.fleet import Fleet
from conserve_gym.observation import FIELDS, Scaler, field_table

_STEEP = 100.0  # score of a prompt as long as the longest there is, over one of no token


def write(
    folder: Path,
    fleet: Fleet,
    disaggregate_from: float,
    *,
    name: str,
    deployment: Deployment = DEFAULT_DEPLOYMENT,
) -> Path:
    """Write a policy that disaggregates prompts from a number of tokens on.

    Args:
        folder: Where to.
        fleet: Engines that it decides for.
        disaggregate_from: Tokens; infinity is never.
        name: Of the policy.
        deployment: How the engines are run.
    """
    scaler = Scaler(len(fleet.roles))
    prompt = scaler.names.index("conversation.prompt")
    high = next(f.high for f in FIELDS if (f.group, f.name) == ("conversation", "prompt"))
    weight = np.zeros((2, scaler.size), dtype="<f4")
    weight[1, prompt] = _STEEP
    never = math.isinf(disaggregate_from)
    threshold = 2.0 if never else math.log1p(disaggregate_from) / math.log1p(high)
    bias = np.array([0.0, 1e-3 - _STEEP * threshold], dtype="<f4")
    observations = np.random.default_rng(0).random((4, scaler.size), dtype=np.float32)
    layer = {"weight": "weight", "bias": "bias", "activation": "linear"}
    return save(
        folder,
        header(name, fleet, deployment, "conversation", {"kind": "mlp", "layers": [layer]}),
        {"weight": weight, "bias": bias},
        {
            "observations": observations.tolist(),
            "scores": (observations @ weight.T + bias).tolist(),
        },
    )


def header(
    name: str, fleet: Fleet, deployment: Deployment, kind: str, network: dict[str, Any]
) -> dict[str, Any]:
    """Return the header of a policy that has seen everything; ``save`` adds the checksums."""
    size = Scaler(len(fleet.roles)).size
    return {
        "schema": SCHEMA,
        "name": name,
        "observation": {
            "fields": field_table(),
            "fleet": fleet.to_json(),
            "seen_low": [0.0] * size,
            "seen_high": [1.0] * size,
        },
        "deployment": deployment.to_json(),
        "preference": None,
        "actions": {"kind": kind, "offload_above": [None]},
        "network": network,
    }


def save(
    folder: Path,
    header: dict[str, Any],
    tensors: Mapping[str, npt.NDArray[np.float32]],
    golden: dict[str, Any],
) -> Path:
    """Write the three files of an exported policy."""
    table: dict[str, Any] = {}
    data = b""
    for key, tensor in tensors.items():
        span = [len(data), len(data) + tensor.nbytes]
        table[key] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": span}
        data += tensor.tobytes()
    table_bytes = json.dumps(table).encode()
    weights = len(table_bytes).to_bytes(8, "little") + table_bytes + data
    golden_bytes = json.dumps(golden).encode()
    header["sha256"] = {
        HEADER: header_checksum(header),
        WEIGHTS: hashlib.sha256(weights).hexdigest(),
        GOLDEN: hashlib.sha256(golden_bytes).hexdigest(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(weights)
    (folder / GOLDEN).write_bytes(golden_bytes)
    (folder / HEADER).write_text(json.dumps(header))
    return folder
