"""Readers of published measurements, for judging the laws; the files are not part of the project.

Each function takes the folder that holds them, and says which file it reads.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from conserve_gym.envs.calibration.steps import Steps

# One decode step was measured with each cold prefill of the A40 and is taken off (ms).
A40_DECODE_STEP_MS = 14.2


def a40_prefill(folder: Path, cap_w: int) -> Steps:
    """Return medians over 5 repeats of cold prefills at a power cap, one a prompt length."""
    rows = pd.read_csv(folder / "a40_qwen3_0.6b_prefill.csv", comment="#")
    # The first run at 300 W has cold-start noise; `300W_rerun` is the one without.
    log = {300: "cache_cost_300W_rerun", 200: "cache_cost_200W"}[cap_w]
    rows = rows[rows["log"] == log]
    cold = rows.groupby("prompt_tokens")["miss_s_prefill_plus_1_decode"].median()
    return Steps.of(cold.index, 0, 0, 0, 1e3 * cold.to_numpy() - A40_DECODE_STEP_MS)


def a40_cache_hits(folder: Path) -> Steps:
    """Return medians of prompts at 300 W that were cached but for their last block, with a decode.

    Wall time at the client: tokenising and transport are in it.
    """
    rows = pd.read_csv(folder / "a40_qwen3_0.6b_prefill.csv", comment="#")
    rows = rows[rows["log"] == "cache_cost_300W_rerun"]
    hits = rows.groupby("prompt_tokens")["hit_s_cachehit_prefill_plus_1_decode"].median()
    ms = 1e3 * hits.to_numpy() - A40_DECODE_STEP_MS
    return Steps.of(16, hits.index.to_numpy() - 16, 0, 0, ms)


def a40_decode(folder: Path) -> Steps:
    """Return medians of the decode grid at 300 W, one a cell of batch and prompt length."""
    rows = pd.read_csv(folder / "a40_qwen3_0.6b_decode_grid.csv", comment="#")
    return Steps.of(0, 0, rows["batch"], rows["kv_total"], rows["p50_ms"])


def mixed_steps(folder: Path) -> Steps:
    """Return steps of an RTX PRO 6000 with Llama-3.1-8B: prompts, decodes, and both."""
    rows = pd.read_csv(folder / "mixed_step_rtxpro6000_llama3.1_8b.csv.gz", comment="#")
    kv_tokens = rows["B"] * rows["kvd"]
    return Steps.of(rows["chunk"], rows["kvp"], rows["B"], kv_tokens, rows["ms"])


def aic(folder: Path, system: str, model: str) -> Steps:
    """Return prefill and decode iterations that aiconfigurator computes from measured operators."""
    rows = pd.read_csv(folder / "aic_iteration_grid.csv.gz", comment="#")
    rows = rows[(rows["system"] == system) & (rows["model"] == model)]
    prompts, decodes = rows[rows["phase"] == "prefill"], rows[rows["phase"] == "decode"]
    assert (prompts["batch"] == 1).all()
    return Steps.concatenate(
        [
            Steps.of(prompts["new_tokens"], prompts["context_tokens"], 0, 0, prompts["latency_ms"]),
            Steps.of(
                0,
                0,
                decodes["batch"],
                decodes["batch"] * decodes["context_tokens"],
                decodes["latency_ms"],
            ),
        ]
    )


def requests(folder: Path) -> pd.DataFrame:
    """Return 300 requests that vLLM served on an RTX PRO 6000 with Llama-3.1-8B.

    Columns: input_tokens, output_tokens; arrived_s (queued), first_token_s and last_token_s since
    the first arrival.
    """
    rows = pd.read_json(folder / "vllm_bench_RTXPRO6000_Llama-3.1-8B_requests.jsonl", lines=True)
    began = rows["queued_ts"].min()
    return pd.DataFrame(
        {
            "input_tokens": rows["input_toks"],
            "output_tokens": rows["output_toks"],
            "arrived_s": rows["queued_ts"] - began,
            "first_token_s": rows["first_token_ts"] - began,
            "last_token_s": rows["last_token_ts"] - began,
        }
    )


def colocated_tbt(folder: Path) -> pd.DataFrame:
    """Return mean TBT (ms) by KV tokens an engine of A40 serving runs, in 20 s bins."""
    return pd.read_csv(folder / "a40_qwen3_0.6b_tbt_vs_kv_digitized.csv", comment="#")
