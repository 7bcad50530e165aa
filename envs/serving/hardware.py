"""A GPU tier running one model: the coefficients of its laws, with their source.

Values live in ``conf/hardware/*.yaml``, one file a tier, and are validated here.
"""

from __future__ import annotations

from pydantic import NonNegativeInt
from pydantic.dataclasses import dataclass

from conserve_gym.envs.fields import STRICT, NotNegative, Positive


@dataclass(frozen=True, config=STRICT)
class PrefillLaw:
    """Step that holds prompt tokens: a smooth max of the floor and base + matrices + attention.

    For n prompt tokens in chunks of n_i tokens after c_i cached ones, alone in the step:

    - matrices = hypot(weights, token n): reading the weights or multiplying by them, whichever is
      longer, and something of both where they are alike;
    - attention = hypot(scan max c_i, attention sum n_i (c_i + n_i / 2)): one multiprocessor reads
      a head's cache from end to end, or all of them compute, whichever is longer.

    The smooth max of x and y is (x^8 + y^8)^(1/8).

    Of a kernel that takes few queries one by one and many in tiles, as llama.cpp's on a CPU does
    from 64 on (GGML_FA_TILE_Q), attention costs more in chunks of fewer than ``tile_from`` tokens.

    Attributes:
        floor_ms: Launch-bound shortest step.
        base_ms: Cost of a step that does not depend on its tokens.
        weights_ms: Cost of reading the weights.
        token_us: Cost of a prompt token.
        attention_ns: Cost of one prompt token attending to one token of context.
        scan_us: Cost of a token of the longest context, where a single multiprocessor reads it.
        untiled: How many times ``attention_ns`` it is in chunks of fewer than ``tile_from`` tokens.
        tile_from: Tokens from which a chunk is computed in tiles; 0 where all are.
    """

    floor_ms: NotNegative
    base_ms: NotNegative
    weights_ms: NotNegative
    token_us: NotNegative
    attention_ns: NotNegative
    scan_us: NotNegative
    untiled: Positive = 1.0
    tile_from: NonNegativeInt = 0


@dataclass(frozen=True, config=STRICT)
class DecodeLaw:
    """Step with decodes only.

    max(floor + floor_sequence B, base + sequence B + kv KV) for B sequences that read KV tokens.

    Attributes:
        floor_ms: Launch-bound shortest step.
        floor_sequence_us: What each sequence adds to it.
        base_ms: Cost of a memory-bound step that does not depend on its batch.
        sequence_us: What each sequence adds to it.
        kv_us: What each KV token read adds to it.
    """

    floor_ms: NotNegative
    floor_sequence_us: NotNegative
    base_ms: NotNegative
    sequence_us: NotNegative
    kv_us: NotNegative


@dataclass(frozen=True, config=STRICT)
class MixedLaw:
    """What decodes add to a step that holds prompt tokens; neither the sum nor the max of both.

    They go through the prompt's kernels: a decode's query fills a whole tile of queries, so that a
    KV token read costs hypot(kv, tile attention) instead of kv, and a decode's cache is scanned by
    one multiprocessor. With B decodes of lengths l_j, KV in all, the prefill law becomes
    matrices = hypot(weights, token (n + B)), attention = hypot(scan max(c_i, l_j),
    attention sum n_i (c_i + n_i / 2) + hypot(kv, tile attention) KV), plus sequence B; and the
    decodes' own floor holds.

    Attributes:
        tile_queries: Queries in a tile.
    """

    tile_queries: NotNegative


@dataclass(frozen=True, config=STRICT)
class EngineOverhead:
    """What the inference engine adds to every step and request where the laws count GPU time alone.

    Attributes:
        step_ms: Scheduling, sampling, launching.
        sequence_us: What each decoding sequence adds to it.
        request_ms: What a request takes before its first step: transport, parsing.
    """

    step_ms: NotNegative
    sequence_us: NotNegative
    request_ms: NotNegative = 0.0


@dataclass(frozen=True, config=STRICT)
class PowerLaw:
    """Power: base + joules a byte moved + joules a FLOP, at most the cap; idle without work.

    Raises:
        ValueError: The powers do not rise from idle to base to cap.
    """

    idle_w: NotNegative
    base_w: NotNegative
    cap_w: Positive
    joule_per_gb: NotNegative
    joule_per_tflop: NotNegative

    def __post_init__(self) -> None:
        """Check the order of the powers."""
        if not self.idle_w <= self.base_w <= self.cap_w:
            raise ValueError("idle_w <= base_w <= cap_w must hold")


@dataclass(frozen=True, config=STRICT)
class ModelFigures:
    """What the model asks of the hardware.

    Attributes:
        weights_gb: Weights read in every step.
        gflop_per_token: Matrix work of a token (2 FLOP a parameter).
        kflop_per_attended_token: Attention work of a token on one token of context.
        kv_bytes_per_token: Size of a token in the KV cache.
    """

    weights_gb: Positive
    gflop_per_token: Positive
    kflop_per_attended_token: NotNegative
    kv_bytes_per_token: Positive


@dataclass(frozen=True, config=STRICT)
class GpuFigures:
    """What the GPU can do at most; no step is faster.

    Attributes:
        peak_tflops: Dense matrix work in the model's number format.
        gb_per_s: Memory bandwidth.
        memory_gb: Size of the memory.
    """

    peak_tflops: Positive
    gb_per_s: Positive
    memory_gb: Positive


@dataclass(frozen=True, config=STRICT)
class Provenance:
    """Where the coefficients come from.

    Attributes:
        source: Who measured, on what, at which revision.
        date: Date of that revision.
        derived: Whether nothing was measured, and the laws follow from public figures of the GPU
            and the model. Results say so.
        carried: Parts of a measured tier that were carried over from other GPUs or inferred, such
            as "scan", "mixed steps", "overhead", "power". Results name them.
        holdout_error_pct: Mean absolute error on rows that were left out of the fit, in percent.
    """

    source: str
    date: str
    derived: bool
    carried: tuple[str, ...]
    holdout_error_pct: dict[str, float]


@dataclass(frozen=True, config=STRICT)
class Hardware:
    """One GPU with one model at one power cap.

    Raises:
        ValueError: A step could take no time.
    """

    gpu: str
    model: str
    prefill: PrefillLaw
    decode: DecodeLaw
    mixed: MixedLaw
    overhead: EngineOverhead
    power: PowerLaw
    limits: GpuFigures
    figures: ModelFigures
    provenance: Provenance

    def __post_init__(self) -> None:
        """Check that every step takes time."""
        prefill, decode, step_ms = self.prefill, self.decode, self.overhead.step_ms
        if not step_ms + prefill.floor_ms + prefill.base_ms + prefill.weights_ms > 0.0:
            raise ValueError("a prompt's step takes no time: floor_ms, base_ms, weights_ms are 0")
        if not step_ms + decode.floor_ms + decode.base_ms > 0.0:
            raise ValueError("a step of decodes takes no time: floor_ms and base_ms are 0")
