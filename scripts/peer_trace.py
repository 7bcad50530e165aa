"""Plays a trace that every serving simulator can play, on one engine, and prints latencies.

2,000 Poisson requests at 2 a second, 2,048 tokens in and 128 out, nothing shared. The engine is an
NVIDIA A100 80GB with Llama-3.1-8B, its KV pool what 90 % of the memory leaves beside the weights
and 2 GB of activations.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Sequence
from importlib.resources import files

import numpy as np
from omegaconf import OmegaConf
from pydantic import TypeAdapter

from conserve_gym.baselines.colocate import Colocate
from conserve_gym.envs.serving.cluster import Cluster
from conserve_gym.envs.serving.cluster_spec import ClusterSpec, EngineSpec
from conserve_gym.envs.serving.hardware import Hardware
from conserve_gym.envs.serving.network_spec import NetworkSpec
from conserve_gym.envs.workloads.conversation import Conversation, Turn
from conserve_gym.fleet import Role
from conserve_gym.metrics import RecordReader

HARDWARE = "a100_80gb_llama3.1_8b"
REQUESTS, RATE, INPUT_TOKENS, OUTPUT_TOKENS = 2000, 2.0, 2048, 128
TOKEN_BUDGET, SEQUENCES, BLOCK_TOKENS = 2048, 256, 16


def requests() -> list[Conversation]:
    """Return the trace: each request is a conversation of one turn."""
    gaps = np.random.default_rng(42).exponential(1.0 / RATE, REQUESTS)
    turn = Turn(INPUT_TOKENS, INPUT_TOKENS, OUTPUT_TOKENS, gap_s=0.0)
    return [Conversation(time, (turn,)) for time in np.cumsum(gaps).tolist()]


def one_engine() -> ClusterSpec:
    """Return the cluster."""
    config = files("conserve_gym.conf").joinpath(f"hardware/{HARDWARE}.yaml")
    values = OmegaConf.to_container(OmegaConf.create(config.read_text("utf-8")))
    hardware = TypeAdapter(Hardware).validate_python(values)
    limits, figures = hardware.limits, hardware.figures
    kv_bytes = (limits.memory_gb * 0.9 - figures.weights_gb - 2.0) * 1e9
    blocks = int(kv_bytes / figures.kv_bytes_per_token / BLOCK_TOKENS)
    engine = EngineSpec(
        Role.MIXED, HARDWARE, 1, TOKEN_BUDGET, SEQUENCES, blocks * BLOCK_TOKENS, BLOCK_TOKENS
    )
    return ClusterSpec(
        HARDWARE, {HARDWARE: hardware}, (engine,), NetworkSpec(), TOKEN_BUDGET, HARDWARE
    )


def play(spec: ClusterSpec, conversations: Sequence[Conversation]) -> Cluster:
    """Play the trace to its end."""
    policy = Colocate()
    cluster = Cluster(spec, policy.deployment, conversations)
    while cluster.advance():
        cluster.place(policy.decide(cluster.observe()))
    return cluster


def main() -> None:
    """Print TTFT and TBT, and the memory that the process took at most."""
    records = RecordReader().read(play(one_engine(), requests()).ledger)
    latencies = {
        "ttft_s": [record.ttft_s[0] for record in records],
        "tbt_s": [record.last_tbt_s for record in records],
    }
    printed = {
        f"{name}_p{percent}": round(float(np.percentile(values, percent)), 6)
        for name, values in latencies.items()
        for percent in (50, 95)
    }
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({**printed, "rss_mb": round(kilobytes / 1e3, 1)}))


if __name__ == "__main__":
    main()
