"""An exported policy of one layer that disaggregates prompts above a number of tokens."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from conserve_gym.agents.runtime.artifact import GOLDEN, HEADER, SCHEMA, WEIGHTS, header_checksum
from conserve_gym.deployment import DEFAULT_DEPLOYMENT, Deployment
from conserve_gym.fleet import Fleet
from conserve_gym.observation import FIELDS, Scaler, field_table


def write(
    folder: Path,
    fleet: Fleet,
    disaggregate_from: float,
    *,
    name: str = "tiny",
    deployment: Deployment = DEFAULT_DEPLOYMENT,
) -> Path:
    """Write the policy; from 0 tokens on is always, and infinity never."""
    scaler = Scaler(len(fleet.roles))
    prompt = scaler.names.index("conversation.prompt")
    high = next(f.high for f in FIELDS if (f.group, f.name) == ("conversation", "prompt"))
    weight = np.zeros((2, scaler.size), dtype="<f4")
    weight[1, prompt] = 100.0
    threshold = 2.0 if math.isinf(disaggregate_from) else math.log1p(disaggregate_from)
    if not math.isinf(disaggregate_from):
        threshold /= math.log1p(high)
    bias = np.array([0.0, 1e-3 - 100.0 * threshold], dtype="<f4")
    table: dict[str, Any] = {}
    data = b""
    for key, tensor in (("weight", weight), ("bias", bias)):
        span = [len(data), len(data) + tensor.nbytes]
        table[key] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": span}
        data += tensor.tobytes()
    header_bytes = json.dumps(table).encode()
    weights = len(header_bytes).to_bytes(8, "little") + header_bytes + data
    observations = np.random.default_rng(0).random((4, scaler.size), dtype=np.float32)
    golden = json.dumps(
        {
            "observations": observations.tolist(),
            "scores": (observations @ weight.T + bias).tolist(),
        }
    ).encode()
    header: dict[str, Any] = {
        "schema": SCHEMA,
        "name": name,
        "observation": {
            "fields": field_table(),
            "fleet": fleet.to_json(),
            "seen_low": [0.0] * scaler.size,
            "seen_high": [1.0] * scaler.size,
        },
        "deployment": deployment.to_json(),
        "preference": None,
        "actions": {"kind": "conversation", "offload_above": [None]},
        "network": {
            "kind": "mlp",
            "layers": [{"weight": "weight", "bias": "bias", "activation": "linear"}],
        },
    }
    header["sha256"] = {
        HEADER: header_checksum(header),
        WEIGHTS: hashlib.sha256(weights).hexdigest(),
        GOLDEN: hashlib.sha256(golden).hexdigest(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(weights)
    (folder / GOLDEN).write_bytes(golden)
    (folder / HEADER).write_text(json.dumps(header))
    return folder
