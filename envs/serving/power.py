"""Energy of steps: the power law integrated over a step or a run of decode steps."""

from __future__ import annotations

from conserve_gym.envs.serving.hardware import Hardware
from conserve_gym.envs.serving.step_time import DecodeRun


class StepEnergy:
    """Joules that steps of one hardware tier use.

    A step uses base power for its time plus energy for the bytes it moves and the work it does,
    and never more than the cap for its time.

    Args:
        hardware: Tier with its coefficients.
    """

    def __init__(self, hardware: Hardware) -> None:
        """Fold the power law and the model's figures into joules a token."""
        power, figures = hardware.power, hardware.figures
        self.idle_w = power.idle_w
        self._base_w = power.base_w
        self._cap_w = power.cap_w
        kv_joule = power.joule_per_gb * figures.kv_bytes_per_token * 1e-9
        self._per_step = power.joule_per_gb * figures.weights_gb
        # Every token computed is also written to the KV cache.
        self._per_token = power.joule_per_tflop * figures.gflop_per_token * 1e-3 + kv_joule
        self._per_attended_token = power.joule_per_tflop * figures.kflop_per_attended_token * 1e-9
        self._per_kv_read = kv_joule

    def with_prefill(
        self,
        seconds: float,
        prompt_tokens: int,
        attended_tokens: float,
        context_tokens: int,
        sequences: int,
        kv_tokens: int,
    ) -> float:
        """Return the joules of a step that holds prompt tokens, with or without decodes.

        Args:
            seconds: Time of the step.
            prompt_tokens: Prompt tokens over all its chunks.
            attended_tokens: Sum over the chunks of n (context + n/2).
            context_tokens: Cached tokens that the chunks read.
            sequences: Sequences decoding beside them.
            kv_tokens: KV tokens that these read.
        """
        dynamic = (
            self._per_step
            + self._per_token * (prompt_tokens + sequences)
            + self._per_attended_token * (attended_tokens + kv_tokens)
            + self._per_kv_read * (context_tokens + kv_tokens)
        )
        return min(self._cap_w * seconds, self._base_w * seconds + dynamic)

    def of_run(self, run: DecodeRun, sequences: int, kv_tokens: int, steps: int) -> float:
        """Return the joules of the first ``steps`` steps of a decode run.

        Args:
            run: The run's time law.
            sequences: Sequences in the batch.
            kv_tokens: KV tokens that the first step reads.
            steps: Number of steps.
        """
        per_kv = self._per_attended_token + self._per_kv_read
        first = self._per_step + self._per_token * sequences + per_kv * kv_tokens
        growth = per_kv * sequences
        launched = steps if steps < run.floor_steps else run.floor_steps
        joules = 0.0
        if launched:
            joules = _sum_of_smaller(
                launched, self._base_w * run.floor + first, growth, self._cap_w * run.floor, 0.0
            )
        if steps > launched:
            start = run.start + run.slope * launched
            joules += _sum_of_smaller(
                steps - launched,
                self._base_w * start + first + growth * launched,
                self._base_w * run.slope + growth,
                self._cap_w * start,
                self._cap_w * run.slope,
            )
        return joules


def _sum_of_smaller(count: int, a: float, a_slope: float, b: float, b_slope: float) -> float:
    """Sum min(a + a_slope j, b + b_slope j) over j = 0 .. count - 1."""
    gap, closing = b - a, a_slope - b_slope
    starts_lower = gap >= 0.0
    if starts_lower != (gap >= closing * (count - 1)):
        before = min(int(gap / closing) + 1, count)
    else:
        before = count
    first, second = ((a, a_slope), (b, b_slope)) if starts_lower else ((b, b_slope), (a, a_slope))
    total = before * first[0] + first[1] * (before * (before - 1) / 2)
    after = count - before
    if after:
        total += after * (second[0] + second[1] * before) + second[1] * (after * (after - 1) / 2)
    return total
