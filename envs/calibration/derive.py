"""Laws of a GPU and a model that nobody has measured, from their public figures.

Every coefficient is the GPU's limit at some efficiency. The efficiencies are medians over the laws
that were fitted for five GPUs (A100, H100, H200, L40S, RTX PRO 6000) with three models each;
``scripts/validate.py`` reports the error on a GPU that was left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from conserve_gym.envs.calibration.fit import TILE, Laws
from conserve_gym.envs.fields import STRICT, Positive
from conserve_gym.envs.serving.hardware import (
    DecodeLaw,
    EngineOverhead,
    GpuFigures,
    Hardware,
    ModelFigures,
    PowerLaw,
    PrefillLaw,
    Provenance,
)

# One multiprocessor reads a token of a head's cache in 57 cycles: 0.688 us a token with 32 layers
# at 2.62 GHz (RTX PRO 6000, measured mixed steps) and 0.95 us with 28 layers at 1.74 GHz (A40,
# cached prefills) are 56 and 59.
SCAN_CYCLES = 57.0

# Host side of a step under vLLM with CUDA graphs: 0.2 to 1.1 ms on an H100 (ML.ENERGY v3 less
# computed iterations), 22 us a sequence (Dynamo's steady decode sweep).
OVERHEAD = EngineOverhead(step_ms=0.65, sequence_us=22.0)


LARGEST_BATCH = 512
"""Sequences up to which no derived step of decodes is faster than the peak."""


@dataclass(frozen=True, config=STRICT)
class Gpu:
    """Public figures of a GPU.

    Attributes:
        name: What it is called.
        peak_tflops: Dense matrix work in the model's number format.
        gb_per_s: Memory bandwidth.
        memory_gb: Size of the memory.
        clock_ghz: Boost clock.
        cap_w: Power limit.
        splits_caches: Whether its attention kernels read a long cache with several
            multiprocessors (FlashAttention 3, Hopper).
    """

    name: str
    peak_tflops: Positive
    gb_per_s: Positive
    memory_gb: Positive
    clock_ghz: Positive
    cap_w: Positive
    splits_caches: bool = False

    @property
    def limits(self) -> GpuFigures:
        """What no step is faster than."""
        return GpuFigures(self.peak_tflops, self.gb_per_s, self.memory_gb)


@dataclass(frozen=True, config=STRICT)
class Model:
    """Public figures of a dense transformer with gated feed-forward layers in 16 bit.

    Attributes:
        name: What it is called.
        layers: Number of layers.
        hidden: Width of the residual stream.
        query_heads: Attention heads.
        kv_heads: Heads of the KV cache.
        head: Width of a head.
        intermediate: Width of the feed-forward layers.
        vocabulary: Number of tokens it knows.
    """

    name: str
    layers: PositiveInt
    hidden: PositiveInt
    query_heads: PositiveInt
    kv_heads: PositiveInt
    head: PositiveInt
    intermediate: PositiveInt
    vocabulary: PositiveInt

    @property
    def figures(self) -> ModelFigures:
        """What it asks of the hardware."""
        projections = self.hidden * self.head * 2 * (self.query_heads + self.kv_heads)
        feed_forward = 3 * self.hidden * self.intermediate
        in_layers = self.layers * (projections + feed_forward)
        return ModelFigures(
            weights_gb=2e-9 * (in_layers + self.vocabulary * self.hidden),
            # A prompt's logits are computed for its last token alone.
            gflop_per_token=2e-9 * in_layers,
            kflop_per_attended_token=4e-3 * self.query_heads * self.head * self.layers,
            kv_bytes_per_token=4.0 * self.layers * self.kv_heads * self.head,
        )


class Efficiencies(NamedTuple):
    """What a law reaches of the limits.

    Attributes:
        matrices: Share of the peak by which prompt tokens are multiplied.
        attention: Share of the peak by which they attend.
        kv: Share of the bandwidth by which decodes read KV.
        weights: Share of the bandwidth by which a step reads the weights.
        layer_us: What each layer of a step costs besides.
        sequence: Cost of a decoding sequence in prompt tokens.
    """

    matrices: float
    attention: float
    kv: float
    weights: float
    layer_us: float
    sequence: float


# Medians over the 15 tiers that are named above.
EFFICIENCIES = Efficiencies(
    matrices=0.69, attention=0.61, kv=0.91, weights=0.87, layer_us=30.0, sequence=0.53
)


def scan_us(gpu: Gpu, model: Model, kv_us: float) -> float:
    """Return what a token of the longest context costs.

    Args:
        gpu: Figures of the GPU.
        model: Figures of the model.
        kv_us: Cost of a KV token in a step of decodes, which is the pace of a GPU that reads a
            cache with several multiprocessors.
    """
    return kv_us if gpu.splits_caches else SCAN_CYCLES * model.layers / (gpu.clock_ghz * 1e3)


def laws(gpu: Gpu, model: Model, efficiencies: Efficiencies = EFFICIENCIES) -> Laws:
    """Return the step law of a model on a GPU, without the engine's overhead."""
    figures = model.figures
    peak = gpu.peak_tflops * 1e12
    at_peak_us = figures.gflop_per_token * 1e15 / peak
    token_us = at_peak_us / efficiencies.matrices
    weights_ms = figures.weights_gb * 1e3 / (gpu.gb_per_s * efficiencies.weights)
    layers_ms = model.layers * efficiencies.layer_us * 1e-3
    kv_us = figures.kv_bytes_per_token * 1e-3 / (gpu.gb_per_s * efficiencies.kv)
    base_ms = layers_ms + weights_ms
    # A GPU multiplies decodes while it reads the weights. What multiplies slower than it reads (a
    # CPU) cannot hide them there.
    slowest_us = at_peak_us - base_ms * 1e3 / LARGEST_BATCH
    return Laws(
        PrefillLaw(
            floor_ms=0.0,
            base_ms=layers_ms,
            weights_ms=weights_ms,
            token_us=token_us,
            attention_ns=figures.kflop_per_attended_token * 1e12 / (peak * efficiencies.attention),
            scan_us=scan_us(gpu, model, kv_us),
        ),
        DecodeLaw(
            floor_ms=0.0,
            floor_sequence_us=0.0,
            base_ms=base_ms,
            sequence_us=max(token_us * efficiencies.sequence, slowest_us),
            kv_us=kv_us,
        ),
        TILE,
    )


