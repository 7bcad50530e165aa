"""How long a step of an engine takes, and a whole run of decode steps in closed form."""

from __future__ import annotations

import math

from conserve_gym.envs.serving.hardware import Hardware

# Exponent of the smooth max of a prompt's step. Cold prefills of an A40 pass from launch-bound to
# compute-bound as gently as that: leaving one length out, a sharp max errs by 3.8 % instead of 2.9.
SHARPNESS = 8


class StepTime:
    """The step law of one hardware tier, in seconds and tokens.

    Args:
        hardware: Tier with its coefficients.
    """

    def __init__(self, hardware: Hardware) -> None:
        """Bring the coefficients to seconds."""
        prefill, decode = hardware.prefill, hardware.decode
        self._engine_step = hardware.overhead.step_ms * 1e-3
        self._engine_sequence = hardware.overhead.sequence_us * 1e-6
        self._prefill_floor = prefill.floor_ms * 1e-3
        self._prefill_base = prefill.base_ms * 1e-3
        self._weights = prefill.weights_ms * 1e-3
        self._per_token = prefill.token_us * 1e-6
        self._per_attended_token = prefill.attention_ns * 1e-9
        self._scan = prefill.scan_us * 1e-6
        self._tile_from = prefill.tile_from
        self._untiled = prefill.untiled
        self._decode_floor = decode.floor_ms * 1e-3
        self._floor_per_sequence = decode.floor_sequence_us * 1e-6
        self._decode_base = decode.base_ms * 1e-3
        self._per_sequence = decode.sequence_us * 1e-6
        self._per_kv_token = decode.kv_us * 1e-6
        tile = hardware.mixed.tile_queries * self._per_attended_token
        self._per_kv_token_mixed = math.hypot(self._per_kv_token, tile)

    def attended(self, prompt_tokens: int, context_tokens: int) -> float:
        """Return what a chunk of a prompt attends to: n (context + n/2) tokens, weighted."""
        attended = prompt_tokens * (context_tokens + prompt_tokens / 2)
        return attended * self._untiled if prompt_tokens < self._tile_from else attended

    def with_prefill(
        self,
        prompt_tokens: int,
        attended_tokens: float,
        scanned_tokens: int,
        sequences: int,
        kv_tokens: int,
    ) -> float:
        """Return the time of a step that holds prompt tokens, with or without decodes.

        Args:
            prompt_tokens: Prompt tokens in the step, over all its chunks.
            attended_tokens: Sum of ``attended`` over the chunks.
            scanned_tokens: Longest cache that is read, by a chunk or by a sequence.
            sequences: Sequences decoding beside them.
            kv_tokens: KV tokens that these read.
        """
        attention = self._per_attended_token * attended_tokens
        if sequences:
            attention += self._per_kv_token_mixed * kv_tokens
        work = (
            self._prefill_base
            + math.hypot(self._weights, self._per_token * (prompt_tokens + sequences))
            + math.hypot(self._scan * scanned_tokens, attention)
            + self._per_sequence * sequences
        )
        if self._prefill_floor:
            work = (self._prefill_floor**SHARPNESS + work**SHARPNESS) ** (1.0 / SHARPNESS)
        if sequences:
            launched = self._decode_floor + self._floor_per_sequence * sequences
            if launched > work:
                work = launched
        return work + self._engine_step + self._engine_sequence * sequences

    def step(
        self, prompt_tokens: int, context_tokens: int, sequences: int = 0, kv_tokens: int = 0
    ) -> float:
        """Return the time of a step with one chunk of a prompt, or none.

        Args:
            prompt_tokens: Tokens of the chunk; 0 for a step of decodes only.
            context_tokens: Cached tokens that it comes after.
            sequences: Sequences decoding, all of one length.
            kv_tokens: KV tokens that these read.
        """
        if not prompt_tokens:
            return self.decode_run(sequences, kv_tokens).elapsed(1)
        attended = self.attended(prompt_tokens, context_tokens)
        length = -(-kv_tokens // sequences) if sequences else 0
        scanned_tokens = max(context_tokens, length)
        return self.with_prefill(prompt_tokens, attended, scanned_tokens, sequences, kv_tokens)

    def decode_run(self, sequences: int, kv_tokens: int) -> DecodeRun:
        """Return the law of a run of decode steps with a fixed batch.

        Args:
            sequences: Sequences in the batch, at least 1.
            kv_tokens: KV tokens that the first step reads; each step adds one a sequence.
        """
        engine = self._engine_step + self._engine_sequence * sequences
        return DecodeRun(
            floor=self._decode_floor + self._floor_per_sequence * sequences + engine,
            start=self._decode_base
            + self._per_sequence * sequences
            + self._per_kv_token * kv_tokens
            + engine,
            slope=self._per_kv_token * sequences,
        )


class DecodeRun:
    """Step j of the run takes max(floor, start + slope j) seconds.

    Attributes:
        floor: Seconds of a launch-bound step.
        start: Seconds that the first step takes of memory time.
        slope: Seconds by which it grows each step.
        floor_steps: How many steps are launch-bound, before memory takes over.
    """

    __slots__ = ("floor", "floor_steps", "slope", "start")

    def __init__(self, floor: float, start: float, slope: float) -> None:
        """Find where memory overtakes the floor."""
        self.floor = floor
        self.start = start
        self.slope = slope
        if start >= floor:
            self.floor_steps = 0
        elif slope > 0.0:
            self.floor_steps = math.ceil((floor - start) / slope)
        else:
            self.floor_steps = 1 << 62

    def elapsed(self, steps: int) -> float:
        """Return the time of the first ``steps`` steps."""
        launched = self.floor_steps
        if steps <= launched:
            return steps * self.floor
        rest = steps - launched
        first = self.start + self.slope * launched
        return launched * self.floor + rest * first + self.slope * (rest * (rest - 1) / 2)

    def steps_within(self, seconds: float) -> int:
        """Return how many steps are complete after ``seconds``."""
        floor_time = self.floor_steps * self.floor
        if seconds < floor_time:
            guess = int(seconds / self.floor)
        else:
            # Solve rest * first + slope * rest * (rest - 1) / 2 = seconds - floor_time.
            first = self.start + self.slope * self.floor_steps
            half = self.slope / 2
            linear = first - half
            left = seconds - floor_time
            root = (
                left / first
                if half == 0.0
                else (math.sqrt(linear * linear + 4 * half * left) - linear) / (2 * half)
            )
            guess = self.floor_steps + int(root)
        # Rounding may leave the guess one off.
        while guess > 0 and self.elapsed(guess) > seconds:
            guess -= 1
        while self.elapsed(guess + 1) <= seconds:
            guess += 1
        return guess
