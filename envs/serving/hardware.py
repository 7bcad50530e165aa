"""A GPU tier running one model: the coefficients of its laws, with their source.

Values live in ``conf/hardware/*.yaml``, one file a tier, and are validated here.
"""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from conserve_gym.envs.fields import STRICT, NotNegative, Positive


@dataclass(frozen=True, config=STRICT)
class PrefillLaw:
    """Step with prompt tokens only: max(floor, base + token n + attention n (context + n/2)).

    Attributes:
        floor_ms: Launch-bound shortest step.
        base_ms: Cost of a step that does not depend on its tokens.
        token_us: Cost of a prompt token.
        attention_ns: Cost of one prompt token attending to one token of context.
    """

    floor_ms: Positive
    base_ms: NotNegative
    token_us: NotNegative
    attention_ns: NotNegative


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

    floor_ms: Positive
    floor_sequence_us: NotNegative
    base_ms: NotNegative
    sequence_us: NotNegative
    kv_us: NotNegative


@dataclass(frozen=True, config=STRICT)
class MixedLaw:
    """Step with prompt tokens and decodes: the prefill terms plus the decodes' at a penalty.

    Attributes:
        kv_factor: How many times more a KV token read costs than in a step of decodes only.
    """

    kv_factor: NotNegative


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
class Provenance:
    """Where the coefficients come from.

    Attributes:
        source: Who measured, on what, at which revision.
        date: Date of that revision.
        holdout_error_pct: Mean absolute error on rows that were left out of the fit, in percent.
    """

    source: str
    date: str
    holdout_error_pct: dict[str, float]


@dataclass(frozen=True, config=STRICT)
class Hardware:
    """One GPU with one model at one power cap."""

    gpu: str
    model: str
    prefill: PrefillLaw
    decode: DecodeLaw
    mixed: MixedLaw
    power: PowerLaw
    figures: ModelFigures
    provenance: Provenance