def efficiencies(fitted: Iterable[tuple[Gpu, Model, Laws]]) -> Efficiencies:
    """Return the medians of what fitted laws reach."""
    rows = []
    for gpu, model, (prefill, decode, _) in fitted:
        figures, peak = model.figures, gpu.peak_tflops * 1e12
        read_ms = figures.weights_gb * 1e3 / gpu.gb_per_s
        rows.append(
            (
                figures.gflop_per_token * 1e15 / peak / prefill.token_us,
                figures.kflop_per_attended_token * 1e12 / peak / prefill.attention_ns,
                figures.kv_bytes_per_token * 1e-3 / gpu.gb_per_s / decode.kv_us,
                decode.base_ms,
                read_ms,
                model.layers,
                decode.sequence_us / prefill.token_us,
            )
        )
    matrices, attention, kv, base_ms, read_ms, layers, sequence = np.array(rows).T
    # Relative least squares of base = read / weights + layers layer_us.
    inverse, layer_ms = np.linalg.lstsq(
        np.column_stack((read_ms, layers)) / base_ms[:, None], np.ones(len(rows))
    )[0]
    return Efficiencies(
        matrices=float(np.median(matrices)),
        attention=float(np.median(attention)),
        kv=float(np.median(kv)),
        weights=float(1.0 / inverse),
        layer_us=float(1e3 * layer_ms),
        sequence=float(np.median(sequence)),
    )


def hardware(gpu: Gpu, model: Model) -> Hardware:
    """Return the tier of a model on a GPU; whatever it is used for says that it is derived.

    Power: idle 20 % and base 30 % of the limit; full bandwidth alone adds 65 % of it, full matrix
    work alone all of it, as on the tiers whose power was measured.
    """
    fitted = laws(gpu, model)
    return Hardware(
        gpu=gpu.name,
        model=model.name,
        prefill=fitted.prefill,
        decode=fitted.decode,
        mixed=fitted.mixed,
        overhead=OVERHEAD,
        power=PowerLaw(
            idle_w=0.2 * gpu.cap_w,
            base_w=0.3 * gpu.cap_w,
            cap_w=gpu.cap_w,
            joule_per_gb=0.65 * gpu.cap_w / gpu.gb_per_s,
            joule_per_tflop=gpu.cap_w / gpu.peak_tflops,
        ),
        limits=gpu.limits,
        figures=model.figures,
        provenance=Provenance(
            source="public figures of the GPU and the model; efficiencies of other GPUs",
            date="2026-11-23",
            derived=True,
            carried=(),  # all of it is, which ``derived`` says
            holdout_error_pct={},
        ),
    )
